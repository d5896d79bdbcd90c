"""What a sandboxed process does first: it takes its job, then gives up what the job does not need.

Runs inside the sandbox: standard library only. Limits are set here and not before the start, since a trainer with
threads must not run code between fork and exec; they are hard ones, which nothing inside can raise again.
"""

import json
import os
import resource
import sys
from typing import Any


def enter() -> dict[str, Any]:
    """The job, a JSON object on standard input, with its `limits` already in force; standard input is empty then."""
    job = json.load(sys.stdin)
    for name, limit in job.pop("limits").items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    silence(0)
    return job


def silence(*descriptors: int) -> None:
    """Points file descriptors at /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def main() -> None:
    """Runs the job's `program` as a script."""
    program = enter()["program"]
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
