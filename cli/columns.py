"""Which numbers of the data an objective is given, known before weights are read."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cli.command import print_once
from data.columns import SIDES, has_column
from data.encode import TEMPLATE_COLUMNS
from data.records import normalise
from errors import InputError, shown
from objectives.base import declared

USUAL = ("tokens", "positions", "segment_ids", "loss_mask", "row_length")


READ = ("tokens", "loss_mask", "messages", "prompt", "completion", "text", *TEMPLATE_COLUMNS)
READ_OF = {"pair": [f"{side}{end}" for side in SIDES for end in ("", "_tokens", "_loss_mask")], "labelled": ["label"]}
"""what rows have by themselves, and those of a form besides"""
WITH_PROMPT = {"tokens", "messages", "prompt", "text", "chosen_tokens"}
"""a row that has one of these lacks no prompt"""


class Needed(NamedTuple):
    """What an objective takes from the data, by what it declares."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """taken where the first row has them"""
    computed: tuple[str, ...] = ()
    """what the script gives by itself"""

    def found(self, sources: Sequence[Any]) -> dict[str, tuple[str, ...]]:
        """`columns` and `absent` of data.reading.Encoder. Raises InputError for a source whose rows lack one that is
        required."""
        records = [_first_record(source) for source in sources]
        for source, record in zip(sources, records, strict=True):
            missing = [name for name in self.required if record and not has_column(record, name)]
            if missing:
                raise InputError(f"{source.place(0)}: no column {missing[0]}, which the objective reads (its `needs`), "
                                 f"among {', '.join(sorted(record))}; beside the data's, this script gives "
                                 f"{', '.join(self.computed) or 'none'}")
        present = tuple(name for name in self.optional if has_column(records[0], name))
        return {"columns": self.required + present,
                "absent": tuple(name for name in self.optional if name not in present)}


NOTHING = Needed()


def needed_columns(objective: Callable[..., Any], computed: Sequence[str] = (), or_computed: Sequence[str] = (),
                   scorer: Callable[..., Any] | None = None) -> Needed:
    """What the objective declares, but for what the script computes and what the scorer gives (its attribute `gives`);
    of `or_computed`, the script computes what the data have not. Raises InputError where `needs` is no tuple of names.
    """
    needs, optional = (_names(objective, name) for name in ("needs", "optional"))
    given = {*USUAL, *computed, *or_computed, *getattr(scorer, "gives", ())}
    taken = [name for name in (*optional, *or_computed) if name not in {*USUAL, *computed}]
    return Needed(tuple(name for name in needs if name not in given),
                  tuple(name for name in dict.fromkeys(taken) if name in {*declared(objective), *optional}),
                  (*computed, *or_computed))


def tell_unread(sources: Sequence[Any], form: str, needed: Needed) -> None:
    """A line for each source whose first row has columns that nothing reads: a prompt of another name, perhaps."""
    own = [*needed.required, *needed.optional]
    read = {*READ, *READ_OF.get(form, ()), *own, *(f"{side}_{name}" for side in SIDES for name in own)}
    for source in sources:
        record = _first_record(source)
        unread = [name for name in record if name not in read]
        texts = [] if record.keys() & WITH_PROMPT else [name for name in unread if isinstance(record[name], str | list)]
        advice = f"; if one is a prompt, say so by FILE[prompt={texts[0]}]" if texts else ""
        if unread:
            print_once(f"note: {source.place(0)}: nothing reads its columns {', '.join(unread)}{advice}")


def _names(objective: Callable[..., Any], attribute: str) -> tuple[str, ...]:
    names = declared(objective, attribute)
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"the objective's `{attribute}` must be a tuple of names of columns, not {shown(names)}")
    return names


def _first_record(source: Any) -> dict[str, Any]:
    """The first row that can be read; {} where none of the first hundred can."""
    for index in itertools.islice(range(len(source)), 100):
        try:
            return normalise(source[index])
        except InputError:  # named when its turn comes, or skipped if asked for
            continue
    return {}
