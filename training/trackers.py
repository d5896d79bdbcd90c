"""Where a run can be watched: TensorBoard, Weights & Biases, and a JAX profiler trace of chosen steps."""

import html
import importlib.util
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from errors import InputError
from files import write_text
from sharding.hosts import is_main


class Tracker(Protocol):
    """What shows a run's metrics elsewhere than in metrics.jsonl."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Shows numbers by name; None (a number that was not finite) is left out."""

    def log_text(self, step: int, name: str, text: str) -> None:
        """Shows a text as it is, whatever is in it."""

    def close(self) -> None:
        """Writes out what is pending."""


class Trackers:
    """Several of them, or none, as one."""

    def __init__(self, trackers: list[Tracker]):
        self._trackers = trackers

    def log(self, step: int, values: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def log_text(self, step: int, name: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.log_text(step, name, text)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(names: tuple[str, ...], run: Path, step: int) -> Trackers:
    """The trackers of the names in TRACKERS, on process 0; none on the others. Without a name it is TensorBoard where
    that is installed; `none` is none.

    `step` is where the run stands: what a killed run showed of later steps is shown no more. Raises InputError for an
    unknown name, or a package that is missing or cannot start.
    """
    if not names and importlib.util.find_spec("tensorboard"):
        names = ("tensorboard",)
    names = () if names == ("none",) else names
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise InputError(f"--trackers {unknown[0]!r}: choose from {', '.join(TRACKERS)}, or none alone")
    return Trackers([TRACKERS[name](run, step) for name in names] if is_main() else [])


class TensorBoard:
    """Event files under run/tensorboard, without TensorFlow: `tensorboard --logdir RUN` shows them."""

    def __init__(self, run: Path, step: int):
        from tensorboardX import SummaryWriter

        # TensorBoard drops what earlier files hold from purge_step on; a new run logs its step 0
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else 0, flush_secs=10)

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, step: int, name: str, text: str) -> None:
        indented = "".join(f"    {line}\n" for line in text.split("\n"))  # Markdown's verbatim text
        self._writer.add_text(name, indented.encode(errors="backslashreplace").decode(), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at wandb.ai (or offline: WANDB_MODE); WANDB_PROJECT, WANDB_ENTITY and the like are wandb's own.

    The id is kept in the run directory, so a resumed run goes on under it. wandb takes no step twice: those that a
    killed run logged after its last checkpoint stay as they were, and the resumed run computes the same again.
    """

    def __init__(self, run: Path, step: int):
        del step  # wandb itself passes over the steps it has
        try:
            import wandb
        except ImportError:
            raise InputError("--trackers wandb: the package is not installed; pip install wandb") from None
        try:
            self._run = wandb.init(id=_run_id(run / "wandb_id.txt"), resume="allow", name=run.name, dir=str(run))
        except wandb.Error as error:
            raise InputError(f"--trackers wandb: {str(error).splitlines()[0].rstrip('.')}; run `wandb login`, or set "
                             f"WANDB_MODE=offline") from None

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(_numbers(values), step=step)

    def log_text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _run_id(path: Path) -> str:
    """An id that is the run directory's own: not its path's, which another run may have had, or have elsewhere."""
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()


def parse_steps(text: str) -> tuple[int, int]:
    """`10:13` is (10, 13): the first and the last step that are profiled. Raises InputError for anything else."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile {text!r}: the form is FIRST:LAST, two steps from 1 on, as in 10:13")
    return int(first), int(last)


class StepProfiler:
    """Writes a JAX profiler trace of the steps first to last, as process 0 sees them, to run/profile.

    Around each step: `before(step)`, the step, `after(step, wait)`; `close(wait)` at the end, for a run that ends
    between the two. `wait` returns when the device is done: a step that is only dispatched is not in the trace.
    """

    def __init__(self, run: Path, steps: tuple[int, int] | None):
        self._folder, self._tracing = run / "profile", False
        self._first, self._last = steps if steps and is_main() else (1, 0)

    def before(self, step: int) -> None:
        """Starts the trace at the first of the steps that this process gets to see."""
        if self._first <= step <= self._last and not self._tracing:
            import jax

            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, wait: Callable[[], Any]) -> None:
        """Ends the trace after the last of the steps."""
        if step >= self._last:
            self.close(wait)

    def close(self, wait: Callable[[], Any]) -> None:
        """Ends a trace that is under way."""
        if self._tracing:
            import jax

            self._tracing = False
            wait()
            jax.profiler.stop_trace()
