"""The reference's scores of a whole data set, computed once and kept in the run directory."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from batch import Row
from data.reading import Encoder, read_all
from data.records import JsonlSource
from errors import InputError
from files import whole_lines
from models.scoring import TokenScores
from models.transformer import Transformer
from sharding.layout import Layout
from training.evaluation import score_rows
from training.progress import track


def keep_reference(sources: Sequence[Any], encoder: Encoder, folder: Path, model: Transformer,
                   variables: dict[str, Any], batch_size: int, layout: Layout) -> list[JsonlSource]:
    """Each source's pairs as token ids beside the reference's log-probabilities, in FOLDER-NUMBER.jsonl; these opened.

    A file is written once and whole; what is there already is taken. Raises InputError as reading the pairs does, and
    where there are several processes.
    """
    if jax.process_count() > 1:
        raise InputError("--keep-reference is for one process; leave it out, and each step scores its own pairs")
    files = [folder.with_name(f"{folder.name}-{number}.jsonl") for number in range(len(sources))]
    for source, file in zip(sources, files, strict=True):
        if not file.exists():
            rows, _ = read_all([source], encoder)
            scores = score_rows(model, variables, rows, batch_size, layout,
                                track=functools.partial(track, what="reference"))
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_lines(file) as write:
                for pair in zip(rows[0::2], rows[1::2], scores[0::2], scores[1::2], strict=True):
                    write(_scored_pair(*pair))
    return [JsonlSource(file) for file in files]


def _scored_pair(chosen: Row, rejected: Row, *scores: TokenScores) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for side, row, scored in zip(("chosen", "rejected"), (chosen, rejected), scores, strict=True):
        record |= {f"{side}_tokens": row.tokens.tolist(), f"{side}_loss_mask": row.loss_mask.tolist(),
                   f"{side}_ref_logps": scored.logps.tolist()}
        record |= {f"{side}_{name}": np.asarray(value).tolist() for name, value in row.extra.items()
                   if name != "ref_logps"}
    return record
