"""The likeliest tokens in every place, of whole logits and of parts of the vocabulary, and the scorer's own logps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, jitted_score, one_device, padded, put, random_variables, rows, variables_on

from models.likeliest import LIKELIEST, score_likeliest
from models.transformer import Transformer, output_kernel
from sharding.mesh import MeshConfig, make_layout

BATCH = padded(rows([12, 5, 9, 1]))


@pytest.mark.parametrize("sizes", [None, (2, 2, 2), (1, 1, 4)])
def test_they_are_those_of_the_whole_logits(sizes):
    layout = one_device() if sizes is None else make_layout(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
    model = Transformer(CONFIG, layout=layout)
    variables = random_variables() if sizes is None else variables_on(layout)
    found = jax.jit(score_likeliest, static_argnums=0)(model, variables, put(BATCH, layout))
    plain = random_variables()
    hidden = Transformer(CONFIG).apply(plain, BATCH["tokens"], BATCH["positions"], BATCH["segment_ids"])
    logps = np.asarray(jax.nn.log_softmax(hidden @ output_kernel(CONFIG, plain["params"])))
    for row, length in enumerate((12, 5, 9, 1)):
        for place in range(1, length):
            expected = np.sort(logps[row, place - 1])[::-1][:LIKELIEST]
            np.testing.assert_allclose(found.likeliest_logps[row, place], expected, atol=1e-4)
            np.testing.assert_allclose(logps[row, place - 1][found.likeliest[row, place]], expected, atol=1e-4)
    assert not np.any(found.likeliest_logps[:, 0])
    assert not np.any(found.likeliest[1, 5:])


def test_the_first_is_the_scorers_where_no_token_is_likelier():
    """To the last bit: clients compare the two."""
    model, variables = Transformer(CONFIG), random_variables()
    batch = dict(BATCH)
    hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])
    best = jnp.argmax(hidden @ output_kernel(CONFIG, variables["params"]), axis=-1)
    batch["tokens"] = batch["tokens"].at[:, 3].set(best[:, 2])
    found, scores = score_likeliest(model, variables, batch), jitted_score(model, variables, batch)
    greedy = np.asarray(scores.greedy == 1)
    assert greedy[:3, 3].all()
    assert not greedy[:, 4].all()
    np.testing.assert_array_equal(np.asarray(found.logps)[greedy], np.asarray(found.likeliest_logps)[..., 0][greedy])
    np.testing.assert_allclose(found.logps, scores.logps, atol=1e-5)
