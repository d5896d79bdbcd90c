"""Where one read or write fails, it is raised, and printed once; Orbax's threads and all that they had begun would each
print a traceback besides."""

import logging
import sys
import warnings
from typing import Any

RAISED_TOO = ("_SignalingThread.run() raised an exception", "or the Commit callback in background save thread",
              "Save Finalize thread", "Failed to write metadata")
"""of absl's lines of errors"""


def silence_orbax() -> None:
    sys.unraisablehook = _all_but_abandoned
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absl = logging.getLogger("absl")
    absl.setLevel(logging.ERROR)  # Orbax warns of what is meant: no metrics, reading only
    absl.addFilter(_is_not_raised_too)


def _all_but_abandoned(unraisable: Any) -> None:
    if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
        sys.__unraisablehook__(unraisable)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in RAISED_TOO)
