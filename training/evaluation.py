"""Eval metrics: the objective over rows that are never trained on."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from batch import Row, choose_lengths, in_order
from models.scoring import score
from models.transformer import Transformer
from objectives.base import combine
from sharding.layout import Layout, check_layout
from sharding.placement import Placement
from training.state import TrainState
from training.step import Objective, Prepare, Scorer, make_eval_step


def make_evaluation(model: Transformer, objective: Objective, rows: Sequence[Row], placement: Placement,
                    scorer: Scorer = score, prepare: Prepare = lambda _, batch: batch,
                    ) -> Callable[[TrainState], dict[str, float]] | None:
    """A function from a state to {"loss": ..., metric: ...}: sums over all rows, divided once; None without rows.

    Batches are as large as in training, in one piece, and `prepare` adds columns to each.
    """
    if not rows:
        return None
    placement = dataclasses.replace(placement, num_microbatches=1)
    eval_step = make_eval_step(model, objective, placement.layout, scorer)
    batches = in_order(rows, batch_size=placement.batch_size * placement.group)
    numbers = list(range(placement.batch_size))

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = [eval_step(state.variables(), prepare(state, placement.put(batch, numbers))) for batch in batches]
        total = jax.device_get(functools.reduce(combine, sums))
        means = {name: float(s / max(w, 1)) for name, (s, w) in total.metrics.items()}
        return {"loss": float(total.total / total.weight)} | means | jax.tree.map(float, total.extremes)

    return evaluate


def language_model_metrics(metrics: dict[str, float], rows: Sequence[Row],
                           num_bytes: int | None) -> dict[str, float]:
    """Adds perplexity = exp(loss), loss being nats a target, and bits_per_byte = loss * targets / (ln 2 * bytes).

    `num_bytes` are those of the text that the rows' targets stand for; None where they are no text.
    """
    metrics = metrics | {"perplexity": float(np.exp(metrics["loss"]))}
    if num_bytes:
        targets = sum(float(row.loss_mask.sum()) for row in rows)
        metrics["bits_per_byte"] = metrics["loss"] * targets / (np.log(2) * num_bytes)
    return metrics


def score_rows(model: Transformer, variables: dict[str, Any], rows: Sequence[Row], batch_size: int,
               layout: Layout, scorer: Scorer = score, track: Callable[[Any], Any] = iter) -> list[Any]:
    """Scores of each row once (make_row_scorer), padded to lengths that suit these rows. `track` may draw a progress
    bar over the batches."""
    sizes = choose_lengths((len(row.tokens) for row in rows), batch_size)
    return make_row_scorer(model, batch_size, layout, scorer, sizes)(variables, rows, track)


def make_row_scorer(model: Transformer, batch_size: int, layout: Layout, scorer: Scorer,
                    sizes: Sequence[int]) -> Callable[..., list[Any]]:
    """(variables, rows) -> scores of each row, numpy, in the order of `rows`: [T] at the row's own length, or one
    number of the row.

    Rows are batched with those of like length and padded to one of `sizes`, the last of which holds all, so that
    however many calls there are, each of those few lengths is compiled once. A call takes `track`, too (score_rows);
    where it ends before the batches do, the scores of the rows of the others are None.
    """
    check_layout(model, layout.sharding())
    everywhere = layout.sharding()  # every process reads all scores
    jitted = jax.jit(lambda variables, batch: scorer(model, variables, batch), out_shardings=everywhere)
    placement, numbers = Placement(batch_size, None, layout), list(range(batch_size))

    def score_all(variables: dict[str, Any], rows: Sequence[Row], track: Callable[[Any], Any] = iter) -> list[Any]:
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].tokens))
        scored: list[Any] = [None] * len(rows)
        batches = in_order([rows[index] for index in order], batch_size=batch_size, sizes=sizes)
        for number, batch in enumerate(track(batches)):
            scores = jax.device_get(jitted(variables, placement.put(batch, numbers)))
            for place, index in enumerate(order[number * batch_size : (number + 1) * batch_size]):
                length = len(rows[index].tokens)
                own = (each[place, :length] if each.ndim > 1 else each[place] for each in scores)
                scored[index] = type(scores)(*own)
        return scored

    return score_all
