"""Output heads that config.json ties to the embedding, and what the file has of the two.

transformers goes by the file: two that differ are not tied, and either name alone is both.
"""

import dataclasses

import numpy as np

from models.config import ModelConfig
from models.weights import EMBEDDING, HEAD, Index, Weights
from sharding.hosts import warn

_ROWS = 4096
"""rows of a head that are compared at a time"""


class Renamed:
    """Weights of which one tensor has another name."""

    def __init__(self, weights: Weights, old: str, new: str):
        self.where = weights.where
        self._weights, self._old, self._new = weights, old, new

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._new if name == self._old else name: shape for name, shape in self._weights.shapes().items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._weights.read(self._old if name == self._new else name, index)


def settle_head(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    """`config` untied where the file has a head that differs from the embedding, `weights` with an embedding where the
    file calls it the head. What is not tied stays as it is."""
    shapes = weights.shapes()
    if not config.tie_embeddings or config.reward_head or HEAD not in shapes:
        return config, weights
    if EMBEDDING not in shapes:
        return config, Renamed(weights, HEAD, EMBEDDING)
    if shapes[HEAD] == shapes[EMBEDDING] and _same(weights, shapes[HEAD][0]):
        return config, weights
    warn(f"{weights.where}: config.json ties lm_head to the embedding, but the file has two that differ: they are not "
         f"tied here, as in transformers (tie_word_embeddings: false would say so)")
    return dataclasses.replace(config, tie_embeddings=False), weights


def _same(weights: Weights, rows: int) -> bool:
    blocks = [(slice(start, min(start + _ROWS, rows)), slice(None)) for start in range(0, rows, _ROWS)]
    return all(np.array_equal(weights.read(HEAD, block), weights.read(EMBEDDING, block)) for block in blocks)
