"""Programs compiled for one target, from the cache where they were before, with what is happening told meanwhile."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from planning import cache
from planning.compiling import Make, Target, compile_for
from planning.estimate import Estimate, estimate
from planning.facts import describe
from planning.progress import Progress


class Planner(NamedTuple):
    """Estimates of what `make` makes."""

    target: Target
    version: str
    """of libtpu"""
    make: Make

    def estimates(self, arguments: Sequence[Any], known_by: Any, finish: bool) -> list[Estimate]:
        """Of all programs of these arguments, to which their number comes; `known_by` is what the compiled texts depend
        on."""
        first = self.estimate(arguments, known_by, 0, finish)
        return [first, *(self.estimate(arguments, known_by, number, finish) for number in range(1, first.facts["of"]))]

    def estimate(self, arguments: Sequence[Any], known_by: Any, number: int, finish: bool) -> Estimate:
        """Of one program; with `finish` by its machine code. Raises InputError for what is refused where it is made."""
        key = cache.key_of(known_by, number, self.target.topology, self.target.slices, self.version)
        compiled = cache.find(key, finish)
        if compiled is None:
            progress = Progress(f"compiling for {self.target.topology}", cache.usual_seconds(finish))
            with tempfile.TemporaryDirectory() as folder:
                compiled = compile_for(self.target, self.make, (*arguments, number), describe, Path(folder), finish,
                                       progress)
            progress.end()
            cache.keep(key, compiled)
        return estimate(compiled)
