"""Completions that share their prompt's computation are scored as each is alone: values, gradients, meshes."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, LORA, jitted_score, put, random_variables, variables_on

from models import attention
from models.scoring import score, score_completions
from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout

WIDTH, GROUP = 8, 3
MODEL = Transformer(CONFIG)
TARGETS = ("logps", "entropy", "log_z", "log_collision")


def make_batch(prompt_lengths=(8, 3, 5), completion_lengths=((4, 9, 1), (2, 2, 9), (6, 3, 5)), width=9):
    random = np.random.default_rng(0)
    names = {"tokens": np.int32, "positions": np.int32, "segment_ids": np.int32, "loss_mask": np.float32}
    count = GROUP * len(prompt_lengths)
    batch = {name: np.zeros((count, WIDTH + width), kind) for name, kind in names.items()}
    for group, (length, completions) in enumerate(zip(prompt_lengths, completion_lengths, strict=True)):
        prompt = random.integers(0, 64, length)
        for member, completion in enumerate(completions):
            row, start, stop = group * GROUP + member, WIDTH - length, WIDTH + completion
            batch["tokens"][row, start:stop] = [*prompt, *random.integers(0, 64, completion)]
            batch["positions"][row, start:stop] = np.arange(length + completion)
            batch["segment_ids"][row, start:stop] = 1
            batch["loss_mask"][row, WIDTH:stop] = 1
    return jax.tree.map(jnp.asarray, batch)


def shared(model, variables, batch, temperature=1.0):
    return score_completions(model, variables, batch, GROUP, WIDTH, temperature)


def summed(scorer, model, variables, batch):
    """A number that every score has a say in."""
    scores, mask = scorer(model, variables, batch), batch["loss_mask"]
    factors = jnp.sin(jnp.arange(mask.size)).reshape(mask.shape) * mask
    return sum(jnp.sum(factors * getattr(scores, name)) for name in TARGETS)


@pytest.mark.parametrize("window", [None, 4])
def test_scores_are_those_of_each_row_alone(window):
    model, batch = Transformer(dataclasses.replace(CONFIG, sliding_window=window)), make_batch()
    variables = random_variables()
    together = jax.jit(shared, static_argnums=0)(model, variables, batch)
    alone = jitted_score(model, variables, batch)
    for name in TARGETS:
        one, other = (np.asarray(getattr(scores, name) * batch["loss_mask"]) for scores in (together, alone))
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)
        assert np.any(one)
    outside = np.asarray(together.logps)[np.asarray(batch["loss_mask"]) == 0]
    assert not outside.any()


def test_any_row_may_be_empty():
    """The first of its group, which has the prompt no less than the others, and a whole group."""
    batch, variables = make_batch(), random_variables()
    kept = np.isin(np.arange(3 * GROUP), [0, 4, 6, 7, 8], invert=True)
    batch = {name: column * kept[:, None] for name, column in batch.items()}
    together, alone = jax.jit(shared, static_argnums=0)(MODEL, variables, batch), jitted_score(MODEL, variables, batch)
    np.testing.assert_allclose(together.logps, alone.logps * batch["loss_mask"], atol=1e-5)


def test_the_temperature_divides_logits():
    model, variables, batch = Transformer(CONFIG), random_variables(), make_batch()
    one = shared(model, variables, batch, 0.7).logps * batch["loss_mask"]
    np.testing.assert_allclose(one, score(model, variables, batch, 0.7).logps * batch["loss_mask"], atol=2e-5)


@pytest.mark.parametrize("lora", [pytest.param(None, id="full", marks=pytest.mark.slow), pytest.param(LORA, id="lora")])
def test_gradients_are_those_of_each_row_alone(lora):
    model, variables, batch = Transformer(CONFIG, lora), random_variables(lora), make_batch()
    one, other = (jax.jit(jax.grad(lambda variables, scorer=scorer: summed(scorer, model, variables, batch)))(variables)
                  for scorer in (shared, score))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.linalg.norm(a - b) <= 2e-5 * max(np.linalg.norm(b), 1e-3)


def test_meshes_and_groups_that_fill_up():
    model, batch, layout = Transformer(CONFIG), make_batch(), make_layout(MeshConfig(2, 2, 2))
    alone = shared(model, random_variables(), batch).logps
    laid = put(batch, layout, group=GROUP)
    spread = jax.jit(shared, static_argnums=0)(model.clone(layout=layout), variables_on(layout), laid).logps
    assert spread.shape[0] == 4 * GROUP
    np.testing.assert_allclose(jax.device_get(spread)[: len(alone)], alone, atol=2e-5)


def test_kernels_that_take_whole_rows_only():
    """What cudnn and flash are given: the rows that are each completion behind its prompt, by XLA here."""
    model, variables, batch = Transformer(CONFIG), random_variables(), make_batch()
    whole = mock.patch.object(attention, "_choose_kernel", return_value="flash")
    with whole, mock.patch.object(attention, "flash_attention", attention.xla_attention):
        together = shared(model, variables, batch)
    np.testing.assert_allclose(together.logps, shared(model, variables, batch).logps, atol=2e-5)
