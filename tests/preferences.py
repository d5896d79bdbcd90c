"""What TRL's own code makes of fixed pairs: tests/fixtures/preferences.npz, see make_preference_fixtures.py there."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@functools.cache
def load():
    with np.load(Path(__file__).parent / "fixtures" / "preferences.npz") as arrays:
        return dict(arrays)


def cases(prefix):
    """Names of the cases that begin so."""
    return [name.removesuffix("/loss") for name in load() if name.startswith(prefix) and name.endswith("/loss")]


def trl_names(case):
    """Names of what TRL logged for a case."""
    return [name.removeprefix(f"{case}/metrics/") for name in load() if name.startswith(f"{case}/metrics/")]


def assert_equals_trl(objective, case, of="logps", **columns):
    """Mean loss, its gradient with respect to a score, and metrics of TRL's that are ours, in float64, within 1e-6."""
    fixture = load()
    with jax.enable_x64(True):
        batch = {name: jnp.asarray(fixture[name]) for name in ("loss_mask", "ref_logps", "label")} | columns
        scores = {name: jnp.asarray(fixture[name]) for name in ("logps", "entropy", "log_collision", "rewards")}

        def mean(values):
            loss = objective(SimpleNamespace(**scores | {of: values}), batch)
            return loss.total / loss.weight, loss

        (value, loss), gradient = jax.value_and_grad(mean, has_aux=True)(scores[of])
    assert value.dtype == jnp.float64
    assert float(value) == pytest.approx(float(fixture[f"{case}/loss"]), rel=1e-6)
    np.testing.assert_allclose(gradient, fixture[f"{case}/grad"], rtol=1e-6, atol=1e-9)
    for name in set(trl_names(case)) & set(loss.metrics):
        total, weight = loss.metrics[name]
        assert float(total / weight) == pytest.approx(float(fixture[f"{case}/metrics/{name}"]), rel=1e-6), name
