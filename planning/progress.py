"""What compiling is at, on a terminal as a line that is rewritten, elsewhere as a line every half minute."""

import sys
from typing import TextIO

EVERY = 30.0
"""seconds between lines where output is no terminal"""


class Progress:
    """Called with a stage and seconds since the start. `usual` are seconds by stage that it took before, until which
    the end is foretold."""

    def __init__(self, name: str, usual: float | None, file: TextIO = sys.stderr):
        self._name, self._usual, self._file, self._told = name, usual, file, 0.0

    def __call__(self, stage: str, seconds: float) -> None:
        line = f"{self._name}: {stage}, {seconds:,.0f} s"
        if self._usual:
            line += f", about {max(0.0, self._usual - seconds):,.0f} s more"
        if self._file.isatty():
            print(f"\r\x1b[2K{line}", end="", file=self._file, flush=True)
        elif seconds - self._told >= EVERY:
            self._told = seconds
            print(line, file=self._file, flush=True)

    def end(self) -> None:
        """Nothing is left of the line."""
        if self._file.isatty():
            print("\r\x1b[2K", end="", file=self._file, flush=True)
