"""Online training: its loop, and a step of it on the host: groups drawn, completions scored, the step's times."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from models.scoring import score_completions
from objectives.advantages import penalised
from rollouts.rollout import Rollouts, join
from sharding.placement import Placement
from training.keeping import Evaluate, LoopConfig, kept
from training.state import TrainState


class PromptStream(Protocol):
    """Endless prompts, and where in the data they stand."""

    def __next__(self) -> Any:
        """The next batch of prompts."""

    def position(self) -> Any:
        """Where the stream stands after all that was drawn, for JSON."""


def train_online(state: TrainState, step: Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Any]]],
                 open_prompts: Callable[[Any], PromptStream], run: Path, mesh: jax.sharding.Mesh, config: LoopConfig,
                 evaluate: Evaluate | None = None) -> TrainState:
    """Steps until config.max_steps, from where `run`'s newest checkpoint stands; returns the last state.

    `step` takes the state, the prompts, of which it draws as many batches as it needs, and its number, and gives the
    next state and metrics; it donates the state only once nothing in it raises InputError any more. `open_prompts`
    takes the position in the data, None for its beginning. Evaluates, saves, stops and raises as training.loop.train
    does.
    """
    with kept(run, state, mesh, config, evaluate) as (keeper, state, position):
        prompts = open_prompts(position)
        for number in keeper.steps(state):
            with keeper.saving_on_error(state, number):
                keeper.profiler.before(number)
                state, metrics = step(state, prompts, number)
            keeper.log.dispatched(number, metrics)
            keeper.log.flush()  # the step was waited for
            keeper.profiler.after(number, lambda: None)
            keeper.finish(state, number, prompts.position())
    return state


def draw_groups(prompts: Sequence[Any], next_prompts: Callable[[], Sequence[Any]],
                rollout: Callable[[Sequence[Any], int], Rollouts], max_tries: int) -> tuple[Rollouts, list[int]]:
    """All rollouts, and the numbers of the prompts that are trained on: as many as `prompts`.

    With max_tries above 1, groups whose rewards are all equal, which teach nothing, are replaced by those of
    `next_prompts`: DAPO's dynamic sampling (arXiv:2503.14476, section 3.2). `rollout` takes prompts and the number of
    the try. After the last one, groups without spread fill up.
    """
    parts = [rollout(prompts, 0)]
    while len(parts) < max_tries and sum(part.spread().sum() for part in parts) < len(prompts):
        parts.append(rollout(next_prompts(), len(parts)))
    rollouts = join(parts)
    order = np.argsort(~rollouts.spread(), kind="stable") if max_tries > 1 else np.arange(len(prompts))
    return rollouts, order[: len(prompts)].tolist()


def put_minibatches(batch: dict[str, np.ndarray], placement: Placement, count: int) -> dict[str, jax.Array]:
    """A batch of rollouts [P * G, ...] as arrays [M * K, b, ...] on the devices: `count` M mini-batches one after the
    other, each laid out as `placement` says, so that one is as large as the other whatever the mesh."""
    parts = [{name: np.split(column, count)[number] for name, column in batch.items()} for number in range(count)]
    placed = [placement.put(part, list(range(placement.batch_size))) for part in parts]
    return {name: jnp.concatenate([part[name] for part in placed]) for name in batch} if count > 1 else placed[0]


def penalise(rewards: np.ndarray, batch: dict[str, jax.Array], count: int, beta: float, kl: str) -> np.ndarray:
    """Rewards [P, G] less beta times the KL of each completion (objectives.advantages.penalised); `batch` is of
    put_minibatches."""
    def rows(column: jax.Array) -> np.ndarray:  # without the empty rows that fill up each mini-batch
        parts = jax.device_get(column).reshape(count, -1, column.shape[-1])
        return parts[:, : rewards.size // count].reshape(rewards.size, -1)

    logps, ref_logps, mask = (rows(batch[name]) for name in ("old_logps", "ref_logps", "loss_mask"))
    return np.asarray(penalised(rewards.ravel(), logps, ref_logps, mask, beta, kl)).reshape(rewards.shape)


def make_scorer(group_size: int, max_prompt_length: int, temperature: float) -> Callable[..., Any]:
    """The scorer of rollouts.rollout.to_batch's rows under softmax(logits / temperature), which the sampler draws from.
    """
    def scorer(model: Any, variables: Any, batch: Any, rngs: Any = None) -> Any:
        return score_completions(model, variables, batch, group_size, max_prompt_length, temperature, rngs)

    return scorer


def time_shares(seconds: dict[str, float]) -> dict[str, float]:
    """What part of the step went where, time_share/NAME."""
    total = sum(seconds.values())
    return {f"time_share/{name}": each / total for name, each in seconds.items()}
