"""Learned rewards: a reward model, by id or path, as a reward function."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from batch import Row, ladder
from data.chat import render_answered
from data.encode import check_ids, encode_text, is_rendered, template_columns
from data.tokenizer import open_tokenizer
from errors import InputError
from models.config import ModelConfig
from models.heads import score_rewards
from rewards.contract import NotReachedError, Reward, on_device, time_left, values_or_raise
from sharding.fastest_dtype import default_dtype
from sharding.layout import Layout
from sharding.mesh import MeshConfig, make_layout
from training.evaluation import make_row_scorer
from training.runs import open_model


def load_reward_model(reference: str, layout: Layout | None = None, batch_size: int = 8,
                      chat: bool | None = None, dtype: str | None = None) -> Reward:
    """The reward model that `reference` names (run directory, or folder or Hub id of a one-label classifier).

    It sees a prompt as the policy did: messages, and strings where the policy takes them for a user's message (`chat`;
    None: where the reward model's tokenizer has a chat template), are rendered with the completion by the template;
    other strings are put together and ended with the end token. An empty completion is scored like any other; a row
    beyond the model's context or embedding is one that failed (RowErrors), and so are those that its time_left() does
    not reach: it stops between batches, and computes in the thread that asks (on_device). It is compiled once for each
    of a few lengths, and computes in `dtype` (None: the fastest here). Where `layout` spans several processes, each
    scores its own rows on its own devices.
    Raises InputError for a language model, one without a tokenizer, and where `chat` finds no chat template.
    """
    opened = open_reward_model(reference)
    tokenizer = open_tokenizer(opened.tokenizer)
    if tokenizer is None:
        raise InputError(f"reward model {reference!r} has no tokenizer; put tokenizer.json into its folder")
    if chat and not tokenizer.chat_template:
        raise InputError(f"reward model {reference!r} has no chat template, and the policy takes a prompt for a user's "
                         f"message; put a chat_template.jinja into its folder")
    chat = bool(tokenizer.chat_template) if chat is None else chat
    layout = own_layout(layout)
    dtype = dtype or default_dtype()
    model, variables = opened.load(layout, dtype=dtype, param_dtype=dtype)
    scorer = make_row_scorer(model, batch_size, layout, score_rewards, ladder(opened.config.max_length))

    @on_device
    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        for_template = template_columns(columns)
        given = [{name: values[row] for name, values in for_template.items()} for row in range(len(prompts))]
        rows = [_encode(*each, tokenizer, chat) for each in zip(prompts, completions, given, strict=True)]
        problems = [_problem(reference, row, tokenizer, opened.config) for row in rows]
        sound = [row for row, problem in zip(rows, problems) if problem is None]
        scores = iter(scorer(variables, sound, track=while_there_is_time))
        return values_or_raise([_value(next(scores)) if problem is None else problem for problem in problems])

    return reward


def own_layout(layout: Layout | None) -> Layout:
    """`layout`, by default one of all devices; of this process's devices alone where others have a part in it, which
    have other rows, and other times at which they stop."""
    layout = make_layout(MeshConfig()) if layout is None else layout
    local = set(jax.local_devices())
    own = [device for device in layout.mesh.devices.flat if device in local]
    return layout if len(own) == layout.mesh.size else make_layout(MeshConfig(), own)


def while_there_is_time(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, up to where the reward's time is over."""
    return itertools.takewhile(lambda _: time_left() > 0, batches)


def _value(scores: Any) -> float | NotReachedError:
    """Of a row's scores; None are those of a row that was not reached."""
    return NotReachedError("the reward's time was over before this row's batch") if scores is None else (
        scores.rewards.item())


def _encode(prompt: Any, completion: Any, columns: Mapping[str, Any], tokenizer: Any, chat: bool) -> Row:
    """The row that a pair's answer would be, without a mask: what is scored needs no target. `columns` are for the chat
    template."""
    if isinstance(prompt, str) and chat and not is_rendered(prompt, tokenizer):
        prompt, completion = [_message("user", prompt)], [_message("assistant", completion)]
    if isinstance(prompt, str):
        tokens = encode_text(prompt, completion, tokenizer, training=True).tokens
    else:
        tokens = tokenizer.encode(render_answered(tokenizer, [*prompt, *completion], **columns))
    return Row(np.asarray(tokens, np.int32), np.ones(len(tokens), np.float32))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _problem(reference: str, row: Row, tokenizer: Any, config: ModelConfig) -> InputError | None:
    """Why a row cannot be scored, if it cannot."""
    if len(row.tokens) > config.max_length:
        return InputError(f"reward model {reference!r}: a row of {len(row.tokens)} tokens is longer than its context "
                          f"of {config.max_length}; lower --max-new-tokens")
    try:
        check_ids(row.tokens, tokenizer, config.vocab_size)
    except InputError as error:
        return error
    return None


def open_reward_model(reference: str) -> Any:
    """training.runs.open_model, for a reward model. Raises InputError for a language model."""
    opened = open_model(reference)
    if not opened.config.reward_head:
        raise InputError(f"model {reference!r} is a language model, which has no reward head; train one with "
                         f"scripts.reward, or give a one-label classifier")
    return opened
