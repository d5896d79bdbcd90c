"""Learned rewards: a reward model, by id or path, as a reward function."""

from collections.abc import Sequence
from typing import Any

import jax

from batch import Row, longest_row
from data.encode import encode_record
from data.tokenizer import open_tokenizer
from errors import InputError
from models.config import default_dtype
from models.heads import score_rewards
from rewards.contract import Reward
from sharding.mesh import MeshConfig, make_mesh
from training.evaluation import score_rows
from training.runs import open_model


def load_reward_model(reference: str, mesh: jax.sharding.Mesh | None = None, batch_size: int = 8) -> Reward:
    """The reward model that `reference` names (run directory, or folder or Hub id of a one-label classifier).

    Prompts and completions are strings, which are put together and ended with the end token, or lists of messages.
    Raises InputError for a language model, one without a tokenizer, and for rows beyond the model's context.
    """
    opened = open_reward_model(reference)
    tokenizer = open_tokenizer(opened.tokenizer)
    if tokenizer is None:
        raise InputError(f"reward model {reference!r} has no tokenizer; put tokenizer.json into its folder")
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    model, variables = opened.load(mesh, dtype=default_dtype(), param_dtype=default_dtype())

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        rows = [_encode(prompt, completion, tokenizer, opened.config.vocab_size)
                for prompt, completion in zip(prompts, completions, strict=True)]
        if longest_row(rows) > opened.config.max_length:
            raise InputError(f"reward model {reference!r}: a row of {longest_row(rows)} tokens is longer than its "
                             f"context of {opened.config.max_length}; shorten the completions")
        scores = score_rows(model, variables, rows, batch_size, mesh, score_rewards) if rows else []
        return [score.rewards.item() for score in scores]

    return reward


def _encode(prompt: Any, completion: Any, tokenizer: Any, vocab_size: int) -> Row:
    record = {"prompt": prompt, "completion": completion}
    return encode_record(record, tokenizer, vocab_size=vocab_size, training=True)


def open_reward_model(reference: str) -> Any:
    """training.runs.open_model, for a reward model. Raises InputError for a language model."""
    opened = open_model(reference)
    if not opened.config.reward_head:
        raise InputError(f"model {reference!r} is a language model, which has no reward head; train one with "
                         f"scripts.reward, or give a one-label classifier")
    return opened
