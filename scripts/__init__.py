"""One experiment a file, each read from top to bottom; `python -m scripts.NAME --help` teaches it."""

import sys


def _one_line(kind: type[BaseException], *error: object) -> None:
    """Ctrl-C is no error: from the first import on it is one line. (Hence no import here that takes a while.)"""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, *error)


sys.excepthook = _one_line
