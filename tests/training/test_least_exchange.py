"""What a step must exchange at the least, by hand, and what the TPU's compiler makes of it."""

import dataclasses

import jax
import pytest
from tiny import CONFIG, LORA

from models.transformer import Transformer
from sharding.layout import AXES, Layout
from training.least_exchange import LeastExchange, least_exchange

PLAIN = dataclasses.replace(CONFIG, vocab_size=96, qkv_bias=False, qk_norm=False, tie_embeddings=False,
                            dtype="bfloat16")
D, F, L, V, H = 32, 64, 2, 96, 64
LAYER = D * H + 2 * D * 16 + H * D + 3 * D * F
"""elements of a layer's matrices: q, k and v, o, the mlp"""
NORMS = (2 * L + 1) * D


def least(sizes, config=PLAIN, lora=None, optimizer="adamw"):
    """Of 16 x 8 tokens in 2 micro-batches."""
    layout = Layout(jax.sharding.AbstractMesh(sizes, AXES))
    return least_exchange(Transformer(config, lora), optimizer, layout, 16, 8, 2)


def test_copies_sum_their_gradients_once_a_step():
    all_of_it = 4 * (L * LAYER + 2 * V * D + NORMS)
    assert least((2, 4, 1, 1)) == LeastExchange(0, 0, 0, 2 * all_of_it * 7 / 8, 0, 0, 0)


def test_weights_are_gathered_and_gradients_scattered_over_fsdp():
    split = L * LAYER + V * D  # the embedding is not gathered: its rows are exchanged
    weights, rows = 2 * 2 * (2 * L * LAYER + V * D), 16 * 8 / 8 * D * (2 + 4)
    assert least((1, 1, 8, 1)) == LeastExchange(weights * 7 / 8, rows * 7 / 8, 2 * 4 * split * 7 / 8,
                                                2 * 4 * NORMS * 7 / 8, 0, 0, 0)


def test_activations_are_summed_over_tensor():
    tokens = 16 * 8
    dots, full = (least((1, 1, 1, 8), dataclasses.replace(PLAIN, remat=remat)) for remat in ("dots", "full"))
    assert dots == LeastExchange(0, 0, 0, 2 * 4 * NORMS * 7 / 8, tokens * D * (4 * L + 2) * 2 * 2 * 7 / 8,
                                 tokens * 5 * 4 * 2 * 7 / 8, 0)
    assert full.activations == tokens * D * (5 * L + 2) * 2 * 2 * 7 / 8


def test_lora_reduces_its_own_gradients_alone():
    lora, full = least((1, 2, 4, 1), lora=LORA), least((1, 2, 4, 1))
    factors = LORA.rank * L * (D + H + 2 * (D + 16) + H + D + 3 * (D + F))
    assert lora.weights > full.weights
    assert lora.gradients + lora.copies < 2 * 2 * 4 * factors
    assert lora.embedding == full.embedding / 3  # forward, in bfloat16, and no gradient


def test_muon_exchanges_pieces_of_its_matrices_twice():
    split = least((1, 1, 4, 1), optimizer="muon")
    assert split == least((1, 1, 4, 1))._replace(optimizer=2 * 4 * L * LAYER / 4 * 3 / 4)
    shared = least((1, 2, 1, 1), optimizer="muon")  # two layers, two copies: each has one, and gives it to the other
    assert shared == least((1, 2, 1, 1))._replace(optimizer=4 * L * LAYER / 2)


RINGS = pytest.mark.xfail(strict=True, reason="over a torus of three dimensions the head's gradient is all-reduced, "
                                              "and matmuls' gradients go around rings one hop more than needed")


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "trained", "optimizer"), [
    ("data=8", "full", "muon"), ("fsdp=8", "lora", "adamw"), pytest.param("fsdp=8", "full", "adamw", marks=RINGS),
    ("tensor=8", "full", "adamw"), ("data=2,fsdp=2,tensor=2", "full", "muon"), ("fsdp=4,tensor=2", "lora", "adamw")])
def test_a_step_compiled_for_tpus_exchanges_little_more(mesh, trained, optimizer):
    pytest.importorskip("libtpu")
    from benchmarks.mesh_exchange import Case, Config, measure

    assert measure(Config(), Case(mesh, trained, optimizer, 2)).ratio <= 1.1
