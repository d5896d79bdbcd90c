"""One answer to one question, and the samples_TASK.jsonl that holds a task's, by lm-eval's conventions."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from errors import InputError
from files import whole_file


@dataclasses.dataclass
class Sample:
    """One answer to one question."""

    task: str
    question: str
    """a stable id, of the document and the prompt: equal in two evaluations that ask the same in the same words"""
    family: str
    """questions that hang together, a passage's or a template's, have one; the question's id where there is none"""
    repeat: int
    """0 to K - 1, of K answers to one question"""
    prompt: str
    completion: str
    target: Any
    values: dict[str, float | None]
    """by metric, lm-eval's "metric,filter" or a reward's name; None where the grader failed"""
    finish_reason: str
    """stop, length (cut at the limit), error, or "" where nothing was generated (log-likelihoods)"""
    doc: dict[str, Any] | None = None
    """the data's row"""
    context_tokens: int = 0
    truncated_context: bool = False
    answer: str | None = None
    """what was taken out of the completion to be judged, where that is known; maj@k votes on it"""

    @property
    def failed(self) -> bool:
        """Whether it has no verdict at all."""
        return self.finish_reason == "error" or all(value is None for value in self.values.values())


OWN = tuple(field.name for field in dataclasses.fields(Sample) if field.name not in ("completion", "doc", "target"))
"""fields that are columns by their own names"""


def file_name(task: str, prefix: str = "samples_", suffix: str = ".jsonl") -> str:
    """samples_TASK.jsonl, with what is no letter, digit or underscore as an underscore, as lm-eval has it. The name of
    a task that is no plain word (of a file, say, or with arguments) ends in a digest, so that no two have one file."""
    plain = re.sub(r"[^0-9A-Za-z_]", "_", task)
    digest = "" if re.fullmatch(r"[0-9A-Za-z_]{1,100}", task) else f"_{hashlib.sha256(task.encode()).hexdigest()[:8]}"
    return f"{prefix}{plain[:100]}{digest}{suffix}"


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """A file of one task's samples, which appears whole. Raises InputError where it cannot be written."""
    escaped = "backslashreplace"  # half a pair of surrogates, which is JSON's own escape for it
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors=escaped) as file:
        for row in to_rows(samples):
            print(json.dumps(row, ensure_ascii=False, default=_plain), file=file)


def read_samples(path: Path) -> list[Sample]:
    """What write_samples wrote. Raises InputError, naming file and line, for anything else."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            return list(from_rows(_parsed(path, file)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); scripts.evaluate --output-dir leaves such files"
                         ) from None


def to_rows(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """A row for each filter of each sample: lm-eval's columns, where its readers look for them, and the sample's own.

    doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics and a column for each metric are lm-eval's.
    """
    numbers: dict[str, int] = {}
    for sample in samples:
        number = numbers.setdefault(sample.question, len(numbers))
        values = {name: _finite(value) for name, value in sample.values.items()}
        own = {name: getattr(sample, name) for name in OWN} | {"values": values}
        for name, metrics in _by_filter(values).items():
            yield {"doc_id": number, "doc": sample.doc, "target": sample.target,
                   "arguments": {"gen_args_0": {"arg_0": sample.prompt}}, "resps": [[sample.completion]],
                   "filtered_resps": [sample.completion if sample.answer is None else sample.answer],
                   "filter": name, "metrics": list(metrics), **metrics, **own}


def from_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """The samples of to_rows, each once."""
    last: tuple[str, int] | None = None
    for row in rows:
        if (row["question"], row["repeat"]) != last:
            last = row["question"], row["repeat"]
            yield Sample(**{name: row[name] for name in OWN}, completion=row["resps"][0][0], doc=row["doc"],
                         target=row["target"])


def _by_filter(values: dict[str, float | None]) -> dict[str, dict[str, float | None]]:
    """Values by "metric,filter" as filter -> metric -> value; the filter of a metric without one is lm-eval's none."""
    filters: dict[str, dict[str, float | None]] = {}
    for name, value in values.items():
        metric, _, of = name.partition(",")
        filters.setdefault(of or "none", {})[metric] = value
    return filters or {"none": {}}


def _parsed(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    needed = {*OWN, "resps", "doc", "target"}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            missing = needed - row.keys()
            sound = missing or _is_sound(row)
        except (ValueError, AttributeError, LookupError, TypeError):
            sound = False
        if not sound:
            raise InputError(f"{path}, line {number}: no answer that was judged; evaluate again")
        if missing:
            raise InputError(f"{path}, line {number}: no {sorted(missing)[0]}, so it is no file of scripts.evaluate; "
                             f"give a folder that it wrote")
        yield row


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether what figures are made of is of its types. Raises what odd ones raise."""
    texts = row["task"], row["question"], row["family"], row["finish_reason"], row["resps"][0][0]
    return all(isinstance(text, str) for text in texts) and all(
        value is None or isinstance(value, int | float) for value in row["values"].values())


def _finite(value: float | None) -> float | None:
    """JSON has no word for NaN and infinity: what is none has no verdict."""
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """A document's values that JSON has no types for: numbers and arrays of numpy as Python's, others as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
