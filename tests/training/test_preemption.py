"""Ctrl-C: noted the first time, the end the second."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from training.preemption import INTERRUPTED, NOTE, Preemption

WAITING = """
import time
from training.preemption import Preemption
with Preemption() as stop:
    print("in", flush=True)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_is_noted(number):
    before, threads = signal.getsignal(number), threading.active_count()
    with Preemption() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(1)
        assert stop.cause == {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert signal.getsignal(number) is before
    assert threading.active_count() <= threads + 1


def test_a_second_ctrl_c_ends_the_process():
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() + process.stderr.readline() == NOTE
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == INTERRUPTED
