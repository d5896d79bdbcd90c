"""Progress bars, with the time left: of a training run (step, loss, tokens/s) and of any long work."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import rich.box
import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_LINES = 20
"""lines that a short run prints in all"""

PLAIN_SECONDS = 60.0
"""and a long one prints a line about so often, beginning with its first step"""


def track(items: Sequence[Any], what: str) -> Iterable[Any]:
    """`items` with a bar on the terminal that goes when they are done; without one where the output is a file."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return rich.progress.track(items, what, console=console, transient=True)


@contextlib.contextmanager
def counted(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function that is told how many more of `total` are done, and a bar on the terminal while the block runs."""
    console = Console(stderr=True)
    with Progress(TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _figures(step: int, values: dict[str, float], before: dict[str, float]) -> Table:
    """Of held-out rows, after this step and, where there was one, at the evaluation before."""
    table = Table(title=f"held out, step {step}", title_justify="left", box=rich.box.SIMPLE_HEAD)
    table.add_column()
    for heading in (f"step {step}", *([f"step {before['step']}", "change"] if before else [])):
        table.add_column(heading, justify="right")
    for name, value in values.items():
        then = before.get(name)
        table.add_row(escape(name.removeprefix("eval/")), f"{value:.4f}",
                      *([] if then is None else [f"{then:.4f}", f"{value - then:+.4f}"]))
    return table


class TrainingProgress:
    """A line now and then, and on a terminal a bar below them; there, held-out figures are a small table."""

    def __init__(self, first: int, last: int, shown: bool = True):
        self._console = Console(stderr=True, quiet=not shown)
        self._last = last
        self._evaluated: dict[str, float] = {}
        self._printed = -float("inf")  # time.monotonic() of the last line
        self._every = max(1, (last - first) // PLAIN_LINES)
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self._console,
            disable=not (shown and self._console.is_terminal))
        self._task = self._bar.add_task("train", total=last, completed=first, numbers="compiling ...")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def step(self, step: int, values: dict[str, Any]) -> None:
        reward = f"reward {values['reward']:.3f}  " if "reward" in values else ""
        loss = f"loss {values['loss']:.4f}  " if "loss" in values else ""
        compiled = f" (compiled {values['compile_seconds']:.1f} s)" if values.get("compile_seconds", 0) > 1 else ""
        numbers = f"{reward}{loss}{values['tokens_per_second']:,.0f} tokens/s{compiled}"
        self._bar.update(self._task, completed=step, numbers=numbers)
        due = time.monotonic() - self._printed >= PLAIN_SECONDS
        if due or step % self._every == 0 or step == self._last:
            self._printed = time.monotonic()
            self._console.print(f"step {step}/{self._last}  {numbers}", highlight=False, soft_wrap=True)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Eval figures, above the bar: as a table, with those of the evaluation before, or as a line."""
        before, self._evaluated = self._evaluated, {"step": step} | values
        if self._console.is_terminal:
            self._console.print(_figures(step, values, before))
            return
        figures = "  ".join(f"{name.removeprefix('eval/')} {value:.4f}" for name, value in values.items())
        self._console.print(f"step {step}: eval {figures}", highlight=False, markup=False, soft_wrap=True)
