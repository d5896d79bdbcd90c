"""What a model said, for people: prompts with one answer, or with the first and the last evaluation's side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import InputError
from evals.samples import Sample
from reports.run import Evaluation, Run

ROWS = 300
"""shown of a kind"""
CHARACTERS = 4000
"""shown of a text"""
STEPS = 10
"""of online training that are looked at, evenly spaced"""


class Shown(NamedTuple):
    """One kind of samples."""

    title: str
    total: int
    """rows that there are, of which `rows` are the first ones"""
    rows: list[dict[str, Any]]
    """{"prompt": text, "answers": [{"text": text, "note": what is known of it}]}"""


def read_samples(run: Run) -> list[Shown]:
    """All kinds that the run kept."""
    found = [*_of_evaluations(run.evaluations), *_of_rollouts(run.path)]
    return [each for each in found if each.rows]


def _of_evaluations(evaluations: Mapping[str, Evaluation]) -> Iterator[Shown]:
    """Each task of the last evaluation, with the first one's answers where they are to the same questions."""
    if not evaluations:
        return
    (last, after), (first, before) = [*evaluations.items()][-1], next(iter(evaluations.items()))
    for task, samples in after.items():
        answers = {} if first == last else {(each.question, each.repeat): each for each in before.get(task, ())}
        rows = [{"prompt": cut(readable(sample.prompt)), "answers": [
            _answer(each, name) for name, each in (
                (first, answers.get((sample.question, sample.repeat))), (last, sample)) if each]}
                for sample in samples[:ROWS]]
        yield Shown(task, len(samples), rows)


def _answer(sample: Sample, name: str) -> dict[str, str]:
    values = [f"{metric} {_number(value)}" for metric, value in sample.values.items()]
    return {"text": cut(sample.completion), "note": ", ".join(filter(None, [name, *values, sample.finish_reason]))}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _of_rollouts(run: Path) -> Iterator[Shown]:
    """samples/step-*.parquet, of evenly spaced steps, in equal parts."""
    files = sorted((run / "samples").glob("step-*.parquet"))
    if not files:
        return
    places = sorted({round(each * (len(files) - 1) / (STEPS - 1)) for each in range(STEPS)})
    tables = [_read_table(files[place]) for place in places]
    rows = [row for table in tables for row in table[: ROWS // len(tables)]]
    steps = f"steps {', '.join(files[place].stem.removeprefix('step-').lstrip('0') for place in places)}"
    yield Shown(f"completions in training ({steps})", sum(map(len, tables)), rows)


def _read_table(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["prompt", "completion", "reward", "finish_reason"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable ({error}); remove it") from None
    step = path.stem.removeprefix("step-").lstrip("0")
    return [{"prompt": cut(readable(row["prompt"])),
             "answers": [{"text": cut(row["completion"]), "note": _note(step, row)}]} for row in rows]


def _note(step: str, row: Mapping[str, Any]) -> str:
    return f"step {step}, reward {_number(row['reward'])}, {row['finish_reason']}"


def readable(prompt: str) -> str:
    """A prompt; where it is JSON of messages, these as a person reads them."""
    try:
        messages = json.loads(prompt)
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    except (ValueError, TypeError, KeyError):
        return prompt


def cut(text: Any) -> str:
    """A text, or its beginning and how long it is; half a surrogate pair, which no file holds, by its escape."""
    text = str(text).encode(errors="backslashreplace").decode()
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ... ({len(text):,} characters)"


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of all runs, as page.js shows them."""
    return [{"title": f"{run.name}: {each.title}" if len(runs) > 1 else each.title, "total": each.total,
             "rows": each.rows} for run in runs for each in read_samples(run)]
