"""Graders of our own on any prompts: how a task is named, what it asks, and what becomes of answers."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from errors import InputError
from evals.graded import _split, has_unit_tests, is_graded, open_graded, run_graded
from evals.tasks import How, open_tasks
from rollouts.sampling import make_controls


class Answer(NamedTuple):
    text: str
    tokens: list
    finish_reason: str


class Letters:
    """A tokenizer of a token a character."""

    chat_template = bos_token = bos_id = None

    def encode(self, text, add_special_tokens=False):
        return [ord(character) % 128 for character in text]


class Chatty(Letters):
    """One with a chat template, which looks at an argument."""

    chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ mood }}"
    eos_token, eos_ids = "<end>", ()

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))


class Parrot:
    """A subject that answers the first prompt's characters, and what it was asked."""

    tokenizer, max_length = Letters(), 64
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=128))

    def fit(self, tokens, limit):
        room = self.max_length // 2
        return tokens[-room:], min(limit, room), len(tokens) > room

    def generate(self, prompts, limits, controls, stops, seed, num_samples):
        self.limits, self.controls = limits, controls
        return [[Answer("".join(map(chr, prompt[: 3 + repeat])), prompt[: 3 + repeat], "stop")
                 for repeat in range(num_samples)] for prompt in prompts]


def asked_for_none(prompts, completions, **columns):
    """A grader that fails on one row, and has nothing to say on another."""
    if any("boom" in prompt for prompt in prompts):
        raise ValueError("no such thing")
    return [None if "none" in prompt else 1.0 for prompt in prompts]


