"""A training run's model judged while it trains: before the first step, every so many, after the last; in pairs.

Each time leaves a folder evals/step-NNNNNN in the run directory, as scripts.evaluate does. One that is there is not
measured again, whatever becomes of the run; and step 0 is measured by weights that no update has touched, or never.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import InputError
from evals.comparison import compare
from evals.figures import figures_of
from evals.results import read_evaluation, write_evaluation
from evals.samples import Sample
from evals.tables import label, open_console, print_comparison, print_figures, print_series
from files import write_text, writing
from sharding.exchange import decided
from sharding.hosts import barrier, is_main
from training.state import TrainState

PART = re.compile(r"(before|after)|(every)[\s=:]*([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class When:
    """The steps at which a run is judged."""

    before: bool
    after: bool
    every: int = 0

    def due(self, step: int, last: int) -> bool:
        """Whether after so many of `last` steps."""
        if step in (0, last):
            return self.before if step == 0 else self.after or (self.every > 0 and step % self.every == 0)
        return self.every > 0 and step % self.every == 0


def parse_when(text: str) -> When:
    """before,after,every N, or some of them. Raises InputError for anything else."""
    parts = [PART.fullmatch(part) for part in re.split(r"[,\s]+(?!\d)", text.strip())]
    kinds = [part and (part[1] or part[2]) for part in parts]
    if None in kinds or len({*kinds}) < len(kinds):
        raise InputError(f"--evaluate.at {text!r}: give before, after and every N, or some of them, with commas in "
                         f"between, N being 1 or more")
    every = sum(int(part[3]) for part in parts if part[3])
    return When("before" in kinds, "after" in kinds, every)


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """What training.keeping asks: whether a step's model is to be judged, and to do it."""

    run: Path
    when: When
    last: int
    """steps of the run"""
    judge: Callable[[dict[str, Any], int, Path], Mapping[str, Sequence[Sample]]]
    """(variables, step, folder for what it keeps meanwhile) -> samples by task"""
    config: Mapping[str, Any]
    """for results.json"""

    def due(self, step: int) -> bool:
        """Whether the model after so many steps is to be judged."""
        return self.when.due(step, self.last)

    def done(self, step: int) -> bool:
        """Whether it has been."""
        return decided(lambda: (self._folder(step) / "results.json").exists())

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        """The means of all metrics, in process 0; what was found is written down and printed, with how it compares to
        step 0. Where that is done, it is read."""
        if self.done(step):
            return _means(read_evaluation(self._folder(step))) if is_main() else {}
        if is_main():
            with writing(self._folder(step)):
                self._folder(step).mkdir(parents=True, exist_ok=True)
        evaluated = self.judge(state.variables(), step, self._folder(step))
        if is_main():
            self._record(evaluated, step)
        barrier("evaluation")
        return _means(evaluated)

    def _record(self, evaluated: Mapping[str, Sequence[Sample]], step: int) -> None:
        console = open_console(record=True)
        print_figures(evaluated, _title(step), console)
        compared = self._compared(evaluated) if step else []
        if compared:
            print_comparison(compared, f"before the first step and after step {step}", console=console)
        if step == self.last:
            self._print_series(evaluated, console)
        write_text(self._folder(step) / "tables.txt", console.export_text())
        write_evaluation(self._folder(step), evaluated, dict(self.config) | {"step": step}, compared)

    def _compared(self, evaluated: Mapping[str, Sequence[Sample]]) -> list[Any]:
        """With the weights that the run began with; a note where that cannot be, which ends no run."""
        folder = self._folder(0)
        if not (folder / "results.json").exists():
            return []
        try:
            return compare(read_evaluation(folder), evaluated, ("the evaluation before the first step", "this one"))
        except InputError as error:
            print(f"note: {error}")
            return []

    def _print_series(self, evaluated: Mapping[str, Sequence[Sample]], console: Any) -> None:
        """All steps that were judged, where there are more than two of the same questions."""
        found = (int(file.parent.name.removeprefix("step-")) for file in self.run.glob("evals/step-*/results.json"))
        steps = sorted(step for step in found if step < self.last)
        if len(steps) < 2:
            return
        try:
            earlier = {f"step {step}": read_evaluation(self._folder(step)) for step in steps}
            print_series(earlier | {f"step {self.last}": evaluated}, "all steps", console)
        except InputError as error:
            print(f"note: {error}")

    def _folder(self, step: int) -> Path:
        return self.run / "evals" / f"step-{step:06d}"


def _means(evaluated: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    return {f"{task}/{label(figure)}": figure.estimate.mean
            for task, samples in evaluated.items() for figure in figures_of(samples) if not figure.of_k}


def _title(step: int) -> str:
    return f"evaluation after step {step}" if step else "evaluation before the first step"
