"""Values between the processes of a run: alone, among three real processes, and where one of them ends."""

import pytest
from processes import start_program

from sharding.exchange import broadcast, decided, gather

WORKER = """
import json, sys, threading, time
from sharding import exchange, hosts
hosts.connect(hosts.HostsConfig(sys.argv[1], 3, int(sys.argv[2]), heartbeat_timeout=6))
import jax
me = jax.process_index()
with hosts.lost_peers(lambda: 7):
    for size in (0, 10, 100_000):
        value = {"me": me, "text": "ü\\n" * size, "nothing": None, "nan": float("nan")}
        values = exchange.gather(value)
        assert [each["me"] for each in values] == [0, 1, 2] and values[1]["text"] == value["text"]
        assert values[2]["nan"] != values[2]["nan"] and values[0]["nothing"] is None
    for number in range(50):
        time.sleep(0.01 * (me == number % 3))  # whoever is late
        assert exchange.broadcast([me, number]) == [0, number]
        assert exchange.decided(lambda: [me]) == [0]
        assert exchange.gather(me * number) == [0, number, 2 * number]
    left = exchange._client().key_value_dir_get(exchange.PREFIX)
    if me == 0:
        assert len(left) <= 3, left
    ticks = []
    threading.Thread(target=lambda: [ticks.append(time.sleep(0.01)) for _ in range(20)], daemon=True).start()
    time.sleep(0.5 * (me == 0))
    exchange.broadcast(0)
    assert me == 0 or len(ticks) == 20  # who waits lets other threads work
    if sys.argv[3] == f"raises {me}":
        raise KeyError("a bug")
    if sys.argv[3] == f"killed {me}":
        import os
        os.kill(os.getpid(), 9)
    if sys.argv[3] != "ends":
        exchange.gather(1)
"""


def test_alone_values_are_themselves():
    value = {1: (2, 3)}
    assert broadcast(value) is value
    assert gather(value)[0] is value
    assert decided(lambda: value) is value


def ended(what):
    processes = start_program(WORKER, what, ids=(0, 1, 2))
    errors = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], errors


def test_all_get_what_each_gives():
    status, errors = ended("ends")
    assert status == [0, 0, 0], errors


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2])
def test_those_that_wait_hear_why_another_ends(which):
    status, errors = ended(f"raises {which}")
    assert status == [1, 1, 1]
    for number, error in enumerate(errors):
        if number == which:
            assert "Traceback" in error
        else:
            assert "error: another process of this run has ended" in error
            assert f"(process {which}: KeyError: 'a bug'); its checkpoints up to step 7 are good" in error


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_those_that_wait_for_one_that_is_killed_end(which):
    status, errors = ended(f"killed {which}")
    assert all(status), errors