@pytest.fixture
def rows(tmp_path):
    def write(*rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"{tmp_path}/rows.jsonl"

    return write


def opened(name, **options):
    return open_graded(name, Letters(), 128, **options)


DIGITS = "tests.chat_model:digits"


@pytest.mark.parametrize(("name", "grader", "data"), [
    ("math:a/b.jsonl", "math", "a/b.jsonl"), ("math:hf:owner/name:test", "math", "hf:owner/name:test"),
    ("model:runs/rm@best:rows.parquet", "model:runs/rm@best", "rows.parquet"),
    ("judge:http://host:80/v1:rows.jsonl", "judge:http://host:80/v1", "rows.jsonl"),
    ("format(pattern='a:b'):rows.jsonl", "format(pattern='a:b')", "rows.jsonl"),
    ("tests.chat_model:digits:rows.jsonl.gz", DIGITS, "rows.jsonl.gz"),
    ("gym:chain_sum(size=5)", "gym:chain_sum(size=5)", "gym:chain_sum(size=5)"), ("gym:a", "gym:a", "gym:a"),
    ("gym_exact:a:gym:a", "gym_exact:a", "gym:a"), ("math:gym:a(size=5)", "math", "gym:a(size=5)"),
    ("math:{source: x.jsonl, columns: {prompt: q}}", "math", "{source: x.jsonl, columns: {prompt: q}}")])
def test_a_name_is_a_grader_and_a_source(name, grader, data):
    assert is_graded(name)
    assert _split(name) == (grader, data)


@pytest.mark.parametrize("name", ["math:rows.csv", "math:", "gym:a:b", "unit_tests"])
def test_a_name_without_a_source_is_refused(name):
    with pytest.raises(InputError, match="no source of rows"):
        _split(name)
    assert not is_graded("gsm8k")


def test_answers_become_samples(rows):
    file = rows({"prompt": "12a"}, {"question": "no digits", "answer": "0", "family": 7}, {"prompt": "x" * 40 + "345"})
    subject = Parrot()
    samples = run_graded(opened(f"{DIGITS}:{file}"), subject)
    assert [sample.values for sample in samples] == [{DIGITS: 2 / 3}, {DIGITS: 0.0}, {DIGITS: 0.0}]
    assert [sample.completion for sample in samples] == ["12a", "no ", "xxx"]
    assert samples[1].doc == {"prompt": "no digits", "question": "no digits", "answer": "0", "family": 7}
    assert (samples[1].family, samples[1].target, samples[0].family) == ("7", "0", samples[0].question)
    assert [(sample.context_tokens, sample.truncated_context) for sample in samples] == [
        (3, False), (9, False), (32, True)]
    assert len({sample.question for sample in samples}) == 3
    assert subject.controls == make_controls(0.0)  # one answer is the likeliest
    again = run_graded(opened(f"{DIGITS}:{file}"), subject, num_samples=2, max_new_tokens=5)
    assert [(sample.question, sample.repeat, len(sample.completion)) for sample in again[:3]] == [
        (samples[0].question, 0, 3), (samples[0].question, 1, 3), (samples[1].question, 0, 3)]
    assert (subject.limits, subject.controls) == ([5, 5, 5], make_controls(1.0))


def test_what_is_no_answer_has_no_vote(rows):
    (sample,) = run_graded(opened(f"{DIGITS}:{rows({'prompt': '  ', 'answer': '0'})}"), Parrot())
    assert sample.answer is None


def test_what_a_grader_failed_on_has_no_value(rows, capsys):
    name = f"tests.evals.test_graded:asked_for_none:{rows({'prompt': 'boom'}, {'prompt': 'none'}, {'prompt': 'fine'})}"
    samples = run_graded(opened(name), Parrot())
    assert [list(sample.values.values()) for sample in samples] == [[None], [None], [1.0]]
    assert "failed on 1 answer(s), which have no verdict, first with ValueError: no such" in capsys.readouterr().err


def test_a_question_counts_once_and_a_limit_takes_the_first(rows, capsys):
    file = rows({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a", "answer": 3}, {"prompt": "c"})
    assert [prompt.text for prompt in opened(f"{DIGITS}:{file}").prompts] == ["a", "b", "a", "c"]
    assert "1 of 5 questions are there twice" in capsys.readouterr().out
    numbered = rows(*({"prompt": "1+1", "answer": "2", "metadata": {"source_index": index}} for index in range(3)))
    assert len(opened(f"{DIGITS}:{numbered}").prompts) == 1
    file = rows({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a", "answer": 3}, {"prompt": "c"})
    assert [prompt.text for prompt in opened(f"{DIGITS}:{file}", limit=2).prompts] == ["a", "b"]
    assert len(opened(f"{DIGITS}:{file}", limit=100).prompts) == 4


def test_a_reward_model_computes_in_the_dtype_of_the_evaluation(rows, monkeypatch):
    loaded = []
    monkeypatch.setattr("evals.graded.load_rewards", lambda text, **options: loaded.append((text, options)) or ())
    [_] = open_tasks([f"model:runs/rm:{rows({'prompt': 'ab'})}"], Letters(), How(dtype="bfloat16"), 128)
    [(text, options)] = loaded
    assert (text, options["dtype"]) == ("model:runs/rm", "bfloat16")


def test_prompts_are_chats_where_the_model_chats_unless_they_are_not_to_be(rows):
    name = f"{DIGITS}:{rows({'prompt': 'ab'})}"

    def prompt(**options):
        [found] = open_graded(name, Chatty(), 128, **options).prompts
        return "".join(map(chr, found.tokens))

    assert (prompt(), prompt(chat=False)) == ("[ab]", "ab")
    assert prompt(template_kwargs={"mood": "calm"}) == "[ab]calm"
    with pytest.raises(InputError, match="looks at no 'moods'"):
        prompt(template_kwargs={"moods": "calm"})
    with pytest.raises(InputError, match="has no chat template"):
        prompt(chat=False, template_kwargs={"mood": "calm"})


@pytest.mark.parametrize(("row", "message"), [
    ({"no": "prompt"}, "rows.jsonl:1: no known columns among no; a row has .* or else a text as question, problem"),
    ({"question": ["a"]}, "no known columns among question;"),
    ({"prompt": "1 + 1"}, "no column 'answer' or 'solution'")])
def test_rows_that_cannot_be_judged_are_refused_before_any_answer(rows, row, message):
    with pytest.raises(InputError, match=message):
        opened(f"math:{rows(row)}")


@pytest.mark.parametrize(("columns", "tests"), [
    ({"test_list": ["assert f(1) == 2"]}, True), ({"tests": "assert f(1) == 2"}, True),
    ({"tests": ["assert f(1) == 2"]}, True), ({"test": "def check(f): pass", "entry_point": "f"}, True),
    ({"tests": json.dumps([{"input": "1", "output": "2"}])}, False),
    ({"input_output": json.dumps({"inputs": ["1"], "outputs": ["2"]})}, False),
    ({"public_tests": {"input": ["1"], "output": ["2"]}, "description": "x"}, False)])
def test_code_is_judged_by_what_its_rows_have(columns, tests):
    assert has_unit_tests(columns) is tests
