"""Training data as streams: row r of every batch is a stream of its own, read wherever that row is needed.

The rows of all sources, mixed, shuffled and repeated, are one global sequence g = 0, 1, 2, ... Of B streams, stream r
takes r, r + B, r + 2B, ... and packs or sorts what it takes by itself. So what row r of step s holds depends on seed
and B alone, never on how many hosts or workers share the reading, and the position in the data is B small states, one
a stream, that any number of hosts can go on from.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from data.reading import COUNTS, Encoder, join_columns, none_trainable, read_record
from data.sources import Source

WINDOW = 16
"""rows of a stream that are sorted by length at a time"""

SHUFFLED_TOKENS = 65_536
"""of a stream that is concatenated and split: the rows that are shuffled at a time, in tokens; less in a small epoch"""

PACKING_BINS = 8
"""packed rows that a stream keeps open at a time (first-fit)"""

Packing = Literal["none", "first-fit", "concat-then-split"]


@dataclasses.dataclass(frozen=True)
class Streams:
    """What the streams of a run are made of; enough to make any of them anywhere."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    encoder: Encoder
    batch_size: int
    length: int
    """tokens of a packed row, and of the longest of others"""
    packing: Packing
    seed: int
    row_tokens: float = 0.0
    """tokens of a row of a batch, before packing, on average over the records that were read to check them"""
    record_rows: float = 1.0
    """rows that a record becomes, on average over these: none where it is left out, several where its turns are rows"""
    lengths: tuple[int, ...] = ()
    """that rows which are not packed are padded to; by default a ladder"""


def _read(index: int, source: Source, encoder: Encoder, packed: bool) -> tuple[dict[str, np.ndarray], ...]:
    """What a record becomes: one row, or the rows of its turns, one after the other; several rows that belong together
    are one here. Without any, one of no tokens, for its counts."""
    rows, events = read_record(index, source, encoder)
    rows = tuple(row.spread() for row in rows) if packed else rows
    if encoder.form != "turns" or len(rows) < 2:
        return (join_columns(rows, events),)
    return tuple(join_columns([row], {} if place else events) for place, row in enumerate(rows))


def make_stream(streams: Streams, number: int) -> grain.IterDataset:
    """Stream `number`: endless rows, packed or in windows of like length."""
    parts = [grain.MapDataset.range(len(source)).seed(streams.seed + place).shuffle().repeat()
             .map(functools.partial(_read, source=source, encoder=streams.encoder, packed=streams.packing != "none"))
             for place, source in enumerate(streams.sources)]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=streams.weights)
    taken = mixed[number :: streams.batch_size]
    kept = _Kept(taken.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)), streams, number)
    if streams.packing == "none":
        return _Windows(kept, functools.partial(_sorted_window, streams=streams))
    lengths = dict.fromkeys(("tokens", "loss_mask", "counts", "epoch_end", *streams.encoder.columns), streams.length)
    if streams.packing == "first-fit":
        return grain.experimental.FirstFitPackIterDataset(kept, length_struct=lengths, num_packing_bins=PACKING_BINS,
                                                          seed=streams.seed)
    split = grain.experimental.ConcatThenSplitIterDataset(kept, length_struct=lengths)
    return _Windows(split, functools.partial(_shuffled_window, streams=streams, number=number))


class _Kept(grain.IterDataset):
    """The rows of records, one by one; passes over records that are left out, and the next row kept carries their
    counts. `epoch_end` [T] is 1 at the last token of the last row that the stream takes from an epoch of its only
    source."""

    def __init__(self, parent: grain.IterDataset, streams: Streams, number: int):
        super().__init__(parent)
        self.limit, self.number, self.batch_size = sum(map(len, streams.sources)), number, streams.batch_size
        self.epoch = _epoch(streams)

    def __iter__(self) -> grain.DatasetIterator:
        return _KeptIterator(iter(self._parent), self)


def _epoch(streams: Streams) -> int:
    """Rows of an epoch; a mixture has none."""
    return len(streams.sources[0]) if len(streams.sources) == 1 else sys.maxsize


