"""How many steps an epoch takes, by the rows that the streams make of its records: packed, in parts, or left out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from data.reading import read_record, rows_made
from data.streams import Streams, make_stream
from errors import InputError


def steps_per_epoch(streams: Streams, track: Callable[[Any], Any] = iter) -> float:
    """Batches in which each record of the only source is read once, the last one perhaps in part.

    Of R rows, as long as they are: R / B. Of rows packed into T tokens, cut where they are full: tokens / (B T); whole
    (first-fit): as many as the streams give until the tokens of an epoch are out. All records are read, unless each is
    one row for sure; `track` may draw a progress bar. Raises InputError for bad rows, and where none is left.
    """
    rows, tokens = _count(streams, track)
    if not rows:
        raise InputError(f"{streams.sources[0].place(0)} and those after it: no row is left; look at --too-long, "
                         f"--bad-rows and --max-length")
    if streams.packing == "none":
        return rows / streams.batch_size
    if streams.packing == "concat-then-split":
        return tokens / (streams.batch_size * streams.length)
    return _packed_steps(streams, tokens)


def _count(streams: Streams, track: Callable[[Any], Any]) -> tuple[int, int]:
    """(rows, tokens) of all records; a pair or a labelled answer is one row. Tokens are counted where they matter."""
    [source], encoder = streams.sources, streams.encoder
    if encoder.form in ("pair", "labelled") and encoder.too_long == encoder.bad_rows == "error":
        return len(source), 0
    rows = tokens = 0
    for index in track(range(len(source))):
        read, _ = read_record(index, source, encoder)
        rows += rows_made(read, encoder)
        tokens += sum(len(row.tokens) for row in read)
    return rows, tokens


def _packed_steps(streams: Streams, tokens: int) -> float:
    iterators = [iter(make_stream(streams, number)) for number in range(streams.batch_size)]
    steps, left = 0, tokens
    while True:
        given = sum(int(np.count_nonzero(next(each)["tokens_segment_ids"])) for each in iterators)
        if given >= left:
            return steps + left / given
        steps, left = steps + 1, left - given
