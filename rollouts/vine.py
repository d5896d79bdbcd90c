"""Values by Monte Carlo: what answers that go on from a cut point get on average, in place of a critic's word.

VinePPO (Kazemnejad et al. 2024, arXiv:2410.01679). The engine goes on from the tokens that were drawn so far, so an
estimate costs what the rest of the answer does. It is unbiased, whatever the number of answers.
"""

from collections.abc import Sequence

import numpy as np

from data.prompts import Prompt
from rollouts.drawing import Collect, Draw, compared_with
from rollouts.episodes import Episode, Group

Columns = dict[str, np.ndarray]


def cut_points(episode: Episode, stride: int) -> list[int]:
    """Where values are asked for: before the first token after the prompt, and after every `stride` of them."""
    return list(range(episode.prompt_length, len(episode.tokens), stride))


def prefixes(groups: Sequence[Group], stride: int) -> dict[tuple[int, ...], Prompt]:
    """What is gone on from, by its tokens: every cut point's once, however many episodes begin so."""
    found = {}
    for group in groups:
        for episode in group.episodes:
            for cut in cut_points(episode, stride):
                found[tuple(episode.tokens[:cut])] = group.prompt._replace(
                    tokens=episode.tokens[:cut], drawn=cut - episode.prompt_length)
    return found


def prefix_values(draw: Draw, stride: int, length: int, collect: Collect) -> tuple[Draw, np.ndarray]:
    """(the draw, the mean reward of the answers that `collect` gives to each cut point's prefix, [N, length] for the
    tokens drawn there; NaN elsewhere, and where no answer got a reward)."""
    prefix_prompts = prefixes(draw.trained, stride)
    draw, rewards = compared_with(draw, list(prefix_prompts.values()), collect)
    number = np.sum(~np.isnan(rewards), axis=1)
    means = np.where(number > 0, np.nansum(rewards, axis=1) / np.maximum(number, 1), np.nan)
    of_prefix = dict(zip(prefix_prompts, means, strict=True))
    episodes = [episode for group in draw.trained for episode in group.episodes]
    values = np.full((len(episodes), length), np.nan)
    for row, episode in enumerate(episodes):
        for cut in cut_points(episode, stride):
            values[row, cut] = of_prefix[tuple(episode.tokens[:cut])]
    return draw, values


def vine(groups: Sequence[Group], batch: Columns) -> Columns:
    """sum r + V' - V at every token of a stretch between two cut points, V and V' their prefix_values, r the rewards by
    token there; V' is 0 at the end. Tokens before the first value have 0."""
    advantages = np.zeros(batch["loss_mask"].shape)
    for row, (values, rewards) in enumerate(zip(batch["prefix_values"], batch["token_rewards"], strict=True)):
        cuts = np.flatnonzero(~np.isnan(values))
        for start, stop in zip(cuts, [*cuts[1:], len(values)]):
            after = values[stop] if stop < len(values) else 0.0
            advantages[row, start:stop] = rewards[start:stop].sum() + after - values[start]
    scored = ~np.isnan(batch["rewards"])[:, None]
    return {"advantages": np.where((batch["loss_mask"] != 0) & scored, advantages, 0.0)}


vine.needs = ("prefix_values",)
