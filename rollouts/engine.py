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

The host decides here, in plain numbers; what is compiled is in decoder.py. Where several processes run one model, each
makes the same calls in the same order.
"""

import dataclasses
import functools
import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from errors import InputError
from models import decoding
from models.transformer import Transformer
from rollouts import decoder
from rollouts.decoder import CHUNK, LIKELIEST, STOPS, Drawn, Rows
from rollouts.layout import sampling_mesh, weight_shardings
from rollouts.pages import Match, Pages
from rollouts.sampling import Controls
from rollouts.stops import Ends, StopFinder
from sharding.exchange import gather
from sharding.mesh import MeshConfig, make_mesh
from sharding.rules import RULES, path_name, ways

PAGE = 128
"""positions of a page"""
FEW_PAGES = 8
"""of all rows of a call, which has shapes of its own then"""
PART = 512
"""tokens of a context that are prefilled at a time; others are decoded in between"""
LOOKS = 16
"""tokens that are decoded between two looks for stop strings"""
REFILL = 16
"""decoding is interrupted for those that wait once one slot in so many is free"""
TAIL = 4
"""few rows are decoded as one slot in so many, which has shapes of its own"""
FEWEST = 8
"""rows below which decoding gets hardly faster: all weights are read for one, too"""

MEMORY_SHARE = 0.25
"""of all memory that the cache may take"""

Mask = Callable[[Sequence[int]], np.ndarray]
"""a completion's tokens so far -> [V], True for those that may come next"""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of the model."""

    tokens: Sequence[int]
    """the context"""
    max_new_tokens: int
    key: Any
    """a key of jax.random, or its data; token i is drawn with fold_in(key, i)"""
    controls: Controls = Controls()
    ends: Ends = Ends()
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """is added to the logits of these tokens"""
    mask: Mask | None = None
    """tokens that may come next, for grammars; while such a request is decoded, each token returns to the host"""
    num_likeliest: int = 0
    """log-probabilities of so many of the likeliest tokens are wanted, under softmax(logits)"""


@dataclasses.dataclass
class Output:
    """What came of a request since the last step."""

    id: int
    tokens: list[int]
    logps: list[float]
    """of each token under the distribution it was drawn from; at temperature 0, under softmax(logits)"""
    version: int
    """of the weights"""
    finish_reason: str | None = None
    """"stop" (an end token or a stop string), "length", or None where more is to come"""
    likeliest: list[dict[int, float]] = dataclasses.field(default_factory=list)
    """of each token, where asked for: token -> log-probability"""


@dataclasses.dataclass
class _Sequence:
    """A request on its way."""

    id: int
    request: Request
    key: np.ndarray
    tokens: list[int]
    """context, then what was drawn"""
    stops: StopFinder
    count: int = 0
    """tokens drawn"""
    slot: int = -1
    pages: list[int] = dataclasses.field(default_factory=list)
    cached: int = 0
    """positions that the cache has"""

    @property
    def missing(self) -> int:
        """Positions to be prefilled; the last token is read when the next one is drawn."""
        return len(self.tokens) - 1 - self.cached

    @property
    def biased(self) -> bool:
        request = self.request
        return request.controls.penalises or bool(request.logit_bias) or request.mask is not None


