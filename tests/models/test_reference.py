"""Log-probabilities equal transformers' own, for every family and every way of reading weights.

The fixtures are tiny random models and SmolLM2's scores, made by tests/fixtures/make_fixtures.py.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from models.config import from_hf
from models.pretrained import EMBEDDED, open_pretrained
from models.scoring import score
from sharding.mesh import MeshConfig, make_mesh

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = sorted(path.name for path in (FIXTURES / "families").iterdir())
GGUF_FILES = sorted((FIXTURES / "gguf").glob("*.gguf"))


def batch_of(tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return {"tokens": tokens, "positions": positions, "segment_ids": np.ones_like(tokens)}


def scores_of(reference, tokens, mesh, **compute):
    model, variables = open_pretrained(str(reference)).load(mesh, **compute)
    with jax.set_mesh(mesh):
        return jax.jit(lambda variables, batch: score(model, variables, batch))(variables, batch_of(tokens))


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_transformers(family, one_device):
    folder = FIXTURES / "families" / family
    expected = np.load(folder / "reference.npz")
    scores = scores_of(folder, expected["tokens"], one_device)
    np.testing.assert_allclose(scores.logps, expected["logps"], atol=1e-4)
    np.testing.assert_allclose(scores.entropy, expected["entropy"], atol=1e-4)


def test_sharded_loading_gives_the_same_scores():
    folder = FIXTURES / "families" / "qwen2"
    expected = np.load(folder / "reference.npz")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    _, variables = open_pretrained(str(folder)).load(mesh)
    kernel = variables["params"]["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    tokens = np.concatenate([expected["tokens"], expected["tokens"][:1]])
    scores = scores_of(folder, tokens, mesh)
    np.testing.assert_allclose(scores.logps[:3], expected["logps"], atol=1e-4)


@pytest.mark.parametrize("file", GGUF_FILES, ids=lambda file: file.stem)
def test_gguf_files_equal_their_dequantised_weights(file, one_device):
    expected = np.load(FIXTURES / "gguf" / "reference.npz")
    scores = scores_of(file, expected[f"tokens_{file.stem}"], one_device)
    np.testing.assert_allclose(scores.logps, expected[f"logps_{file.stem}"], atol=1e-4)


def test_both_spellings_of_rope_scaling():
    folder = FIXTURES / "families" / "llama3"
    new, old = (from_hf(json.loads((folder / name).read_text()), name)
                for name in ("config.json", "config.legacy.json"))
    assert new == old
    assert new.rope_scaling is not None


def test_smollm2_equals_transformers_on_real_sentences(one_device):
    texts = json.loads((FIXTURES / "smollm2_texts.json").read_text())["texts"]
    expected = np.load(FIXTURES / "smollm2.npz")
    length = max(len(text["tokens"]) for text in texts)
    tokens = np.array([text["tokens"] + [0] * (length - len(text["tokens"])) for text in texts])
    scores = scores_of(EMBEDDED, tokens, one_device)
    for row, text in enumerate(texts):
        count = len(text["tokens"])
        np.testing.assert_allclose(scores.logps[row, :count], expected[f"logps_{row}"], atol=1e-4)
        np.testing.assert_allclose(scores.entropy[row, :count], expected[f"entropy_{row}"], atol=1e-4)
