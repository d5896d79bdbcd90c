"""A step of online training on the host: groups drawn, completions scored, what is said of the step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data.prompts import Prompt
from models.scoring import score_completions
from objectives.advantages import penalised
from rollouts.rollout import Rollouts, join
from sharding.placement import Placement


def draw_groups(prompts: Sequence[Prompt], more: Callable[[], Sequence[Prompt]],
                roll: Callable[[Sequence[Prompt], int], Rollouts], max_draws: int) -> Rollouts:
    """Rollouts of `prompts`. With max_draws above 1, groups whose rewards are all equal, which teach nothing, are
    replaced by those of `more` prompts: DAPO's dynamic sampling (arXiv:2503.14476, section 3.2).

    `roll` answers and rewards prompts, given the number of the draw. After the last one, groups without spread fill up.
    """
    parts = [roll(prompts, 0)]
    while len(parts) < max_draws and sum(part.spread().sum() for part in parts) < len(prompts):
        parts.append(roll(more(), len(parts)))
    if max_draws == 1:
        return parts[0]
    useful = [part.take(np.flatnonzero(part.spread()).tolist()) for part in parts]
    flat = [part.take(np.flatnonzero(~part.spread()).tolist()) for part in parts]
    return join(parts[0], [*useful, *flat], len(prompts), parts)


def put_column(name: str, values: np.ndarray, placement: Placement) -> dict[str, jax.Array]:
    """A number for each completion, [P, G] -> [K, b] on the devices."""
    return placement.put({name: np.asarray(values, np.float32).ravel()}, list(range(len(values))))


def penalise(rewards: np.ndarray, batch: dict[str, jax.Array], beta: float, kl: str) -> np.ndarray:
    """Rewards [P, G] less beta times the KL of each completion (objectives.advantages.penalised)."""
    logps, ref_logps, mask = (jax.device_get(batch[name]).reshape(-1, batch[name].shape[-1])[: rewards.size]
                              for name in ("old_logps", "ref_logps", "loss_mask"))
    return np.asarray(penalised(rewards.ravel(), logps, ref_logps, mask, beta, kl)).reshape(rewards.shape)


def make_scorer(group_size: int, prompt_width: int, temperature: float) -> Callable[..., Any]:
    """The scorer of rollouts.rollout.to_batch's rows under softmax(logits / temperature), which the sampler draws from.
    """
    def scorer(model: Any, variables: Any, batch: Any, rngs: Any = None) -> Any:
        return score_completions(model, variables, batch, group_size, prompt_width, temperature, rngs)

    return scorer


def time_shares(seconds: dict[str, float]) -> dict[str, float]:
    """What part of the step went where, time_share/NAME."""
    total = sum(seconds.values())
    return {f"time_share/{name}": each / total for name, each in seconds.items()}
