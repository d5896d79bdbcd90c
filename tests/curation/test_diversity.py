"""Choices by embeddings: of a plain encoder against the definitions, and a model's own."""

import numpy as np
import pytest
from chat_model import write_model

from curation.diversity import cluster_balanced, k_centre, k_means, level, semantic_duplicates
from curation.embeddings import ModelEncoder, embed
from curation.stages import Drop, Row
from errors import InputError

ENCODER = "curated:letters"
TEXTS = ["aaaa", "aaab", "bbbb", "cccc", "cccd", "eeee", "ffff"]


def rows(texts=TEXTS, **columns):
    return [Row("data", index, {"text": text} | {name: values[index] for name, values in columns.items()})
            for index, text in enumerate(texts)]


def kept(stage, some):
    out = list(stage(iter(some)))
    assert [each.row if isinstance(each, Drop) else each for each in out] == some
    return {row.record["text"] for row in out if isinstance(row, Row)}, {
        each.row.record["text"]: each for each in out if isinstance(each, Drop)}


def test_semantic_duplicates_name_the_row_that_is_kept():
    left, dropped = kept(semantic_duplicates(encoder=ENCODER, threshold=0.8), rows())
    assert left == {"aaaa", "bbbb", "cccc", "eeee", "ffff"}
    assert {text: each.kept_instead for text, each in dropped.items()} == {"aaab": ("data", 0), "cccd": ("data", 3)}
    best = rows(quality=[1, 2, 1, 1, 2, 1, 1])
    assert kept(semantic_duplicates(encoder=ENCODER, threshold=0.8, prefer="quality"), best)[0] \
        == {"aaab", "bbbb", "cccd", "eeee", "ffff"}
    assert kept(semantic_duplicates(encoder=ENCODER, threshold=1.0), rows(["x", "x", ""]))[0] == {"x", ""}


def test_k_centre_takes_the_farthest_again_and_again():
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdef"), 6)) for _ in range(60)]
    texts = list(dict.fromkeys("".join(sorted(text)) for text in texts))
    some = rows(texts)
    left, dropped = kept(k_centre(encoder=ENCODER, keep=9), some)
    assert len(left) == 9
    counts = np.array([[text.count(letter) for letter in "abcdef"] for text in texts], float)
    vectors = counts - counts.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    expected = [0]
    while len(expected) < 9:
        expected.append(int(np.argmax(distances[:, expected].min(axis=1))))
    assert left == {texts[number] for number in expected}
    for each in dropped.values():
        assert each.kept_instead[1] == expected[int(np.argmin(distances[each.row.index, expected]))]
    assert kept(k_centre(encoder=ENCODER, keep=100), some)[1] == {}


def test_clusters_are_kept_to_the_same_number():
    texts = [f"{'a' * 9}{'b' * (index % 3)}" for index in range(9)] + ["z" * 9] * 2 + [f"{'m' * 9}n"] * 4
    left, dropped = kept(cluster_balanced(encoder=ENCODER, keep=6, clusters=3), rows(texts))
    stage = cluster_balanced(encoder=ENCODER, keep=6, clusters=3)
    out = [each for each in stage(rows(texts)) if isinstance(each, Row)]
    assert [sum(each.record["text"][0] == letter for each in out) for letter in "azm"] == [2, 2, 2]


@pytest.mark.parametrize(("sizes", "keep", "expected"), [
    ([5, 1, 3], 6, [3, 1, 2]), ([5, 1, 3], 100, [5, 1, 3]), ([5, 0, 5], 3, [2, 0, 1]), ([4, 4], 1, [1, 0]),
    ([], 3, [])])
def test_quotas_are_level(sizes, keep, expected):
    assert level(np.array(sizes, int), keep).tolist() == expected


def test_k_means_finds_what_is_apart():
    draw = np.random.default_rng(1)
    centres = np.eye(4)[np.arange(80) % 4]
    vectors = centres + 0.05 * draw.standard_normal((80, 4))
    labels = k_means((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), 4)
    assert len({(int(label), index % 4) for index, label in enumerate(labels)}) == len(set(labels.tolist()))
    assert k_means(np.zeros((0, 3), np.float32), 4).tolist() == []


def test_an_encoder_that_gives_something_else_is_one_line(tmp_path):
    for found in ([1.0, 2.0], [[1.0]], [[1.0], [float("nan")]]):
        with pytest.raises(InputError, match="the encoder gave"):
            embed(["a", "b"], lambda texts, found=found: found, tmp_path / "vectors")
    with pytest.raises(InputError, match="give model"):
        k_centre(keep=3)
    with pytest.raises(InputError, match="give model"):
        k_centre(keep=3, model="m", encoder=ENCODER)
    assert list(k_centre(keep=3, encoder=ENCODER)([])) == []


@pytest.mark.slow
def test_a_model_gives_the_mean_of_its_hidden_states(tmp_path):
    import jax
    from tiny import one_device

    from models.pretrained import open_pretrained

    folder = str(write_model(tmp_path / "model"))
    encoder = ModelEncoder(folder, 8, 2)
    found = encoder(["a", "some text that is longer", "bc"])
    model, variables = open_pretrained(folder).load(one_device())
    for text, vector in zip(("a", "some tex", "bc"), found):
        tokens = jax.numpy.array([[ord(letter) - 30 for letter in text]])
        hidden = model.apply(variables, tokens, jax.numpy.arange(len(text))[None], jax.numpy.ones_like(tokens))
        np.testing.assert_allclose(vector, np.mean(hidden[0], axis=0), rtol=1e-4, atol=1e-4)
