"""A broken kernel is found by its check, and the one that is there passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checks.attention import Case, check, mask
from checks.machine import Machine
from models import attention, attention_kernels
from models.places import visible

CPU = Machine("cpu", "cpu", 1, None, None, quick=True)
CASE = Case("packed, window", 24, (((0, 9), (9, 1), (10, 12)), ((0, 24),)), head_dim=8, window=5)


def one_more_back(queries, keys, window):
    return visible(queries, keys, window + 1)


def not_oneself(queries, keys, window):
    return visible(queries, keys, window) & (queries.positions[:, :, None] != keys.positions[:, None, :])


def across_segments(queries, keys, window):
    whole = [each.replace(segment_ids=jnp.minimum(each.segment_ids, 1)) for each in (queries, keys)]
    return visible(*whole, window)


@pytest.mark.slow
def test_the_kernel_that_is_there_is_right():
    assert check(CPU, "xla", CASE, "float32").status == "ok"


@pytest.mark.parametrize("broken", [one_more_back, *(pytest.param(each, marks=pytest.mark.slow) for each in (
    not_oneself, across_segments))])
def test_a_wrong_mask_is_found(monkeypatch, broken):
    monkeypatch.setattr(attention_kernels, "visible", broken)
    jax.clear_caches()
    assert check(CPU, "xla", CASE, "bfloat16").status == "wrong"


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "dtype"), [(1.02, "bfloat16"), (1.0002, "float32")])
def test_a_wrong_scale_is_found(monkeypatch, scale, dtype):
    kernel = attention_kernels.xla_attention
    monkeypatch.setattr(attention, "xla_attention", lambda q, *rest: kernel(q * jnp.asarray(scale, q.dtype), *rest))
    case = Case("packed", 96, (((0, 40), (40, 56)),))
    assert check(CPU, "xla", case, dtype).status == "wrong"


def test_the_reference_of_completions_that_share_a_prompt_sees_the_prompt_and_itself():
    seen = mask(Case("shared", 8, (((0, 8),),), kind="shared"))[0]
    np.testing.assert_array_equal(seen[5], [1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(seen[7], [1, 1, 1, 1, 0, 0, 1, 1])