class _KeptIterator(grain.DatasetIterator):
    """The state is the parent's and the number of the next record; between the rows of a record, those before it, and
    how many of its rows were taken."""

    def __init__(self, parent: grain.DatasetIterator, plan: _Kept):
        super().__init__(parent)
        self._plan, self._next = plan, plan.number
        self._rows: list[dict[str, np.ndarray]] = []
        self._start, self._taken = None, 0

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._rows:
            self._start, self._taken = self.get_state(), 0
            self._rows = self._read()
        self._taken += 1
        return self._rows.pop(0)

    def _read(self) -> list[dict[str, np.ndarray]]:
        """The rows of the next record that has any."""
        counts, plan = np.zeros(len(COUNTS), np.int32), self._plan
        for _ in range(plan.limit):
            rows, number = next(self._parent), self._next
            self._next += plan.batch_size
            counts += rows[0]["counts"][0]
            if len(rows[0]["tokens"]):
                rows[0]["counts"][0] = counts
                for row in rows:
                    row["epoch_end"] = np.zeros(len(row["tokens"]), np.int32)
                rows[-1]["epoch_end"][-1] = number // plan.epoch != self._next // plan.epoch
                return list(rows)
        raise none_trainable(plan.limit, dict(zip(COUNTS, counts)))

    def get_state(self) -> Any:
        if self._rows:
            return self._start | {"taken": self._taken}
        return {"parent": self._parent.get_state(), "next": self._next}

    def set_state(self, state: Any) -> None:
        self._parent.set_state(state["parent"])
        self._next, self._rows = state["next"], []
        for _ in range(state.get("taken", 0)):
            next(self)


class _Windows(grain.IterDataset):
    """Rows in windows, each in an order of its own: `read` takes the parent's iterator and the number of rows before
    the window, and gives its rows."""

    def __init__(self, parent: grain.IterDataset, read: Callable[[grain.DatasetIterator, int], list[Any]]):
        super().__init__(parent)
        self.read = read

    def __iter__(self) -> grain.DatasetIterator:
        return _WindowsIterator(iter(self._parent), self.read)


class _WindowsIterator(grain.DatasetIterator):
    """The state is the parent's at the window's start, the number of rows before it, and of those taken from it."""

    def __init__(self, parent: grain.DatasetIterator, read: Callable[[grain.DatasetIterator, int], list[Any]]):
        super().__init__(parent)
        self._read, self._first, self._taken = read, 0, 0
        self._start, self._rows = parent.get_state(), None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._rows is None:
            self._rows = self._read(self._parent, self._first)
        row = self._rows[self._taken]
        self._taken += 1
        if self._taken == len(self._rows):
            self._first, self._taken, self._rows = self._first + len(self._rows), 0, None
            self._start = self._parent.get_state()
        return row

    def get_state(self) -> Any:
        return {"parent": self._start, "first": self._first, "taken": self._taken}

    def set_state(self, state: Any) -> None:
        self._parent.set_state(state["parent"])
        self._start, self._first, self._taken, self._rows = state["parent"], state["first"], state["taken"], None


def _sorted_window(parent: grain.DatasetIterator, first: int, streams: Streams) -> list[Any]:
    """WINDOW rows, longest first, their steps then shuffled alike in all streams.

    The i-th longest of a window is about as long in every stream, so the rows of a batch need little padding, and no
    stream had to ask another. A window ends where an epoch does.
    """
    rows = [next(parent) for _ in range(window_size(first, _epoch(streams), streams.batch_size))]
    rows.sort(key=lambda row: -np.max(row.get("lengths", len(row["tokens"]))))
    return _permuted(rows, [streams.seed, first])


def _shuffled_window(parent: grain.DatasetIterator, first: int, streams: Streams, number: int) -> list[Any]:
    """SHUFFLED_TOKENS, or up to the end of an epoch, as packed rows; the streams are shuffled each in its own way.

    Unshuffled, a long text would fill the same row of many successive batches, which then teach little that is new.
    """
    rows = [next(parent)]
    while len(rows) * streams.length < SHUFFLED_TOKENS and not rows[-1]["epoch_end"].any():
        rows.append(next(parent))
    return _permuted(rows, [streams.seed, first, number])


