"""Embeddings of rows, [N, D], on disk: the mean of a model's last hidden states, or what an encoder makes of texts."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batch import Row as TokenRow
from data.specs import load_function
from errors import InputError
from files import writing

BLOCK = 256
"""texts that are embedded together"""
Encoder = Callable[[Sequence[str]], Any]
"""texts -> [N, D]"""


def make_encoder(model: str | None, encoder: str | None, max_tokens: int, batch_size: int = 8) -> Encoder:
    """The model's own embeddings of each text's first `max_tokens` tokens, or `encoder`, package.module:function."""
    if (model is None) == (encoder is None):
        raise InputError("give model, whose hidden states are the embeddings, or encoder, package.module:function")
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it takes 1 or more")
    return load_function(encoder) if model is None else ModelEncoder(model, max_tokens, batch_size)


def embed(texts: Iterable[str], encoder: Encoder, path: Path) -> np.ndarray:
    """Unit vectors, float32 [N, D], in a file: each text's embedding less the mean of all, over its length.

    Hidden states all point about one way, which tells nothing of a text (Mu and Viswanath 2018, arXiv:1702.01417); less
    the mean, unlike texts are about at right angles.
    """
    with path.open("wb") as file:
        width = 0
        for block in _blocks(iter(texts)):
            vectors = np.asarray(encoder(block), np.float32)
            if vectors.ndim != 2 or len(vectors) != len(block) or not np.isfinite(vectors).all():
                raise InputError(f"the encoder gave numbers of shape {list(vectors.shape)} for {len(block)} texts, or "
                                 f"some that are not finite; it must give [texts, width]")
            width = vectors.shape[1]
            with writing(path):
                vectors.tofile(file)
    found = np.memmap(path, np.float32, "r+").reshape(-1, width) if width else np.zeros((0, 1), np.float32)
    return _centre(found)


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    while block := list(itertools.islice(texts, BLOCK)):
        yield block


def _centre(vectors: np.ndarray) -> np.ndarray:
    mean = np.mean(vectors, axis=0, dtype=np.float64).astype(np.float32) if len(vectors) > 1 else 0.0
    for start in range(0, len(vectors), 4096):
        block = vectors[start : start + 4096] - mean
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        vectors[start : start + 4096] = block / np.where(norms > 0, norms, 1.0)
    return vectors


class MeanHidden(NamedTuple):
    """[B, 1, D]"""

    vector: Any


class ModelEncoder:
    """Texts by a language model, which is loaded when it is first asked."""

    def __init__(self, reference: str, max_tokens: int, batch_size: int):
        from data.tokenizer import open_tokenizer
        from training.runs import open_policy

        self._opened, self._batch_size = open_policy(reference), batch_size
        self._max_tokens = min(max_tokens, self._opened.config.max_length)
        self._tokenizer = open_tokenizer(self._opened.tokenizer)
        if self._tokenizer is None:
            raise InputError(f"model {reference!r} has no tokenizer; put tokenizer.json into its folder")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.asarray(self._tokenizer.encode(text)[: self._max_tokens] or [self._tokenizer.eos_id], np.int32)
                for text in texts]
        found = self._embed([TokenRow(tokens, np.ones(len(tokens), np.float32)) for tokens in rows])
        return np.concatenate([each.vector for each in found])

    @functools.cached_property
    def _embed(self) -> Callable[[Sequence[TokenRow]], list[MeanHidden]]:
        from batch import ladder
        from sharding.fastest_dtype import default_dtype
        from sharding.mesh import MeshConfig, make_layout
        from training.evaluation import make_row_scorer

        layout = make_layout(MeshConfig())
        model, variables = self._opened.load(layout, dtype=default_dtype(), param_dtype=default_dtype())
        lengths = ladder(self._max_tokens)
        return functools.partial(make_row_scorer(model, self._batch_size, layout, mean_hidden, lengths), variables)


def mean_hidden(model: Any, variables: Any, batch: Any) -> MeanHidden:
    """The mean over a row's tokens of the last hidden states, float32."""
    import jax.numpy as jnp

    hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])  # [B, T, D]
    inside = (batch["segment_ids"] > 0).astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * inside, axis=1, keepdims=True)
    return MeanHidden(total / jnp.maximum(1.0, jnp.sum(inside, axis=1, keepdims=True)))
