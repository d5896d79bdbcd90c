"""Code that is broken on purpose is found by its check (docs/accelerators.md has the table of what was tried)."""

import jax
import jax.numpy as jnp
import pytest

from checks import paged, sampling, scorer, steps
from checks.machine import Machine
from models import attention_kernels, paged_attention, projection
from rollouts.engine import Engine

CPU = Machine("cpu", "cpu", 1, None, None, quick=True)
ONE_QUERY = paged.Case("one query", (3, 17, 40), page=16, head_dim=8)
PART = paged.Case("part of a prompt", (3, 17, 40), queries=3, page=16, window=9, head_dim=8)
SHAPE = (2, 31, 16, 65)


@pytest.fixture(autouse=True)
def compiled_anew():
    yield
    jax.clear_caches()


@pytest.mark.slow
def test_the_scorer_that_is_there_is_right():
    assert scorer.check(SHAPE, True, "bfloat16").status == "ok"


def test_a_wrong_temperature_in_the_scorers_gradient_is_found(monkeypatch):
    right = projection._to_logits
    monkeypatch.setattr(projection, "_to_logits", lambda *args: right(*args) * 1.03)
    assert scorer.check(SHAPE, False, "bfloat16").status == "wrong"


@pytest.mark.slow
def test_logits_in_bfloat16_are_found(monkeypatch):
    right = projection._logits
    monkeypatch.setattr(projection, "_logits", lambda *args: right(*args).astype(jnp.bfloat16).astype(jnp.float32))
    assert scorer.check(SHAPE, True, "bfloat16").status == "wrong"


@pytest.mark.slow
@pytest.mark.parametrize("case", [ONE_QUERY, PART])
def test_a_page_too_few_is_found(monkeypatch, case):
    right = paged_attention._pages_in_reach
    assert paged.check(CPU, "xla", case, "bfloat16").status == "ok"
    jax.clear_caches()
    monkeypatch.setattr(paged_attention, "_pages_in_reach",
                        lambda *args: (right(*args)[0], right(*args)[1] - 1))
    assert paged.check(CPU, "xla", case, "bfloat16").status == "wrong"


@pytest.mark.slow
def test_keys_of_other_weights_are_found(monkeypatch):
    monkeypatch.setattr(Engine, "forget", lambda self: None)
    assert sampling.check("float32", ()).status == "wrong"


@pytest.mark.slow
def test_a_step_that_sees_other_segments_is_found(monkeypatch):
    right = attention_kernels.visible
    monkeypatch.setattr(attention_kernels, "visible", lambda queries, keys, window: right(
        *(each.replace(segment_ids=jnp.minimum(each.segment_ids, 1)) for each in (queries, keys)), window))
    assert steps.check(CPU, "full", "adamw", "bfloat16").status == "wrong"