class Engine:
    """Answers requests; see the module. `capacity`: positions that the cache may hold, which are then taken at once;
    None: as many as it comes to. `mesh` is the training's, whose devices are laid out for sampling (layout.py),
    `tensor` ways; None: one device."""

    def __init__(self, model: Transformer, num_slots: int = 16, capacity: int | None = None, page: int = PAGE,
                 mesh: jax.sharding.Mesh | None = None, tensor: int = 0):
        mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
        self.model, self.page, self.capacity = model, page, capacity
        self.mesh = sampling_mesh(mesh, model, tensor)
        self.shares = ways(RULES["batch"], self.mesh)
        self.slots_of_share = -(-num_slots // self.shares)
        self.num_slots = self.slots_of_share * self.shares
        self.row_pages = -(-model.config.max_length // page)
        count = self.slots_of_share if capacity is None else -(-capacity // (page * self.shares))
        self._pages = [Pages(max(1, count), page) for _ in range(self.shares)]
        with jax.set_mesh(self.mesh):
            self._cache = decoder.init_cache(model, self.shares, self._pages[0].count, page)
            self._seen = decoder.init_seen(model, self.num_slots)
            self._prepare = jax.jit(functools.partial(decoding.prepare, model),
                                    out_shardings=weight_shardings(model, self.mesh))
        self._weights: Any = None
        self._version = 0
        self._ids = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}  # by slot
        self._free = [list(range(share * self.slots_of_share, (share + 1) * self.slots_of_share))
                      for share in range(self.shares)]  # heaps: who was there before changes no row of a call

    def load(self, variables: dict[str, Any], version: int = 0) -> None:
        """Decodes with these weights from now on, LoRA merged in. What is on its way goes on with its cache as it is;
        nothing else is gone on from. Raises InputError for the weights of another model."""
        wanted = jax.eval_shape(lambda key: _shapes(self.model, key), jax.random.key(0))
        problem = _difference(wanted, variables["params"])
        if problem:
            raise InputError(f"weights of another model: {problem}")
        with jax.set_mesh(self.mesh):
            self._weights, self._version = self._prepare(variables), version
        self.forget()

    def forget(self) -> None:
        """Keeps no context any more, to go on from, but those that are decoded just now."""
        for pages in self._pages:
            pages.forget_all()

    @property
    def busy(self) -> bool:
        """Whether anything that was submitted has not finished."""
        return bool(self._waiting or self._running)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache, of all devices."""
        return sum(each.nbytes for each in jax.tree.leaves(self._cache))

    def submit(self, requests: Sequence[Request]) -> list[int]:
        """Ids of the requests, in order. Raises InputError, and takes none of them, for one without tokens or that does
        not fit the model's context or the cache."""
        for request in requests:
            self._check(request)
        sequences = [_Sequence(next(self._ids), request, _key_data(request.key), list(request.tokens),
                               StopFinder(request.ends)) for request in requests]
        self._waiting.extend(sequences)
        return [sequence.id for sequence in sequences]

    def _check(self, request: Request) -> None:
        length, longest = len(request.tokens) + request.max_new_tokens, self.model.config.max_length
        both = f"a prompt of {len(request.tokens)} tokens and {request.max_new_tokens} new ones do not fit"
        vocab_size = self.model.config.vocab_size
        if not len(request.tokens):
            raise InputError("a prompt has no tokens; give at least one")
        if request.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {request.max_new_tokens}; give 1 or more")
        if length > longest:
            raise InputError(f"{both} the model's context of {longest}; shorten the prompt or lower --max-new-tokens")
        if self.capacity is not None and -(-length // self.page) > self._pages[0].count:
            raise InputError(f"{both} a cache of {self._pages[0].count * self.page} positions; give it more")
        beyond = next((token for token in request.tokens if not 0 <= token < vocab_size), None)
        if beyond is not None:
            raise InputError(f"a prompt has token {beyond}, and the model has those from 0 to {vocab_size - 1}")
        if len(request.ends.ids) > STOPS:
            raise InputError(f"{len(request.ends.ids)} end tokens are more than {STOPS}")
        if not 0 <= request.num_likeliest <= LIKELIEST:
            raise InputError(f"num_likeliest is {request.num_likeliest}; give 0 to {LIKELIEST}")

    def cancel(self, ids: Sequence[int]) -> None:
        """Drops requests; those that have finished are none any more."""
        wanted = set(ids)
        self._waiting = deque(each for each in self._waiting if each.id not in wanted)
        for sequence in [each for each in self._running.values() if each.id in wanted]:
            self._leave(sequence)

    def step(self) -> list[Output]:
        """Prefills some, decodes some tokens of those that are ready, and gives what came."""
        if self._weights is None:
            raise ValueError("load() weights first")
        with jax.set_mesh(self.mesh):
            self._admit()
            self._prefill()
            self._admit()  # who goes on from what was prefilled just now
            ready = [each for each in self._running.values() if not each.missing]
            return self._decode(ready) if ready else []

    # ------------------------------------------------------------------------------------------------ who comes in

    def _admit(self) -> None:
        """Gives slots to those that wait, in their order, as long as there are slots and pages. Who could go on from
        what is prefilled just now waits for it."""
        copies: list[tuple[int, int, int]] = []
        later: deque[_Sequence] = deque()
        reading = {tuple(each.tokens[:-1]) for each in self._running.values() if each.missing}
        while self._waiting and len(self._running) < self.num_slots:
            sequence = self._waiting.popleft()
            context = tuple(sequence.tokens[:-1])
            if context in reading:
                later.append(sequence)
            elif not self._enter(sequence, copies):
                self._waiting.appendleft(sequence)
                break
            elif sequence.missing:
                reading.add(context)
        self._waiting.extendleft(reversed(later))
        self._copy(copies)

    def _enter(self, sequence: _Sequence, copies: list[tuple[int, int, int]]) -> bool:
        """Whether there was room."""
        matches = {share: self._pages[share].match(sequence.tokens[:-1])
                   for share, free in enumerate(self._free) if free}
        share = max(matches, key=lambda share: (matches[share].length, len(self._free[share])))
        match, pages = matches[share], self._pages[share]
        wanted = -(-len(sequence.tokens) // self.page) - len(match.pages)
        held = [*match.pages, *match.copied]
        pages.share(held)
        taken = self._take(share, wanted)
        if taken is None and match.copied:  # there may be no page beside the one to copy
            pages.release(match.copied)
            match, held = Match(match.pages, (), len(match.pages) * self.page), match.pages
            taken = self._take(share, wanted)
        if taken is None:
            pages.release(held)
            return False
        copies += [(share, page, taken[0]) for page in match.copied]
        sequence.slot = heapq.heappop(self._free[share])
        sequence.pages, sequence.cached = [*match.pages, *taken], match.length
        self._running[sequence.slot] = sequence
        self._give_slot(sequence)
        return True

    def _take(self, share: int, count: int) -> list[int] | None:
        """Pages, of a larger cache if need be; None where it may not grow."""
        pages = self._pages[share]
        taken = pages.take(count)
        if taken is None and self.capacity is None:
            total = pages.count
            while total - pages.count + pages.available < count:
                total *= 2
            self._cache = decoder.grow_cache(self._cache, total)
            for each in self._pages:
                each.grow(total)
            taken = pages.take(count)
        return taken

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        if not copies:
            return
        at = np.zeros((2, self.shares, self.slots_of_share), np.int32)
        at[1] = self._pages[0].count  # past the last one: none
        for share in range(self.shares):
            mine = [copy[1:] for copy in copies if copy[0] == share]
            at[:, share, : len(mine)] = np.asarray(mine, np.int32).reshape(-1, 2).T
        self._cache = decoder.copy_pages(self._cache, *at)
        for share, source, _ in copies:
            self._pages[share].release([source])

    def _give_slot(self, sequence: _Sequence) -> None:
        """Of what penalties and biases have to know."""
        if not sequence.biased:
            return
        request, size = sequence.request, self.model.config.vocab_size
        in_prompt, count, bias = np.zeros(size, bool), np.zeros(size, np.int32), np.zeros(size, np.float32)
        in_prompt[list(request.tokens)] = True
        np.add.at(count, sequence.tokens[len(request.tokens) :], 1)
        for token, value in request.logit_bias.items():
            bias[token] = value
        if request.mask is not None:
            bias[~request.mask(sequence.tokens[len(request.tokens) :])] = -np.inf
        self._seen = decoder.admit(self._seen, np.int32(sequence.slot), in_prompt, count, bias)

    def _leave(self, sequence: _Sequence) -> None:
        """Frees a slot; what its pages hold can be gone on from."""
        pages = self._pages[sequence.slot // self.slots_of_share]
        known = min(sequence.cached, len(sequence.tokens) - 1)
        pages.remember(sequence.tokens[:known], sequence.pages)
        pages.release(sequence.pages)
        del self._running[sequence.slot]
        heapq.heappush(self._free[sequence.slot // self.slots_of_share], sequence.slot)

    # -------------------------------------------------------------------------------------------------- what is read

    def _prefill(self) -> None:
        """A part of the contexts of some; all of them where nothing can be decoded meanwhile."""
        missing = [each for each in self._running.values() if each.missing]
        some_are_ready = len(missing) < len(self._running)
        while missing:
            self._prefill_part(missing)
            missing = [] if some_are_ready else [each for each in missing if each.missing]

    def _prefill_part(self, missing: Sequence[_Sequence]) -> None:
        of_share = max(1, self.slots_of_share // REFILL)
        rows = self._in_rows(missing, of_share)
        longest = max(min(PART, sequence.missing) for sequence in rows if sequence)
        length = next(PART >> halved for halved in (4, 3, 2, 1, 0) if PART >> halved >= longest)
        tokens, positions = np.zeros((len(rows), length), np.int32), np.full((len(rows), length), -1, np.int32)
        for row, sequence in enumerate(rows):
            if sequence:
                start, count = sequence.cached, min(length, sequence.missing)
                tokens[row, :count] = sequence.tokens[start : start + count]
                positions[row, :count] = np.arange(start, start + count)
        first = not any(sequence.cached for sequence in rows if sequence)
        self._cache = decoder.prefill(self.model, self._weights, self._cache, tokens, positions, self._table(rows),
                                      first)
        for sequence in rows:
            if sequence:
                sequence.cached += min(length, sequence.missing)
                self._pages[sequence.slot // self.slots_of_share].remember(
                    sequence.tokens[: sequence.cached], sequence.pages)

    def _in_rows(self, sequences: Sequence[_Sequence], of_share: int) -> list[_Sequence | None]:
        """Rows of a call: up to `of_share` of every share of the slots, filled up with None."""
        rows: list[_Sequence | None] = []
        for share in range(self.shares):
            mine = [each for each in sequences if each.slot // self.slots_of_share == share][:of_share]
            rows += [*mine, *[None] * (of_share - len(mine))]
        return rows

    def _table(self, rows: Sequence[_Sequence | None]) -> np.ndarray:
        """Of one of two widths: few rows have many pages."""
        longest = max(len(sequence.pages) for sequence in rows if sequence)
        width = self.row_pages if longest > FEW_PAGES else min(FEW_PAGES, self.row_pages)
        table = np.zeros((len(rows), width), np.int32)
        for row, sequence in enumerate(rows):
            if sequence:
                table[row, : len(sequence.pages)] = sequence.pages
        return table

    # ------------------------------------------------------------------------------------------------- what is drawn

    def _decode(self, ready: Sequence[_Sequence]) -> list[Output]:
        ready = self._with_pages(ready)
        steps = 1 if any(each.request.mask for each in ready) else CHUNK
        steps = min(steps, LOOKS) if any(each.request.ends.strings for each in ready) else steps
        rows = self._in_rows(ready, self._rows_of_share(ready))
        self._cache, self._seen, drawn = decoder.decode(
            self.model, self._weights, self._cache, self._seen, self._arguments(rows),
            np.int32(self._patience(len(ready))), np.int32(steps))
        drawn = jax.device_get(drawn)
        return [self._output(sequence, drawn, row) for row, sequence in enumerate(rows) if sequence]

    def _with_pages(self, ready: Sequence[_Sequence]) -> list[_Sequence]:
        """Those that have pages for CHUNK tokens more. Where none are left, the youngest give up theirs and wait."""
        with_pages = []
        for sequence in sorted(ready, key=lambda each: each.id):
            while sequence.slot in self._running and self._running[sequence.slot] is sequence:
                positions = min(len(sequence.tokens) + CHUNK, len(sequence.request.tokens)
                                + sequence.request.max_new_tokens)
                wanted = -(-positions // self.page) - len(sequence.pages)
                share = sequence.slot // self.slots_of_share
                taken = self._take(share, wanted) if wanted > 0 else []
                if taken is not None:
                    sequence.pages += taken
                    with_pages.append(sequence)
                    break
                self._send_back(max((each for slot, each in self._running.items()
                                     if slot // self.slots_of_share == share), key=lambda each: each.id))
        return with_pages

    def _send_back(self, sequence: _Sequence) -> None:
        """To those that wait, with what it has drawn."""
        self._leave(sequence)
        self._waiting.appendleft(sequence)

    def _rows_of_share(self, ready: Sequence[_Sequence]) -> int:
        """Rows of each share of the slots: all, or few, so that two shapes do."""
        shares = [each.slot // self.slots_of_share for each in ready]
        few = min(self.slots_of_share, max(-(-FEWEST // self.shares), self.slots_of_share // TAIL))
        return few if max(map(shares.count, shares)) <= few else self.slots_of_share

    def _patience(self, ready: int) -> int:
        """Rows that must have ended before decoding is interrupted: to make room for who waits, to do with few rows,
        or all."""
        if self._waiting or len(self._running) > ready:
            return max(1, self.num_slots // REFILL)
        few = max(FEWEST, self.num_slots // TAIL)
        return ready - few if ready > few else ready

    def _arguments(self, rows: Sequence[_Sequence | None]) -> Rows:
        width = next(len(each.key) for each in rows if each)
        numbers = np.zeros((len(rows), 5), np.int32)
        numbers[:, 0] = self.num_slots  # no slot
        keys, stops = np.zeros((len(rows), width), np.uint32), np.full((len(rows), STOPS), -1, np.int32)
        controls, flags = [Controls()] * len(rows), np.zeros((len(rows), 2), bool)
        for row, sequence in enumerate(rows):
            if not sequence:
                continue
            request = sequence.request
            numbers[row] = (sequence.slot, sequence.tokens[-1], len(sequence.tokens) - 1, sequence.count,
                            request.max_new_tokens)
            keys[row], controls[row] = sequence.key, request.controls
            stops[row, : len(request.ends.ids)] = list(request.ends.ids)
            flags[row] = request.num_likeliest > 0, sequence.biased
        return Rows(*numbers.T, keys, self._table(rows), stops,
                    Controls(*(np.asarray(each) for each in zip(*controls))), *flags.T)

    def _output(self, sequence: _Sequence, drawn: Drawn, row: int) -> Output:
        """Takes what a sequence has drawn into account."""
        request, count = sequence.request, int(drawn.count[row]) - sequence.count
        tokens = drawn.tokens[row, :count].tolist()
        cut = next((at + 1 for at, token in enumerate(tokens) if sequence.stops.completes(token)), None)
        tokens = tokens[:cut]
        sequence.tokens += tokens
        sequence.count += len(tokens)
        sequence.cached = len(sequence.tokens) - 1
        stopped = cut is not None or bool(drawn.stopped[row])
        reason = "stop" if stopped else "length" if sequence.count >= request.max_new_tokens else None
        output = Output(sequence.id, tokens, drawn.logps[row, : len(tokens)].tolist(), self._version, reason,
                        _likeliest(drawn, row, len(tokens), request.num_likeliest))
        if reason:
            self._leave(sequence)
        elif request.mask is not None:
            self._give_slot(sequence)
        return output


def capacity_for(model: Transformer, num_slots: int, longest: int, page: int = PAGE) -> int:
    """Positions for contexts of the longest length in all slots, or as many as a share of the memory holds: then the
    youngest requests may have to wait with what they have drawn."""
    config = model.config
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * np.dtype(config.dtype).itemsize
    return min(num_slots * -(-longest // page) * page, max(longest + page, int(MEMORY_SHARE * _memory() / position)))


def _memory() -> int:
    """Bytes of all devices, or of the machines; the same number in all processes, by the smallest of their own."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    own = sum(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(gather(own)) * jax.process_count()


def _likeliest(drawn: Drawn, row: int, count: int, wanted: int) -> list[dict[int, float]]:
    return [dict(zip(drawn.likeliest[row, at, :wanted].tolist(), drawn.likeliest_logps[row, at, :wanted].tolist()))
            for at in range(count if wanted else 0)]


def _key_data(key: Any) -> np.ndarray:
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key, np.uint32)


def _shapes(model: Transformer, key: Any) -> Any:
    from flax.linen import meta

    from models.transformer import init_variables

    return meta.unbox(init_variables(model, key))["params"]


def _difference(wanted: Any, given: Any) -> str | None:
    """What is first found to differ in two trees' names and shapes."""
    one, other = ({path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                  for tree in (wanted, given))
    name = next((name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)), None)
    return name and f"{name} has the shape {other.get(name)}, and {one.get(name)} is the model's"
