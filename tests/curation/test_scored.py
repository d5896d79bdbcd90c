"""Numbers from a model or a reward: against the definition, and rows that have none."""

import jax
import numpy as np
import pytest
from chat_model import write_model
from tiny import one_device, padded

from batch import Row as TokenRow
from curation.scored import instruction_difficulty, perplexity, quality, quantiles
from curation.stages import Drop, Row
from data.encode import encode_record
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import open_pretrained
from models.transformer import output_kernel

RECORDS = [{"prompt": "What is it?", "completion": "A cat."}, {"prompt": "Say", "completion": " yes yes yes"},
           {"text": "some text"}, {"prompt": "x", "completion": ""}, {"answer": "x"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("scored") / "model")


@pytest.fixture(scope="module")
def nll(folder):
    """A function from token ids to -log p of each but the first, by the definition."""
    model, variables = open_pretrained(str(folder)).load(one_device())

    @jax.jit
    def logps(batch):
        hidden = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])
        return jax.nn.log_softmax(hidden @ output_kernel(model.config, variables["params"]))

    def of(tokens):
        batch = padded([TokenRow(np.asarray(tokens, np.int32), np.ones(len(tokens), np.float32))], 40)
        return -np.asarray(logps(batch))[0, np.arange(len(tokens) - 1), tokens[1:]]
    return of


def rows():
    return [Row("data", index, dict(record)) for index, record in enumerate(RECORDS)]


@pytest.mark.slow
def test_perplexity_and_difficulty_are_what_their_definitions_say(folder, nll):
    tokenizer = load_tokenizer(folder)
    out = list(instruction_difficulty(model=str(folder), max_difficulty=None)(perplexity(model=str(folder))(
        each for each in rows()[:3])))
    for row in out:
        encoded = encode_record(row.record, tokenizer, vocab_size=200, training=True)
        targets = np.flatnonzero(encoded.loss_mask)
        losses = nll(encoded.tokens)
        expected = np.exp(losses[targets - 1].mean())
        assert row.notes["perplexity"] == pytest.approx(expected, rel=1e-4)
        ratio = np.exp(losses[targets[1:] - 1].mean() - nll(encoded.tokens[targets]).mean())
        assert row.notes["instruction_difficulty"] == pytest.approx(ratio, rel=1e-4)
    assert out[2].notes["instruction_difficulty"] == pytest.approx(nll_shift(out[2], nll, tokenizer), rel=1e-4)


def nll_shift(row, nll, tokenizer):
    """Of a text, which has no prompt but its first token."""
    tokens = encode_record(row.record, tokenizer, vocab_size=200, training=True).tokens
    return np.exp(nll(tokens)[1:].mean() - nll(tokens[1:]).mean())


@pytest.fixture
def even(monkeypatch):
    """A model that finds every token as likely as the share of its row that the token's place is."""
    monkeypatch.setattr("curation.scored.TokenScorer.__call__", lambda self, rows: [
        np.log((1 + np.arange(len(row.tokens))) / len(row.tokens)) for row in rows])


def test_rows_out_of_bounds_and_rows_without_a_number_are_dropped(folder, even):
    model = str(folder)
    noted = [row.notes["perplexity"] for row in perplexity(model=model)(rows()[:2])]
    middle = sum(noted) / 2
    low, high = sorted(range(2), key=noted.__getitem__)
    out = list(perplexity(model=model, max_perplexity=middle, batch_size=2)(rows()))
    assert out[high].reason == f"perplexity {noted[high]:.4g} is above {middle:g}"
    assert isinstance(out[low], Row)
    assert "no known columns among answer" in out[4].reason
    out = list(perplexity(model=model, min_perplexity=middle)(rows()[:2]))
    assert [type(out[low]), type(out[high])] == [Drop, Row]
    out = list(instruction_difficulty(model=model)(rows()[3:4]))
    assert out[0].reason == "instruction_difficulty: its answer is a single token"
    too_long = Row("data", 9, {"text": "x" * 100_000})
    assert "more than the model's context" in next(perplexity(model=model)([too_long])).reason


def test_quality_is_what_a_scorer_says():
    def chosen(**bounds):
        out = quality(rewards="chat_model:digits=2", **bounds)(
            [Row("data", 0, {"prompt": "x", "completion": "1a"}), Row("data", 1, {"text": "12"})])
        return [each if isinstance(each, Row) else each.reason for each in out]
    assert [row.notes["quality"] for row in chosen()] == [1.0, 2.0]
    assert chosen(min_score=1.5)[0] == "quality 1 is below 1.5"
    assert chosen(max_score=1.5, note="fun")[1] == "fun 2 is above 1.5"
    found = list(quality(rewards="curated:fussy", timeout=5.0)(rows()[:2]))
    assert found[0].reason == "quality: no verdict"
    assert "fussy failed" in found[1].reason
    with pytest.raises(InputError, match="data row 4: no answer to score"):
        list(quality(rewards="chat_model:digits")(rows()[4:]))


def test_quantiles_drop_shares_of_all_rows():
    scores = [5, 1, 3, 3, 9, 3, 3, 3, 3, 3]
    made = [Row("data", index, {"text": "x", "score": score}) for index, score in enumerate(scores)]
    out = list(quantiles(by="score", drop_lowest=0.2, drop_highest=0.1)(iter(made)))
    assert [each.row.index for each in out if isinstance(each, Drop)] == [1, 4, 9]
    assert out[4].reason == "score 9, among the highest"
    with pytest.raises(InputError, match="shares that leave some rows"):
        quantiles(by="score", drop_lowest=1.0)
