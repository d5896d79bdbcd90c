"""The engine: what is asked of a model is answered as it comes, by continuous batching over a paged cache.

    engine = Engine(model, num_slots=16)
    engine.load(variables)
    engine.submit([Request(tokens, max_new_tokens=64, key=key)])
    while engine.busy:
        for output in engine.step():
            ...

`num_slots` requests are decoded at a time. What the cache knows of a request's context is gone on from, be it the
prompt of its group, an earlier turn or a system prompt that others have, too; the rest is prefilled, in parts, between
others' tokens. Decoding costs what the contexts are long, and the cache holds pages for what there is; nothing is
compiled for the length of a prompt or of a completion. A request's draws depend on its key alone.

The host decides here, in plain numbers: who is decoded where is in slots.py, what is compiled in decoder.py. Where
several processes run one model, each makes the same calls in the same order.
"""

import itertools
from collections import abc
from typing import Any

import jax
import numpy as np

from errors import InputError
from models.transformer import Transformer
from rollouts import decoder
from rollouts.arguments import Segment, copied_pages, decode_rows, page_table, prefill_tokens, seen_tokens, segments_of
from rollouts.decoder import CHUNK, Drawn
from rollouts.layout import DEFAULT, check_weights, num_shares, preparing, sampling_layout, weight_shapes
from rollouts.memory import PAGE, bytes_of_device, capacity_for
from rollouts.requests import Mask, Output, Request, checked
from rollouts.sequences import RequestError, Sequence
from rollouts.slots import Copy, Slots
from rollouts.stops import StopFinder
from sharding.layout import Layout
from sharding.mesh import make_layout
from sharding.settings import MeshConfig, SamplingMesh

__all__ = ["Engine", "Mask", "Output", "Request", "capacity_for", "make_engine"]

SMALL_TABLE = 8
"""pages of a row, where no row of a call has more; such calls have shapes of their own"""
SEGMENTS = (4, 16)
"""rows of a prefill, of each share of the slots: few and many, others being decoded between two calls"""
LOOKS = 16
"""tokens that are decoded between two looks for stop strings"""
REFILL = 16
"""decoding is interrupted for those that wait once one slot in so many is free"""
TAIL = 4
"""few rows are decoded as one slot in so many, which has shapes of its own"""
TAIL_ROWS = 8
"""rows below which decoding gets hardly faster: all weights are read for one, too"""
MIN_ROWS = 2
"""rows of a call on one device: a product with one row takes ten times as long as with two, in bfloat16 on a CPU"""


