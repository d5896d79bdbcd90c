"""Log-probabilities equal transformers' own, for every family and every way of reading weights.

The fixtures are tiny random models and SmolLM2's scores, made by tests/fixtures/make_fixtures.py.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from batch import pad
from data.batches import TrainingBatches
from data.reading import Encoder
from data.records import JsonlSource
from data.streams import Streams
from models.gguf_weights import open_gguf
from models.hf_config import from_hf
from models.pretrained import EMBEDDED, open_pretrained
from models.scoring import score
from sharding.mesh import MeshConfig, make_layout

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = sorted(path.name for path in (FIXTURES / "families").iterdir())
GGUF_FILES = sorted((FIXTURES / "gguf").glob("*.gguf"))


def batch_of(tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return {"tokens": tokens, "positions": positions, "segment_ids": np.ones_like(tokens)}


def scores_of(reference, tokens, layout, **compute):
    model, variables = open_pretrained(str(reference)).load(layout, **compute)
    return jax.jit(lambda variables, batch: score(model, variables, batch))(variables, batch_of(tokens))


@pytest.fixture(scope="module")
def one_device():
    return make_layout(MeshConfig(), jax.devices()[:1])


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
    layout = make_layout(MeshConfig(data=1, fsdp=4, tensor=2))
    _, variables = open_pretrained(str(folder)).load(layout)
    kernel = variables["params"]["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    tokens = np.concatenate([expected["tokens"], expected["tokens"][:1]])
    scores = scores_of(folder, tokens, layout)
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


@pytest.fixture(scope="module")
def smollm2(one_device):
    """Scores batches by the embedded model."""
    model, variables = open_pretrained(EMBEDDED).load(one_device)

    def scores(batch):
        return jax.jit(score, static_argnums=0)(model, variables, batch)

    return scores


def test_smollm2_equals_transformers_on_real_sentences(smollm2):
    texts = json.loads((FIXTURES / "smollm2_texts.json").read_text())["texts"]
    expected = np.load(FIXTURES / "smollm2.npz")
    length = max(len(text["tokens"]) for text in texts)
    tokens = np.array([text["tokens"] + [0] * (length - len(text["tokens"])) for text in texts])
    scores = smollm2(batch_of(tokens))
    for row, text in enumerate(texts):
        count = len(text["tokens"])
        np.testing.assert_allclose(scores.logps[row, :count], expected[f"logps_{row}"], atol=1e-4)
        np.testing.assert_allclose(scores.entropy[row, :count], expected[f"entropy_{row}"], atol=1e-4)


@pytest.mark.parametrize("packing", ["first-fit", pytest.param("concat-then-split", marks=pytest.mark.slow)])
def test_smollm2_scores_packed_segments_as_it_scores_them_alone(packing, smollm2, tmp_path):
    texts = json.loads((FIXTURES / "smollm2_texts.json").read_text())["texts"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"tokens": text["tokens"][:20]}) + "\n" for text in texts))
    encoder = Encoder(None, 49152, None if packing == "concat-then-split" else 64)
    streams = Streams((JsonlSource(tmp_path / "rows.jsonl"),), (1.0,), encoder, 3, 64, packing, 0)
    batch = next(TrainingBatches(streams, range(3)))
    segments = [(row, batch["segment_ids"][row] == segment) for row in range(3)
                for segment in range(1, batch["segment_ids"][row].max() + 1)]
    assert len(segments) > 6
    alone = pad([{"tokens": batch["tokens"][row][chosen], "loss_mask": np.ones(chosen.sum())}
                 for row, chosen in segments], [64])  # as long: other lengths round otherwise, packed or not
    packed, unpacked = smollm2(batch), smollm2(alone)
    for place, (row, chosen) in enumerate(segments):
        np.testing.assert_allclose(packed.logps[row][chosen][1:], unpacked.logps[place][1 : chosen.sum()], rtol=0,
                                   atol=1e-5)


def test_a_gguf_files_metadata_are_read_of_a_plain_array():
    """Of a memmap, of which the library makes one, it takes four times as long."""
    assert type(open_gguf(GGUF_FILES[0]).data) is np.ndarray
