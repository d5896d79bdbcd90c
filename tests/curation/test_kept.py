"""What is kept is what training reads: completions, pairs and labels, in strings and in messages."""

import json

import pytest
from chat_model import write_model

from curation.choose import best_of, labels, pairs
from curation.output import write_kept
from curation.samples import _as_asked
from curation.stages import Row
from data.encode import encode_prompts, encode_record
from data.pairs import encode_labelled, encode_pair
from data.sources import DataSource, open_source
from data.tokenizer import open_tokenizer
from errors import InputError

TEMPLATE = ("{% for message in messages %}{{ message.role[0] }}:{{ message.content }}"
            "{% if message.role == 'assistant' %}<end>{% endif %};{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}")


class Teacher:
    """Takes a string for a user's message where it has a template."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def takes_as_message(self, prompt):
        return bool(self._tokenizer.chat_template)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_trained_as_they_were_sampled(tmp_path, template, kind):
    model = write_model(tmp_path / "model")
    if template:
        (model / "chat_template.jinja").write_text(template)
    tokenizer = open_tokenizer(model)
    given = [{"prompt": "1+1="}, {"prompt": [{"role": "user", "content": "2+2"}]}]
    if not tokenizer.chat_template:
        given.pop()
    asked = encode_prompts(given, tokenizer, vocab_size=97, max_length=50)
    rows = [_as_asked(Row("a", index, {"prompt": each["prompt"], "completion": answer}, {
        "reward": reward, "rewards": {"exact": reward}, "teacher": "t"}, sample), Teacher(tokenizer))
        for index, each in enumerate(given) for sample, (answer, reward) in enumerate((("2", 1.0), ("three", 0.0)))]

    def kept(stage):
        write_kept(tmp_path / f"kept.{kind}", [row for row in stage(rows) if isinstance(row, Row)])
        return open_source(DataSource(str(tmp_path / f"kept.{kind}")))

    for source, prompt in zip(kept(best_of()), asked, strict=True):
        row = encode_record(source, tokenizer, vocab_size=97, training=True)
        assert row.tokens.tolist()[: len(prompt)] == prompt
        assert not row.loss_mask[: len(prompt)].any()
        assert row.loss_mask[len(prompt)]
    for source, prompt in zip(kept(pairs()), asked, strict=True):
        pair = encode_pair(source, tokenizer, vocab_size=97)
        assert pair.chosen.tokens.tolist()[: len(prompt)] == pair.rejected.tokens.tolist()[: len(prompt)] == prompt
        assert len(pair.chosen.tokens) < len(pair.rejected.tokens)
    labelled = list(kept(labels()))
    assert [row["label"] for row in labelled] == [True, False] * len(given)
    assert [encode_labelled(row, tokenizer, vocab_size=97).tokens.tolist()[: len(prompt)] == prompt
            for row, prompt in zip(labelled, [each for each in asked for _ in range(2)])] == [True] * len(labelled)
    assert json.loads(json.dumps(labelled[0]["rewards"])) == {"exact": 1.0}


@pytest.mark.parametrize("values", [(1, 2**70), (1, "a"), (1, [1, "a"]), ({}, {})])
def test_rows_that_fit_no_table_are_a_line(tmp_path, values):
    rows = [Row("a", index, {"text": "a", "x": value}) for index, value in enumerate(values)]
    with pytest.raises(InputError, match="kept.parquet: the rows do not fit .* with --format jsonl"):
        write_kept(tmp_path / "kept.parquet", rows)
    write_kept(tmp_path / "kept.jsonl", rows)
    assert [row["x"] for row in open_source(DataSource(str(tmp_path / "kept.jsonl")))] == list(values)
