"""LoRA: nothing at step 0, what it adds, where it sits, and merging."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, LORA, jitted_score, padded, random_variables, rows

from errors import InputError
from models.lora import LoRAConfig, merge
from models.scoring import score
from models.transformer import Transformer, init_variables

BATCH = padded(rows([12, 9]))


def test_fresh_adapters_change_nothing():
    variables = nn.meta.unbox(init_variables(Transformer(CONFIG, LORA), jax.random.key(0)))
    adapted = jitted_score(Transformer(CONFIG, LORA), variables, BATCH)
    base = jitted_score(Transformer(CONFIG), {"params": variables["params"]}, BATCH)
    np.testing.assert_array_equal(adapted.logps, base.logps)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(variables["lora"]))  # A is not zero


def test_the_reference_is_the_same_model_without_the_collection():
    variables = random_variables(LORA)
    model = Transformer(CONFIG, LORA)
    base = jitted_score(model, {"params": variables["params"]}, BATCH)
    plain = jitted_score(Transformer(CONFIG), {"params": variables["params"]}, BATCH)
    np.testing.assert_array_equal(base.logps, plain.logps)
    assert np.abs(jitted_score(model, variables, BATCH).logps - base.logps).max() > 0.01


@pytest.mark.parametrize("targets", [("q", "v"), ("down",), LORA.targets])
def test_merging_equals_applying(targets):
    lora = LoRAConfig(rank=4, alpha=8.0, targets=targets)
    variables = random_variables(lora)
    merged = merge(variables["params"], variables["lora"], lora.scale)
    applied = jitted_score(Transformer(CONFIG, lora), variables, BATCH)
    whole = jitted_score(Transformer(CONFIG), {"params": merged}, BATCH)
    np.testing.assert_allclose(whole.logps, applied.logps, atol=2e-5)
    layers = variables["lora"]["layers"]
    assert {name for part in layers.values() for name in part} == set(targets)


def test_the_gradient_of_applying_is_that_of_merging():
    """Merged, JAX differentiates A and B through plain products of weights."""
    variables, mask = random_variables(LORA), BATCH["loss_mask"]
    params, lora = variables["params"], variables["lora"]

    def applied(lora):
        return jnp.sum(mask * score(Transformer(CONFIG, LORA), {"params": params, "lora": lora}, BATCH).logps)

    def merged(lora):
        return jnp.sum(mask * score(Transformer(CONFIG), {"params": merge(params, lora, LORA.scale)}, BATCH).logps)

    one, other = jax.jit(jax.grad(applied))(lora), jax.jit(jax.grad(merged))(lora)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


def test_dropout_acts_in_training_only():
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.5)
    variables = random_variables(lora)
    model = Transformer(CONFIG, lora)
    keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    one, same, other = (jitted_score(model.clone(training=True), variables, BATCH, rngs=key).logps for key in keys)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(jitted_score(model, variables, BATCH, rngs=keys[0]).logps,
                                  jitted_score(model, variables, BATCH).logps)


@pytest.mark.parametrize("bad", [{"targets": ("queue",)}, {"targets": ()}, {"rank": -1}, {"dropout": 1.0}])
def test_bad_configurations_are_refused(bad):
    with pytest.raises(InputError, match="lora"):
        LoRAConfig(**{"rank": 4} | bad)
