"""The arrays that the compiled calls take (decoder.py), made of sequences. A row without one is None."""

from collections import abc
from typing import NamedTuple

import numpy as np

from rollouts.decoder import STOPS, Rows
from rollouts.sampling import Controls
from rollouts.sequences import Sequence

KEY_WIDTH = 2
"""numbers of a key, but for those of another generator than JAX's usual one"""


SEGMENT = 32
"""tokens of a context that a row of a prefill has"""


class Segment(NamedTuple):
    """A part of a context to be read; several of one context are rows of one call, and see those before them."""

    sequence: Sequence
    start: int

    @property
    def stop(self) -> int:
        return min(self.start + SEGMENT, len(self.sequence.tokens) - 1)


def segments_of(unread: abc.Iterable[Sequence]) -> abc.Iterator[Segment]:
    """What is missing of contexts, one after the other."""
    return (Segment(sequence, start) for sequence in unread
            for start in range(sequence.cached, len(sequence.tokens) - 1, SEGMENT))


def prefill_tokens(rows: abc.Sequence[Segment | None]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and positions [R, SEGMENT] of parts of contexts; a position of -1 is none."""
    tokens, positions = np.zeros((len(rows), SEGMENT), np.int32), np.full((len(rows), SEGMENT), -1, np.int32)
    for row, segment in enumerate(rows):
        if segment:
            sequence, start, stop = *segment, segment.stop
            tokens[row, : stop - start] = sequence.tokens[start:stop]
            positions[row, : stop - start] = np.arange(start, stop)
    return tokens, positions


def page_table(rows: abc.Sequence[Sequence | None], width: int) -> np.ndarray:
    """[R, M]: the pages of each row."""
    table = np.zeros((len(rows), width), np.int32)
    for row, sequence in enumerate(rows):
        if sequence:
            table[row, : len(sequence.pages)] = sequence.pages
    return table


def decode_rows(rows: abc.Sequence[Sequence | None], num_slots: int, table: np.ndarray) -> Rows:
    """What decoding has to know of each row."""
    width = next((len(each.request.key) for each in rows if each), KEY_WIDTH)
    numbers, flags = np.zeros((len(rows), 5), np.int32), np.zeros((len(rows), 2), bool)
    numbers[:, 0] = num_slots  # no slot
    keys, stops = np.zeros((len(rows), width), np.uint32), np.full((len(rows), STOPS), -1, np.int32)
    controls = [Controls()] * len(rows)
    for row, sequence in enumerate(rows):
        if sequence:
            request = sequence.request
            numbers[row] = (sequence.slot, sequence.tokens[-1], len(sequence.tokens) - 1, sequence.count,
                            request.max_new_tokens)
            keys[row], controls[row] = request.key, request.controls
            stops[row, : len(request.ends.ids)] = request.ends.ids
            flags[row] = request.num_likeliest > 0, sequence.biased
    of_rows = Controls(*(np.asarray(each) for each in zip(*controls)))
    return Rows(*numbers.T, keys, table, stops, of_rows, *flags.T)


def seen_tokens(sequence: Sequence, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[V] each, for penalties and biases: whether the prompt has a token, how often the completion has it, and what is
    added to its logit. Raises RequestError where a mask fails."""
    in_prompt, count, bias = (np.zeros(vocab_size, dtype) for dtype in (bool, np.int32, np.float32))
    in_prompt[sequence.request.tokens] = True
    np.add.at(count, sequence.completion, 1)
    for token, value in sequence.request.logit_bias.items():
        bias[token] = value
    allowed = sequence.allowed(vocab_size)
    if allowed is not None:
        bias[~allowed] = -np.inf
    return in_prompt, count, bias


def copied_pages(copies: abc.Sequence[tuple[int, int, int]], shares: int, of_share: int, none: int) -> np.ndarray:
    """Sources and targets [2, D, A] of copies (share, source, target); a target of `none` is none."""
    pages = np.zeros((2, shares, of_share), np.int32)
    pages[1] = none
    for share in range(shares):
        mine = [copy[1:] for copy in copies if copy[0] == share]
        pages[:, share, : len(mine)] = np.asarray(mine, np.int32).reshape(-1, 2).T
    return pages
