"""A program as a script: `__main__`, its input on standard input, its output on standard output behind a first line.

Runs inside the sandbox: standard library only.
"""

import os
import sys

from rewards.execution.inside import enter
from rewards.execution.load import prepare

READY = b"ready\n"


def main() -> None:
    job = enter()
    _give_input(job["input"])
    prepare(job["program"])
    os.write(1, READY)
    module = sys.modules["__main__"] = type(sys)("__main__")
    sys.argv = ["program.py"]
    exec(compile(job["program"], "program", "exec"), module.__dict__)


def _give_input(text: str) -> None:
    """As a file, which may be read in any way, and more than once."""
    with open(".input", "w+b") as file:
        file.write(text.encode(errors="replace"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    os.unlink(".input")
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the program's
