"""What is kept of every episode: a row of samples/step-NNNNNN.parquet, which --data reads back as a row or a prompt."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.messages import text_of
from data.records import VERBATIM
from files import whole_file
from rollouts.episodes import Episode, Group

MESSAGE = ("role", "content")


def write_samples(run: Path, step: int, groups: Sequence[Group], trained: Sequence[Group], advantages: np.ndarray,
                  policy_logps: np.ndarray | None) -> None:
    """Writes a file that appears whole. `advantages` [N] or [N, T] and `policy_logps` [N, T], the trainer's, are of the
    episodes that are trained on, in to_batch's columns; without `policy_logps` they are null. Raises InputError where
    it cannot be written.

    The columns are to_table's.
    """
    import pyarrow.parquet as pq

    path = run / "samples" / f"step-{step:06d}.parquet"
    with whole_file(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(to_table(groups, trained, advantages, policy_logps), partial)


def to_table(groups: Sequence[Group], trained: Sequence[Group], advantages: np.ndarray,
             policy_logps: np.ndarray | None) -> Any:
    """An episode a row, group by group:

    prompt, completion        text; messages of a prompt as JSON
    messages                  of a chat and of several turns, all of it; null elsewhere
    reward, rewards/NAME      null where there is none
    failed                    rewards that had no verdict on it
    advantage                 a number, or in `advantages` one for each token; null where it was not trained on
    length, finish_reason     tokens after the prompt
    version, group, member    of the weights; which of the step's groups, and which of it
    tokens, loss_mask         of prompt and completion; true where the policy drew the token
    logps, policy_logps       of these tokens, the sampler's and the trainer's; 0 elsewhere
    NAME                      what else the prompt's row had, unless that is a name of the above
    """
    import pyarrow as pa

    rows = {id(episode): row for row, episode in enumerate(each for group in trained for each in group.episodes)}
    members = [_Member(group, number, episode, rows.get(id(episode)))
               for group in groups for number, episode in enumerate(group.episodes)]
    own = _texts(members) | _rewards(members, advantages) | _tokens(members, policy_logps)
    return pa.table(own | _prompts_columns(members, own))


class _Member(NamedTuple):
    group: Group
    number: int
    episode: Episode
    row: int | None
    """among those that are trained on"""


def _texts(members: Sequence[_Member]) -> dict[str, Any]:
    import pyarrow as pa

    return {"prompt": pa.array([_text(each.group.prompt.text) for each in members], pa.string()),
            "completion": pa.array([_text(each.episode.text) for each in members], pa.string()),
            "messages": _messages([_conversation(each.episode) for each in members]),
            "length": pa.array([len(each.episode.completion) for each in members], pa.int64()),
            "finish_reason": pa.array([each.episode.finish_reason for each in members], pa.string())}


def _rewards(members: Sequence[_Member], advantages: np.ndarray) -> dict[str, Any]:
    import pyarrow as pa

    names = dict.fromkeys(name for each in members for name in each.episode.values)
    failed = [[failure.reward for failure in each.group.failures if failure.row == each.number] for each in members]
    values = {f"rewards/{name}": pa.array([each.episode.values.get(name) for each in members], pa.float64())
              for name in names}
    if advantages.ndim > 1:
        own = {"advantages": _of_trained(members, advantages)}
    else:
        numbers = [None if each.row is None else float(advantages[each.row]) for each in members]
        own = {"advantage": pa.array(numbers, pa.float64())}
    return {"reward": pa.array([each.episode.reward for each in members], pa.float64())} | values | {
        "failed": pa.array(failed, pa.list_(pa.string()))} | own


def _tokens(members: Sequence[_Member], policy_logps: np.ndarray | None) -> dict[str, Any]:
    import pyarrow as pa

    tokens = [np.asarray(each.episode.tokens, np.int32) for each in members]
    logps = [_padded(each.episode, each.episode.logps, np.float32) for each in members]
    return {"version": pa.array([each.episode.version for each in members], pa.int64()),
            "group": pa.array([each.group.number for each in members], pa.int64()),
            "member": pa.array([each.number for each in members], pa.int64()),
            "tokens": pa.array(tokens, pa.list_(pa.int32())),
            "loss_mask": pa.array([_mask(each.episode) for each in members], pa.list_(pa.bool_())),
            "logps": pa.array(logps, pa.list_(pa.float32())),
            "policy_logps": _of_trained(members, policy_logps)}


def _text(text: Any) -> str:
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # what JSON may hold, half a pair of surrogates, is no text of a file


def _conversation(episode: Episode) -> list[dict[str, Any]] | None:
    return [*episode.opening, *episode.messages] if episode.opening else None


def _messages(conversations: Sequence[Sequence[Mapping[str, Any]] | None]) -> Any:
    """Lists of structs of strings, so that files have one type: what is no text, calls of tools, say, is JSON."""
    import pyarrow as pa

    further = sorted({key for messages in conversations for message in messages or () for key in message} - {*MESSAGE})
    plain = [messages and [{key: _text(text_of(value) if key == "content" else value)
                            for key, value in message.items() if value is not None} for message in messages]
             for messages in conversations]
    return pa.array(plain, pa.list_(pa.struct([(key, pa.string()) for key in (*MESSAGE, *further)])))


def _padded(episode: Episode, values: Sequence[Any], dtype: Any) -> np.ndarray:
    """Values of the tokens after the prompt as values of all tokens."""
    return np.concatenate([np.zeros(episode.prompt_length, dtype), np.asarray(values, dtype)])


def _mask(episode: Episode) -> np.ndarray:
    return _padded(episode, episode.sampled, bool)


def _of_trained(members: Sequence[_Member], values: np.ndarray | None) -> Any:
    """A column [N, T] as lists, 0 where the policy drew no token; null for what was not trained on, or is not known."""
    import pyarrow as pa

    lists = [None if each.row is None or values is None else np.where(
        _mask(each.episode), values[each.row, : len(each.episode.tokens)], 0).astype(np.float32) for each in members]
    return pa.array(lists, pa.list_(pa.float32()))


def _prompts_columns(members: Sequence[_Member], own: Mapping[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(name for each in members for name in each.group.prompt.columns)
    return {name: _column(name, [each.group.prompt.columns.get(name) for each in members]) for name in names
            if name not in {*own, "advantage", "advantages"} and not name.startswith("rewards/")}


def _column(name: str, values: Sequence[Any]) -> Any:
    """As Parquet has types for it; as JSON text where it has none, or where null is a value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if name not in VERBATIM:
            column = pa.array(values)
            pq.write_table(pa.table({name: column}), pa.BufferOutputStream())
            return column
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        pass
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values], pa.string())
