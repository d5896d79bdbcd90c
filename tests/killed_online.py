"""scripts.grpo or scripts.ppo in a process that kills itself: python killed_online.py SCRIPT MOMENT STEP FLAGS, MOMENT
being one of MOMENTS, or never."""

import importlib
import os
import signal
import sys
import threading

sys.path[:0] = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]

import chat_model  # noqa: E402

from cli import command  # noqa: E402
from rollouts import decoder, samples  # noqa: E402
from training import checkpoints, critic, reference, step  # noqa: E402


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


def on_row(reward, number, act):
    """`reward`, which in the call that has the `number`-th row does `act` first."""
    rows = []

    def wrapped(prompts, completions, **columns):
        before = len(rows)
        rows.extend(prompts)
        if before < number <= len(rows):
            act()
        return reward(prompts, completions, **columns)

    return wrapped


def wrap(module, name, number, act):
    setattr(module, name, on_call(getattr(module, name), number, act))


def wrap_reward(number, act):
    chat_model.digits = on_row(chat_model.digits, ROWS * number, act)


def wrap_made(module, name, number, act, which=0):
    """What the function of this name makes when it is called for the first time, or the second (1)."""
    make, made = getattr(module, name), []

    def wrapped(*given, **keywords):
        made.append(make(*given, **keywords))
        return on_call(made[-1], number, act) if len(made) == which + 1 else made[-1]

    setattr(module, name, wrapped)


def soon():
    """In the middle of what begins now."""
    threading.Timer(0.003, kill).start()


MOMENTS = {
    "rollout": lambda number: wrap(decoder, "decode", 2 * number, kill),  # in the middle: slots are filled again
    "reward": lambda number: wrap_reward(number, kill),
    "scoring": lambda number: wrap_made(reference, "prepare_rollouts", number, soon),
    "values": lambda number: wrap_made(critic, "prepare_values", 2 * number, soon),  # of two mini-batches
    "update": lambda number: wrap_made(step, "make_minibatch_updates", number, soon),
    "critic": lambda number: wrap_made(step, "make_minibatch_updates", number, soon, which=1),
    "keeping": lambda number: wrap(samples, "write_samples", number, kill),
    "saving": lambda number: wrap(checkpoints, "save", number // 3, soon),
    "stop": lambda number: wrap_reward(number, lambda: os.kill(os.getpid(), signal.SIGTERM))}


if __name__ == "__main__":
    name, moment, number, *flags = sys.argv[1:]
    MOMENTS.get(moment, lambda number: None)(int(number))
    sys.argv[1:] = flags
    script = importlib.import_module(f"scripts.{name}")
    command.run(script.main, script.Config, script.DESCRIPTION)
