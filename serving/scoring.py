"""Rows scored beside decoding, some at a time: log-probabilities of prompts that are echoed, and of /v1/score."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from batch import Row, ladder
from models.heads import score_rewards
from models.likeliest import score_likeliest
from models.scoring import score
from models.transformer import Transformer
from serving.work import ScoreRequest
from sharding.layout import Layout
from training.evaluation import make_row_scorer

AT_A_TIME = 8
"""rows, or as many as the mesh splits a batch: between two batches of them others' tokens are drawn"""


class Scorer:
    """Scores rows of a model: a reward model's rewards, or log-probabilities."""

    def __init__(self, model: Transformer, variables: dict[str, Any], layout: Layout):
        self._model, self._variables, self._layout = model, variables, layout
        self._shares = layout.ways("batch")
        self.at_a_time = -(-AT_A_TIME // self._shares) * self._shares

    def score(self, rows: Sequence[ScoreRequest]) -> list[Any]:
        """TokenScores, LikeliestScores or RewardScores of each row, numpy; up to `at_a_time` rows."""
        scored: list[Any] = [None] * len(rows)
        for likeliest in {row.likeliest for row in rows}:
            numbers = [number for number, row in enumerate(rows) if row.likeliest == likeliest]
            scorer = self._scorer(likeliest, self._shares if len(numbers) <= self._shares else self.at_a_time)
            found = scorer(self._variables, [_row(rows[number].tokens) for number in numbers])
            for number, each in zip(numbers, found, strict=True):
                scored[number] = each
        return scored

    @functools.cache  # noqa: B019 - one scorer of each kind, for as long as the server lives
    def _scorer(self, likeliest: bool, batch_size: int) -> Callable[..., list[Any]]:
        """Of few rows, or of many; the lengths that come up are compiled."""
        scorer = score_rewards if self._model.config.reward_head else score_likeliest if likeliest else score
        return make_row_scorer(self._model, batch_size, self._layout, scorer, ladder(self._model.config.max_length))


def _row(tokens: Sequence[int]) -> Row:
    return Row(np.asarray(tokens, np.int32), np.ones(len(tokens), np.float32))
