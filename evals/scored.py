"""What scripts.score makes of a file: its records as rows, a line for each, and figures with intervals over all."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.pairs import read_label
from data.reading import read_record
from errors import InputError, shown
from evals.statistics import estimate, ratio
from evals.tables import in_percent, interval, number

SIDES = ("chosen", "rejected")


class Records(NamedTuple):
    """What was read, in the file's order."""

    rows: list[tuple[Any, ...]]
    """of each record: one, two of a pair, or none where it was left out"""
    labels: list[float | None]
    """true (1) or false (0) of records that have such a `label`"""
    are_texts: bool
    """whether all are plain texts, of which bytes can be counted"""
    counts: Mapping[str, int]
    """data.reading.COUNTS"""


def form_of(sources: Sequence[Any]) -> str:
    """What data.reading.Encoder calls the records, by the first one that can be read: pairs, or rows."""
    for index in range(min(len(sources[0]), 100)):
        try:
            names = sources[0][index].keys()
        except InputError:  # named when its turn comes, or left out if asked for
            continue
        return "pair" if any({f"{side}{end}" for side in SIDES} <= names for end in ("", "_tokens")) else "row"
    return "row"


def read_records(sources: Sequence[Any], encoder: Any, track: Callable[[Any], Any]) -> Records:
    """Raises InputError as read_record does, and where no row is left."""
    found = Records([], [], True, Counter())
    for source, index in track([(each, index) for each in sources for index in range(len(each))]):
        rows, events = read_record(index, source, encoder)
        record = source[index] if rows else {}
        found.rows.append(rows)
        found.labels.append(_label(record))
        found.counts.update(events)
        found = found._replace(are_texts=found.are_texts and (not rows or is_text(record)))
    if not any(found.rows):
        raise InputError(f"{sources[0].place(0)} and those after it: no row is left ({shown(dict(found.counts))}); "
                         f"look at --too-long, --bad-rows and --max-length")
    return found


def _label(record: Mapping[str, Any]) -> float | None:
    """1 or 0 of a record's `label`; None without one, and for a label of another kind."""
    try:
        return read_label(record["label"])
    except (KeyError, InputError):
        return None


def is_text(record: Mapping[str, Any]) -> bool:
    """Whether what is scored of a record is its `text`."""
    return isinstance(record.get("text"), str) and not {"tokens", "messages", "conversations"} & record.keys() and not (
        {"prompt", "completion"} <= record.keys())


def as_line(rows: Sequence[Any], scores: Sequence[Any]) -> dict[str, Any]:
    """What is written of a record."""
    if not rows:
        return {"left_out": True}
    lines = [_of_row(row, score) for row, score in zip(rows, scores, strict=True)]
    return lines[0] if len(rows) == 1 else {f"{side}_{name}": value for side, line in zip(SIDES, lines)
                                            for name, value in line.items()}


def _of_row(row: Any, score: Any) -> dict[str, Any]:
    if hasattr(score, "rewards"):
        return {"reward": score.rewards.item()}
    return {"logps": score.logps.tolist(), "entropy": score.entropy.tolist(), "loss_mask": row.loss_mask.tolist()}


def summary(records: Records, scores: Sequence[Any], tokenizer: Any) -> dict[str, Any]:
    """Name -> Estimate, over the records; `scores` are of all their rows, one after the other."""
    rows = [row for each in records.rows for row in each]
    if hasattr(scores[0], "rewards"):
        return _of_rewards(records, [score.rewards.item() for score in scores])
    pairs = len(next(filter(None, records.rows))) == 2
    logps = [float((score.logps * row.loss_mask).sum()) for row, score in zip(rows, scores, strict=True)]
    return _of_pairs(logps) if pairs else _of_texts(rows, logps, tokenizer if records.are_texts else None)


def _of_texts(rows: Sequence[Any], logps: Sequence[float], tokenizer: Any) -> dict[str, Any]:
    """Of log-probabilities of rows' targets; with a tokenizer, rows are texts."""
    loss = ratio([-logp for logp in logps], [float(row.loss_mask.sum()) for row in rows])
    found = {"loss (nats a token)": loss, "perplexity": loss._replace(
        mean=_exp(loss.mean), standard_error=math.nan, low=_exp(loss.low), high=_exp(loss.high))}
    if tokenizer is None:
        return found
    return found | {"bits per byte": ratio([-logp / math.log(2) for logp in logps],
                                           [_bytes_of(row, tokenizer) for row in rows])}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if value < math.inf else math.inf


def _bytes_of(row: Any, tokenizer: Any) -> int:
    """UTF-8 bytes that a text's targets stand for."""
    first = int(np.argmax(row.loss_mask > 0)) if row.loss_mask.any() else len(row.tokens)
    return len(tokenizer.decode(row.tokens[first:].tolist()).encode(errors="replace"))


def _of_pairs(values: Sequence[float], name: str = "log-probability") -> dict[str, Any]:
    """Of values of chosen, rejected, chosen, ...: how often the chosen one's is higher (a tie counts half), and by how
    much."""
    margins = [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]
    numbers = range(len(margins))
    right = [float(margin > 0) + 0.5 * (margin == 0) for margin in margins]
    return {f"pairs whose chosen answer has the higher {name}": estimate(right, numbers),
            f"{name} of chosen above rejected": estimate(margins, numbers)}


def _of_rewards(records: Records, rewards: Sequence[float]) -> dict[str, Any]:
    """Of pairs, of rows with labels (whose reward's sign ought to be theirs), or of rows."""
    if len(rewards) == 2 * sum(map(bool, records.rows)):
        return _of_pairs(rewards, "reward")
    labels = [label for rows, label in zip(records.rows, records.labels, strict=True) if rows]
    right = [float((reward > 0) == bool(label)) for reward, label in zip(rewards, labels) if label is not None]
    found = {"reward": estimate(rewards, range(len(rewards)))}
    return found | ({"labels that the reward's sign agrees with": estimate(right, range(len(right)))} if right else {})


def print_summary(figures: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """A line for each figure, with n and its interval; and one for rows that were cut or left out."""
    for name, of in figures.items():
        percent = in_percent(of) and ("pairs" in name or "labels" in name)
        print(f"{name}: {number(of.mean, percent)}{' %' if percent else ''}  95 % interval "
              f"{interval(of.low, of.high, percent)}  (n {of.n})")
    for name, what in (("rows_truncated", "are longer than --max-length and were cut"),
                       ("rows_dropped", "are longer than --max-length and were left out"),
                       ("rows_skipped", "cannot be read or scored and were left out")):
        if counts.get(name):
            print(f"note: {counts[name]} {what}")
