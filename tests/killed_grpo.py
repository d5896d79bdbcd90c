"""scripts.grpo in a process that kills itself: python killed_grpo.py MOMENT STEP FLAGS, MOMENT being rollout, reward or
update (or never)."""

import os
import signal
import sys
import threading

sys.path[:0] = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]

import chat_model  # noqa: E402

from cli import command  # noqa: E402
from rollouts import decoder  # noqa: E402
from scripts import grpo  # noqa: E402
from training import step as steps  # noqa: E402


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(function, number, act):
    """`function`, which at its `number`-th call does `act` first."""
    calls = []

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == number:
            act()
        return function(*arguments, **keywords)

    return wrapped


ROWS = 8
"""of a batch of rollouts, which rewards see in one call or in several"""


def on_row(reward, number):
    """`reward`, which in the call that has the `number`-th row is the end."""
    rows = []

    def wrapped(prompts, completions, **columns):
        rows.extend(prompts)
        if len(rows) >= number:
            kill()
        return reward(prompts, completions, **columns)

    return wrapped


def arrange(moment, number):
    if moment == "rollout":
        decoder.decode = on_call(decoder.decode, 2 * number, kill)  # in the middle: slots are filled again
    if moment == "reward":
        chat_model.digits = on_row(chat_model.digits, ROWS * number)
    if moment == "update":
        made = steps.make_minibatch_updates
        steps.make_minibatch_updates = lambda *given: on_call(made(*given), number, threading.Timer(0.003, kill).start)


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    command.run(grpo.main, grpo.Config, grpo.DESCRIPTION)
