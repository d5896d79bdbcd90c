"""Checks for the supervisor's tests, found by their path in its worker: one that ends its process, one without end."""

import os
import signal
import time

from checks.verdicts import Check, Finding


def crashes(quick, parts):
    return {"kind": "none"}, [
        Check("a", "before", lambda: Finding("ok", "")),
        Check("a", "crash", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        Check("a", "behind", lambda: Finding("ok", "", {"x": 1.0}))]


def never_ends(quick, parts):
    return {"kind": "none"}, [Check("a", "endless", lambda: time.sleep(1000)), Check("a", "behind", raises)]


def raises():
    raise ValueError("first line\nsecond line")


def no_devices(quick, parts):
    raise SystemExit(3)
