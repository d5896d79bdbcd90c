"""What one conversation was, ready to be trained on; groups of them; and the columns of a batch that they make."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.prompts import Prompt
from rewards.scoring import Failure


@dataclasses.dataclass
class Episode:
    """One answer to a prompt, over one turn or several. The ids trained are the ids sampled."""

    tokens: list[int]
    """the prompt, then what policy and environment added"""
    prompt_length: int
    """tokens before the first turn of the policy"""
    sampled: list[bool] = dataclasses.field(default_factory=list)
    """of each token after the prompt, whether the policy drew it; end tokens, too"""
    logps: list[float] = dataclasses.field(default_factory=list)
    """of each token after the prompt, under the distribution drawn from; 0 where the policy did not draw it"""
    version: int = 0
    """of the weights that its last token came from"""
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """what was said after the prompt, the policy's turns as role assistant, without special tokens"""
    finish_reason: str = ""
    """"stop" (an end token, a stop string, or the environment), "length" (cut at a limit), or "error" (the environment
    or the engine failed)"""
    values: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """of each reward"""
    reward: float | None = None
    """their weighted sum; None where there is none, and then it is not trained on"""
    opening: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """the prompt as messages; empty where it is a text that nobody answers but the policy"""

    @property
    def completion(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def text(self) -> str:
        """The policy's last turn."""
        turns = [message["content"] for message in self.messages if message["role"] == "assistant"]
        return turns[-1] if turns else ""


@dataclasses.dataclass
class Group:
    """All episodes of one prompt."""

    number: int
    """among the groups that were collected together"""
    prompt: Prompt
    episodes: list[Episode]
    failures: list[Failure] = dataclasses.field(default_factory=list)
    """of rewards, the environment and the engine; rows are members of the group"""

    @property
    def has_spread(self) -> bool:
        """Whether rewards differ; a group where they are equal teaches nothing."""
        rewards = [episode.reward for episode in self.episodes if episode.reward is not None]
        return len(set(rewards)) > 1


def rewards_of(groups: Sequence[Group]) -> np.ndarray:
    """[P, G], NaN where an episode has none."""
    return np.asarray([[np.nan if episode.reward is None else episode.reward for episode in group.episodes]
                       for group in groups], np.float64)


def to_batch(groups: Sequence[Group], columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The usual [B, T] columns on the host, an episode a row, group by group, from column 0.

    Targets are the tokens that the policy drew. Beside the usual columns: sampler_logps; truncated [B], 1 where a limit
    cut the episode; prompt_length [B], int32; rewards [B], float64, NaN for none; and `columns` [B], numbers of the
    prompts' rows.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    shape = len(episodes), max(len(episode.tokens) for episode in episodes)
    names = {"tokens": np.int32, "positions": np.int32, "segment_ids": np.int32, "loss_mask": np.float32,
             "sampler_logps": np.float32}
    batch = {name: np.zeros(shape, dtype) for name, dtype in names.items()}
    for row, episode in enumerate(episodes):
        start, stop = episode.prompt_length, len(episode.tokens)
        batch["tokens"][row, :stop] = episode.tokens
        batch["positions"][row, :stop] = np.arange(stop)
        batch["segment_ids"][row, :stop] = 1
        batch["loss_mask"][row, start:stop] = episode.sampled
        batch["sampler_logps"][row, start:stop] = episode.logps
    return batch | {
        "truncated": np.asarray([episode.finish_reason == "length" for episode in episodes], np.float32),
        "prompt_length": np.asarray([episode.prompt_length for episode in episodes], np.int32),
        "rewards": rewards_of(groups).ravel()} | {
        name: np.asarray([group.prompt.columns[name] for group in groups for _ in group.episodes], np.float32)
        for name in columns}
