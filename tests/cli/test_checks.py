"""--dtype float32 is float32 wherever it is computed."""

import re

import jax
import optax
import pytest
import tiny

from cli.checks import compute_in
from cli.planned import on_tpus
from models.transformer import Transformer
from objectives.sft import sft
from scripts.plan import read_flags
from training.state import init_state
from training.step import make_train_step


@pytest.fixture(autouse=True)
def precision():
    """What is set is put back."""
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize(("dtype", "backend", "own", "found"), [
    ("float32", "tpu", None, "highest"), ("float32", "gpu", None, "highest"), ("float32", "cpu", None, None),
    ("bfloat16", "tpu", None, None), ("float32", "gpu", "tensorfloat32", "tensorfloat32")])
def test_accelerators_do_not_round_float32(monkeypatch, dtype, backend, own, found):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jax.config.update("jax_default_matmul_precision", own)
    assert compute_in(dtype) == dtype
    assert jax.config.jax_default_matmul_precision == found


@pytest.mark.parametrize(("dtype", "found"), [("float32", "highest"), ("bfloat16", None)])
def test_what_is_planned_rounds_as_a_run_does(dtype, found):
    """On the CPU that compiles for TPUs."""
    jax.config.update("jax_default_matmul_precision", None)
    flags = ["--model", "qwen3-0.6b", "--batch-size", "8", "--max-length", "256", "--dtype", dtype]
    assert on_tpus(read_flags("sft", flags)).attention == "flash"
    assert jax.config.jax_default_matmul_precision == found


def lowered(platform):
    """A whole step, forward, backward and update, as that platform's compiler gets it."""
    layout = tiny.one_device()
    model, optimizer = Transformer(tiny.CONFIG, layout=layout), optax.adamw(1e-3)
    state = init_state(model, tiny.variables_on(layout)["params"], optimizer, jax.random.key(0), layout)
    step = make_train_step(model, sft, optimizer, optax.constant_schedule(1e-3), state)
    batch = tiny.put(tiny.padded(tiny.rows([5, 8])), layout, 1)
    return step.trace(state, batch).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_every_product_of_a_step_is_of_float32(monkeypatch, platform):
    products = re.findall(r"stablehlo.dot_general.*", lowered(platform))
    assert len(products) > 20
    assert not any("HIGHEST" in line for line in products)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: platform)
        compute_in("float32")
    products = re.findall(r"stablehlo.dot_general.*", lowered(platform))
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []
