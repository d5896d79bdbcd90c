"""Tests that need the sandbox are skipped where it cannot be had, or fail there: TEMPER_REQUIRE_SANDBOX=1 says so."""

import os
from pathlib import Path

import pytest

from rewards.execution.sandbox import _missing

MISSING, REQUIRED = _missing(), os.environ.get("TEMPER_REQUIRE_SANDBOX") == "1"
if MISSING and REQUIRED:
    raise RuntimeError(f"the tests of the sandbox are required (TEMPER_REQUIRE_SANDBOX=1), and {MISSING}")
needs_sandbox = pytest.mark.skipif(MISSING is not None, reason=f"no sandbox here: {MISSING}")


def running(word):
    """Pids of processes with `word` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] * (word.encode() in path.read_bytes())
        except OSError:  # has ended
            continue
    return found