def _permuted(rows: list[Any], seed: list[int]) -> list[Any]:
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]


def window_size(first: int, epoch: int, batch_size: int) -> int:
    """Steps of the window that begins at step `first`: WINDOW, or fewer so that it ends with the epoch of its rows."""
    end = -(-((first * batch_size) // epoch + 1) * epoch // batch_size)  # the step at which the epoch is over
    return min(WINDOW, end - first)


class _Group(grain.IterDataset):
    """Some of the streams, one step at a time: (their rows, their states after it)."""

    def __init__(self, streams: Streams, numbers: Sequence[int], states: Sequence[Any] | None):
        super().__init__()
        self.streams, self.numbers, self.states = streams, numbers, states

    def __iter__(self) -> grain.DatasetIterator:
        return _GroupIterator(self)


class _GroupIterator(grain.DatasetIterator):
    def __init__(self, group: _Group):
        super().__init__()
        self._iterators = [iter(make_stream(group.streams, number)) for number in group.numbers]
        if group.states is not None:
            for iterator, state in zip(self._iterators, group.states, strict=True):
                iterator.set_state(_as_tuples(state))
        self._step = 0

    def __next__(self) -> tuple[list[dict[str, np.ndarray]], list[Any]]:
        self._step += 1
        return [next(each) for each in self._iterators], [each.get_state() for each in self._iterators]

    def get_state(self) -> Any:
        return self._step  # asked for by the prefetching process only; a run's position is in what __next__ gives

    def set_state(self, state: Any) -> None:
        raise NotImplementedError("a group of streams starts at the states it is made with")


def _as_tuples(state: Any) -> Any:
    """Lists inside a state as tuples again: JSON has no tuples, and concat-then-split compares with one."""
    if isinstance(state, dict):
        return {name: _as_tuples(value) for name, value in state.items()}
    return tuple(state) if isinstance(state, list) else state


def _in_a_process(group: _Group) -> grain.IterDataset:
    """The group read by a process of its own, four steps ahead; its rows come through a pipe, since the shared memory
    that Grain would put each small array in costs more than it saves, and outlives a killed run."""
    through_pipe = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    piped = grain.experimental.WithOptionsIterDataset(group, through_pipe)
    return piped.mp_prefetch(grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=4),
                             worker_init_fn=_live_with_the_parent)


def _live_with_the_parent(*_: int) -> None:
    """In a worker: it ends when the training process is gone, killed ones too, and leaves signals that a scheduler or a
    terminal sends to the whole group (SIGTERM, SIGINT) to that process, which closes it."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class StreamReader:
    """Steps of the streams `numbers`: `next` gives their rows; `states` is where each stands after that step.

    `workers` processes read ahead, each its share of the streams; with 0, this process reads. `start` is the states
    to go on from.
    """

    def __init__(self, streams: Streams, numbers: Sequence[int], workers: int = 0, start: Sequence[Any] | None = None):
        shares = [list(range(len(numbers)))[worker::workers] for worker in range(workers)] or [range(len(numbers))]
        self._shares = [share for share in shares if share]
        self._numbers = list(numbers)
        self.states = list(start) if start is not None else [None] * len(self._numbers)
        self._readers = []
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for absl flags, which nobody parses here
        for share in self._shares:
            group = _Group(streams, [self._numbers[i] for i in share], start and [start[i] for i in share])
            self._readers.append(iter(_in_a_process(group) if workers else group))

    def __next__(self) -> list[dict[str, np.ndarray]]:
        rows: list[Any] = [None] * len(self._numbers)
        for share, reader in zip(self._shares, self._readers, strict=True):
            read, states = next(reader)
            for place, row, state in zip(share, read, states, strict=True):
                rows[place], self.states[place] = row, state
        return rows

    def close(self) -> None:
        """Ends the workers; without it Python's shutdown would do so noisily."""
        for reader in self._readers:
            reader.close()
