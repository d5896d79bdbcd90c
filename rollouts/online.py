"""The loop of online training: prompts in, metrics out, checkpoints, a progress bar."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from training.keeping import Benchmarks, Evaluate, LoopConfig, kept
from training.state import TrainState


class PromptStream(Protocol):
    """Endless prompts, and where in the data they stand."""

    def __next__(self) -> Any:
        """The next batch of prompts."""

    def position(self) -> Any:
        """Where the stream stands after all that was drawn, for JSON."""


Step = Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Any], Callable[[], Mapping[str, str]]]]


def train_online(state: TrainState, step: Step, open_prompts: Callable[[Any], PromptStream], run: Path,
                 config: LoopConfig, evaluate: Evaluate | None = None,
                 benchmarks: Benchmarks | None = None) -> TrainState:
    """Steps until config.max_steps, from where `run`'s newest checkpoint stands; returns the last state.

    `step` takes the state, the prompts, of which it draws as many batches as it needs, and its number, and gives the
    next state, metrics, and what records what was drawn and gives texts of it to watch; it donates the state only once
    nothing in it raises InputError any more. `open_prompts` takes the position in the data, None for its beginning.
    Evaluates, saves, stops and raises as training.loop.train does.
    """
    with kept(run, state, config, evaluate, benchmarks=benchmarks) as (keeper, state, position):
        prompts = open_prompts(position)
        for number in keeper.steps(state):
            with keeper.saving_on_error(state, number):
                keeper.profiler.before(number)
                state, metrics, record = step(state, prompts, number)
            keeper.log.dispatched(number, metrics)
            keeper.log.flush()  # the step was waited for
            keeper.profiler.after(number, lambda: None)
            keeper.finish(state, number, prompts.position(), record)
    return state