class Engine:
    """Answers requests; see the module.

    `capacity`: positions that the cache may hold, which are then taken at once; None: as many as it comes to. `layout`
    is the training's, whose devices are laid out anew as `sampling` says (layout.py), and `model` afterwards the model
    that has this layout; None: the model's, or one device. Raises InputError for sizes of nothing, and for a sampling
    mesh that does not fit the devices.

    A step that fails, for want of memory, say, leaves all requests waiting with what was drawn for them, and the next
    one goes on.
    """

    def __init__(self, model: Transformer, num_slots: int = 16, capacity: int | None = None, page: int = PAGE,
                 layout: Layout | None = None, sampling: SamplingMesh = DEFAULT):
        for name, size in (("num_slots", num_slots), ("capacity", 1 if capacity is None else capacity), ("page", page)):
            if not size >= 1:
                raise InputError(f"{name} is {size}; give 1 or more")
        layout = layout or model.layout or make_layout(MeshConfig(), jax.devices()[:1])
        self.layout, self.page, self.capacity = sampling_layout(layout, model, sampling), page, capacity
        self.model = model.clone(layout=self.layout)
        self.shares = self.layout.ways("batch")
        of_share = -(-num_slots // self.shares)
        self.num_slots = of_share * self.shares
        self.row_pages = -(-model.config.max_length // page)
        num_pages = of_share if capacity is None else -(-capacity // (page * self.shares))
        self._slots = Slots(self.shares, of_share, num_pages, page, grows=capacity is None)
        self._weights: Any = None
        self._version = 0
        self._ids = itertools.count()
        self._outputs: list[Output] = []  # of a step that failed, the next one gives them
        self._make_cache()

    def _make_cache(self) -> None:
        """Raises InputError where there is no memory for it."""
        try:
            self._cache = decoder.init_cache(self.model, self.shares, self._slots.num_pages, self.page)
            self._seen = decoder.init_seen(self.model, self.num_slots)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(f"a cache of {self._slots.num_pages * self.page * self.shares} positions for "
                             f"{self.num_slots} slots does not fit the memory beside the weights; lower --num-slots or "
                             f"--max-new-tokens, or split the model further (--sampling.mesh.tensor)") from None

    def load(self, variables: dict[str, Any], version: int = 0) -> None:
        """Decodes with these weights from now on, LoRA merged in. What is on its way goes on with its cache as it is;
        nothing else is gone on from. Raises InputError, and keeps the weights that it has, for those of another model.
        """
        check_weights(self.model, variables)
        model = self.model if "lora" in variables else self.model.clone(lora=None)
        self._weights, self._version = preparing(model)(variables), version
        self.forget()

    def forget(self) -> None:
        """Keeps no context any more to go on from; what is on its way goes on."""
        self._slots.forget()

    def warm_up(self, longest: int) -> None:
        """Compiles what contexts of up to `longest` tokens can need; after load(). What penalties, biases and masks
        need is compiled when the first request has them."""
        nobody = [None] * self.shares
        for width in {self._width_of(1), self._width_of(-(-longest // self.page))}:
            for count in SEGMENTS:
                self._call_prefill(nobody * count, width)
            for count in {*self._decode_rows}:
                self._call_decode(nobody * count, width, patience=1, steps=0)
        self._copy([])

    @property
    def busy(self) -> bool:
        """Whether anything that was submitted has not finished."""
        return bool(self._slots.waiting or self._slots.running or self._outputs)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache, of all devices."""
        return sum(each.nbytes for each in jax.tree.leaves(self._cache))

    def describe(self) -> str:
        """How sampling is laid out and what it takes of a device, one line."""
        weights, cache = (bytes_of_device(tree) / 2**20 for tree in (weight_shapes(self.model), self._cache))
        grows = ", which grows," if self.capacity is None else ""
        return (f"sampling on {self.layout.mesh.size} device(s), data {self.shares} tensor "
                f"{self.layout.size('tensor')}: {weights:,.1f} MiB of weights and {cache:,.1f} MiB of cache{grows} on "
                f"each, {self.num_slots} slots in all")

    def submit(self, requests: abc.Sequence[Request]) -> list[int]:
        """Ids of the requests, in order. Raises InputError, and takes none of them, for one that cannot be answered:
        without tokens, longer than the model's context or the cache, with controls that leave no distribution."""
        positions = self.model.config.max_length if self.capacity is None else self._slots.num_pages * self.page
        taken = [checked(request, self.model.config, positions) for request in requests]
        sequences = [Sequence(next(self._ids), request, list(request.tokens), StopFinder(request.ends))
                     for request in taken]
        self._slots.waiting.extend(sequences)
        return [sequence.id for sequence in sequences]

    def cancel(self, ids: abc.Sequence[int]) -> None:
        """Drops requests; ids of those that have finished, and of none, are no matter."""
        self._slots.remove(ids)

    def step(self, max_tokens: int = CHUNK, read_all: bool = True) -> list[Output]:
        """Prefills some, decodes some tokens of those that are ready, `max_tokens` at the most, and gives what came.
        Contexts are read to their ends where nothing can be decoded meanwhile; without `read_all`, one part of them
        then, too, for whoever wants to hear of others soon. Raises InputError before the first load()."""
        if self._weights is None:
            raise InputError("the engine has no weights; load() some first")
        try:
            self._advance(max_tokens, read_all)
        except BaseException:  # what was donated to a call that failed is gone
            self._restart()
            raise
        outputs, self._outputs = self._outputs, []
        return outputs

    def _restart(self) -> None:
        """All wait again, with what they have drawn; the next step has a new cache."""
        self._slots.restart()
        self._cache = self._seen = None

    def _advance(self, max_tokens: int, read_all: bool) -> None:
        if self._cache is None:
            self._make_cache()
        self._admit()
        self._prefill(read_all)
        self._admit()  # who goes on from what was prefilled just now
        ready = self._slots.with_pages(self._slots.ready(), CHUNK)
        self._grow()
        if ready:
            self._decode(ready, max_tokens)

    # ------------------------------------------------------------------------------------------------ who comes in

    def _admit(self) -> None:
        entered, copies = self._slots.admit()
        self._grow()
        if copies:
            self._copy(copies)
        for sequence in entered:
            self._tell_seen(sequence)

    def _grow(self) -> None:
        """The cache to as many pages as are given out."""
        if self._slots.num_pages > jax.tree.leaves(self._cache)[0].shape[3]:
            self._cache = decoder.grow_cache(self._cache, self._slots.num_pages)

    def _copy(self, copies: abc.Sequence[Copy]) -> None:
        pages = copied_pages(copies, self.shares, self._slots.of_share, none=self._slots.num_pages)
        self._cache = decoder.copy_pages(self._cache, *pages)

    def _tell_seen(self, sequence: Sequence) -> None:
        """Of what penalties, biases and masks have to know."""
        if not sequence.biased:
            return
        try:
            seen = seen_tokens(sequence, self.model.config.vocab_size)
        except RequestError as error:
            self._fail(sequence, error)
        else:
            self._seen = decoder.admit(self._seen, np.int32(sequence.slot), *seen)

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        """Ends a request by its own fault, with what was drawn for it since the last step."""
        output = next((each for each in self._outputs if each.id == sequence.id), None)
        if output is None:
            output = Output(sequence.id, [], [], self._version)
            self._outputs.append(output)
        output.finish_reason, output.error = "error", str(error)
        self._slots.leave(sequence)

    # -------------------------------------------------------------------------------------------------- what is read

    def _prefill(self, read_all: bool) -> None:
        """A part of the contexts of some; all of them where nothing can be decoded meanwhile."""
        unread = self._slots.unread()
        one_part = not read_all or len(unread) < len(self._slots.running)
        while unread:
            self._prefill_part(unread)
            unread = [] if one_part else self._slots.unread()

    def _prefill_part(self, unread: abc.Sequence[Sequence]) -> None:
        few, many = SEGMENTS
        segments = [list(itertools.islice(segments_of(mine), many)) for mine in self._by_share(unread)]
        rows = _in_rows(segments, many if max(map(len, segments)) > many // 2 else few)
        read = [row for row in rows if row]
        self._call_prefill(rows, self._width([row.sequence for row in read]))
        for segment in read:
            segment.sequence.cached = segment.stop
        for sequence in dict.fromkeys(segment.sequence for segment in read):
            self._slots.remember(sequence)

    def _by_share(self, sequences: abc.Sequence[Sequence]) -> list[list[Sequence]]:
        """Those of each share of the slots."""
        return [[each for each in sequences if self._slots.share_of(each) == share] for share in range(self.shares)]

    def _call_prefill(self, rows: abc.Sequence[Segment | None], width: int) -> None:
        table = page_table([row and row.sequence for row in rows], width)
        self._cache = decoder.prefill(self.model, self._weights, self._cache, *prefill_tokens(rows), table)

    def _width(self, rows: abc.Sequence[Sequence | None]) -> int:
        """Pages of a row in a call's table, one of two numbers: few rows have many pages."""
        return self._width_of(max(len(sequence.pages) for sequence in rows if sequence))

    def _width_of(self, pages: int) -> int:
        return self.row_pages if pages > SMALL_TABLE else min(SMALL_TABLE, self.row_pages)

    # ------------------------------------------------------------------------------------------------- what is drawn

    def _decode(self, ready: abc.Sequence[Sequence], max_tokens: int) -> None:
        by_share = self._by_share(ready)
        rows = _in_rows(by_share, self._rows_of_share(by_share))
        patience, steps = self._patience(len(ready)), min(max_tokens, self._steps(ready))
        drawn = jax.device_get(self._call_decode(rows, self._width(rows), patience, steps))
        for row, sequence in enumerate(rows):
            if sequence:
                self._take(sequence, drawn, row)
        if not np.isfinite(drawn.logps).all():
            self._restart()  # what is not finite would stay in pages, where others look past it by weights of 0

    def _call_decode(self, rows: abc.Sequence[Sequence | None], width: int, patience: int, steps: int) -> Drawn:
        self._cache, self._seen, drawn = decoder.decode(
            self.model, self._weights, self._cache, self._seen,
            decode_rows(rows, self.num_slots, page_table(rows, width)), np.int32(patience), np.int32(steps))
        return drawn

    def _steps(self, ready: abc.Sequence[Sequence]) -> int:
        """Tokens until the host must look."""
        if any(each.request.mask for each in ready):
            return 1
        return min(CHUNK, LOOKS) if any(each.request.ends.strings for each in ready) else CHUNK

    def _rows_of_share(self, by_share: abc.Sequence[abc.Sequence[Sequence]]) -> int:
        """Rows of each share of the slots: all, or few, so that two shapes do."""
        small, every = self._decode_rows
        return small if max(map(len, by_share)) <= small else every

    @property
    def _decode_rows(self) -> tuple[int, int]:
        """Of each share: few, and all."""
        every = self._slots.of_share
        small = min(every, max(-(-TAIL_ROWS // self.shares), every // TAIL))
        return max(MIN_ROWS, small), max(MIN_ROWS, every)

    def _patience(self, ready: int) -> int:
        """Rows that must have ended before decoding is interrupted: to make room for who waits, to do with few rows,
        or all."""
        if self._slots.waiting or len(self._slots.running) > ready:
            return max(1, self.num_slots // REFILL)
        small = max(TAIL_ROWS, self.num_slots // TAIL)
        return ready - small if ready > small else ready

    def _take(self, sequence: Sequence, drawn: Drawn, row: int) -> None:
        """Takes what a sequence has drawn into account."""
        before, error, stopped = len(sequence.tokens), None, False
        made = slice(0, int(drawn.count[row]) - sequence.count)
        try:
            stopped = self._add(sequence, drawn.tokens[row, made], drawn.logps[row, made]) or bool(drawn.stopped[row])
        except RequestError as failure:
            error = failure
        tokens, sequence.cached = sequence.tokens[before:], len(sequence.tokens) - 1
        plain = drawn.plain_logps[row, : len(tokens)].tolist() if sequence.request.num_likeliest else []
        reason = "stop" if stopped else "length" if sequence.count >= sequence.request.max_new_tokens else None
        self._outputs.append(Output(sequence.id, tokens, drawn.logps[row, : len(tokens)].tolist(), self._version,
                                    reason, self._likeliest(sequence, drawn, row, len(tokens)), plain_logps=plain))
        if error:
            self._fail(sequence, error)
        elif reason:
            self._slots.leave(sequence)
        elif sequence.request.mask is not None:
            self._tell_seen(sequence)

    def _add(self, sequence: Sequence, tokens: np.ndarray, logps: np.ndarray) -> bool:
        """Whether a stop string ended it. Raises RequestError where its own function fails, and at a token whose
        log-probability is not finite."""
        finite = int(np.cumprod(np.isfinite(logps)).sum())
        ended = sequence.add(tokens[:finite].tolist())
        if finite < len(tokens) and not ended:
            raise RequestError(f"the log-probabilities are not finite after {sequence.count} tokens: the weights, or "
                               f"what they make of this context, are not")
        return ended

    def _likeliest(self, sequence: Sequence, drawn: Drawn, row: int, count: int) -> list[dict[int, float]]:
        wanted = min(sequence.request.num_likeliest, self.model.config.vocab_size)
        return [dict(zip(drawn.likeliest[row, at, :wanted].tolist(), drawn.likeliest_logps[row, at, :wanted].tolist()))
                for at in range(count if wanted else 0)]


def make_engine(model: Transformer, num_slots: int, longest: int, layout: Layout,
                sampling: SamplingMesh = DEFAULT) -> Engine:
    """An engine with a cache for contexts of `longest` tokens in all slots, or what memory holds of it (capacity_for).
    """
    capacity = capacity_for(model, num_slots, longest, shares=num_shares(layout, model, sampling))
    return Engine(model, num_slots, capacity, layout=layout, sampling=sampling)


def _in_rows(by_share: abc.Sequence[abc.Sequence[Any]], count: int) -> list[Any]:
    """Rows of a call: up to `count` of every share of the slots, filled up with None."""
    return [row for mine in by_share for row in [*mine[:count], *[None] * (count - len(mine))]]
