"""Completions as micro-batches of any layout: plain rows, or rows that share their prompt in front-padded columns."""

from typing import NamedTuple

import numpy as np
from tiny import put

from batch import MicroBatch

BY_TOKEN = ("old_logps", "ref_logps", "sampler_logps")


class Sample(NamedTuple):
    """One completion; `logps` [3, C] are BY_TOKEN's."""

    prompt: np.ndarray
    completion: np.ndarray
    logps: np.ndarray
    advantage: float
    truncated: float


def make_samples(groups, seed=0):
    """Random samples of groups [(prompt's length, completions' lengths), ...]; a group's have one prompt."""
    random = np.random.default_rng(seed)
    made = []
    for prompt_length, lengths in groups:
        prompt = random.integers(0, 64, prompt_length)
        made += [Sample(prompt, random.integers(0, 64, length), -4.2 + 0.3 * random.normal(size=(3, length)),
                        random.normal(), float(random.random() < 0.3)) for length in lengths]
    return made


def micro_batch(samples, length, row_layout, layout=None, group=1):
    """The samples, None being an empty row, as rows of `length`; on the mesh where there is one, filled up by empty
    rows."""
    names = {"tokens": np.int32, "positions": np.int32, "segment_ids": np.int32} | dict.fromkeys(
        ("loss_mask", *BY_TOKEN), np.float32)
    columns = {name: np.zeros((len(samples), length), kind) for name, kind in names.items()}
    columns |= {name: np.zeros(len(samples), np.float32) for name in ("advantages", "truncated")}
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        begin = row_layout.prompt_length - len(sample.prompt) if row_layout.group_size > 1 else 0
        middle = begin + len(sample.prompt)
        stop = middle + len(sample.completion)
        columns["tokens"][row, begin:stop] = [*sample.prompt, *sample.completion]
        columns["positions"][row, begin:stop] = np.arange(stop - begin)
        columns["segment_ids"][row, begin:stop] = 1
        columns["loss_mask"][row, middle:stop] = 1
        for name, values in zip(BY_TOKEN, sample.logps, strict=True):
            columns[name][row, middle:stop] = values
        columns["advantages"][row], columns["truncated"][row] = sample.advantage, sample.truncated
    return MicroBatch(columns if layout is None else put(columns, layout, None, group), row_layout)
