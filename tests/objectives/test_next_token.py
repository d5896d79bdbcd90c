"""Next-token loss with z-loss: against all logits at once, and the same however rows are split, padded or packed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, one_device, packed, padded, random_variables, rows

from models.scoring import score
from models.transformer import Transformer, output_kernel
from objectives.next_token import next_token
from sharding.mesh import MeshConfig, make_layout

MODEL = Transformer(CONFIG)
SOME = rows([9, 14, 5, 20])
WITH_Z = functools.partial(next_token, z_loss=0.1)


@pytest.fixture(scope="module")
def variables():
    return random_variables()


@functools.partial(jax.jit, static_argnums=2)
def value_and_gradient(variables, batch, layout=None):
    """Summed loss with metrics and weight, and its gradient."""
    def total(params):
        loss = WITH_Z(score(MODEL.clone(layout=layout), {"params": params}, batch), batch)
        return loss.total, loss

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


@jax.jit
def plainly(variables, batch):
    """The same sum for rows that are padded, not packed, from all logits."""
    def total(params):
        hidden = MODEL.apply({"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"])
        logits = (hidden @ output_kernel(CONFIG, params))[:, :-1]
        log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
        chosen = jnp.take_along_axis(logits, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
        return jnp.sum((log_z - chosen + 0.1 * log_z**2) * (batch["segment_ids"][:, 1:] > 0))

    return jax.value_and_grad(total)(variables["params"])


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-5 * max(1.0, np.linalg.norm(b))


def test_z_loss_and_its_gradient_equal_the_plain_ones(variables):
    (value, loss), gradient = value_and_gradient(variables, padded(SOME))
    expected, expected_gradient = plainly(variables, padded(SOME))
    assert_same((value, gradient), (expected, expected_gradient))
    assert float(loss.weight) == 9 + 14 + 5 + 20 - 4


def test_z_loss_metric_is_its_share_of_the_loss(variables):
    batch = padded(SOME)
    scores = score(MODEL, variables, batch)
    without, with_z = next_token(scores, batch), WITH_Z(scores, batch)
    assert set(with_z.metrics) == set(without.metrics) | {"z_loss"}
    term, weight = with_z.metrics["z_loss"]
    assert float(with_z.total - without.total) == pytest.approx(float(term), rel=1e-4)
    assert weight == with_z.weight == without.weight


def test_padding_packing_and_micro_batches_change_nothing(variables):
    whole = value_and_gradient(variables, padded(SOME))
    assert_same(value_and_gradient(variables, padded(SOME, 32)), whole)
    assert_same(value_and_gradient(variables, packed(SOME, 32)), whole)
    parts = [value_and_gradient(variables, padded(each, 20)) for each in (SOME[:1], SOME[1:])]
    assert_same(jax.tree.map(jnp.add, *parts), whole)


def test_the_mesh_changes_nothing(variables):
    batch, results = padded(SOME), []
    for layout in (make_layout(MeshConfig(2, 2, 2)), one_device()):
        given = jax.device_put((variables, batch), layout.sharding())
        results.append(jax.device_get(value_and_gradient(*given, layout)))
    assert_same(*results)


def test_masked_log_z_adds_exactly_nothing(variables):
    batch = padded(SOME)
    scores = score(MODEL, variables, batch)
    spoiled = scores._replace(log_z=jnp.where(batch["segment_ids"] == 0, jnp.nan, scores.log_z))
    assert float(WITH_Z(spoiled, batch).total) == float(WITH_Z(scores, batch).total)
