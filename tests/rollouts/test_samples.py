"""What is kept of episodes: all of it, in files that --data reads back, as rows to train on and as prompts."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.encode import encode_record
from data.prompts import Prompt, read_prompts
from data.sources import open_source, parse_source
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import EMBEDDED, locate
from rewards.scoring import Failure
from rollouts.episodes import Episode, Group
from rollouts.samples import write_samples

USER = [{"role": "user", "content": "Hi"}]
OLD = {"prompt": ["?", json.dumps(USER)], "completion": [" a", "b"], "reward": [1.0, None], "rewards/r": [1.0, None],
       "advantage": [0.5, None], "length": [1, 1], "finish_reason": ["stop", "length"]}
"""what files of earlier versions hold"""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate(EMBEDDED))


def said(text):
    return [{"role": "assistant", "content": text}]


def answer(tokens, drawn, text, reward=1.0, **more):
    """Three tokens of a prompt, and `drawn` that the policy drew."""
    return Episode([7, 8, 9, *tokens], 3, drawn, [-0.5 * each for each in drawn], 4, said(text), "stop",
                   {"math": reward, "format": None}, reward, **more)


def group(number, text, *episodes, failures=(), **columns):
    return Group(number, Prompt([7, 8, 9], text, columns), list(episodes), list(failures))


def write(run, groups, step=1, trained=None, advantages=None, policy_logps=None):
    trained = groups if trained is None else trained
    episodes = [episode for each in trained for episode in each.episodes]
    advantages = np.arange(len(episodes), dtype=np.float32) if advantages is None else advantages
    policy_logps = np.full((len(episodes), 20), -0.25, np.float32) if policy_logps is None else policy_logps
    write_samples(run, step, groups, trained, advantages, policy_logps)


def read(run, name="*"):
    return open_source(parse_source(str(run / "samples" / f"{name}.parquet")))


def test_all_that_an_episode_has_is_kept(tmp_path):
    late = Failure("math", 1, "TimeoutError: not done", "six")
    groups = [group(5, "2+2?", answer([3], [True], "4"), answer([4, 5], [True, True], "six", None), failures=[late],
                    answer="4"),
              group(6, USER, answer([3, 2], [True, True], "Hello", 0.0, opening=USER), answer([1], [True], "", 0.5),
                    answer="x")]
    write(tmp_path, groups, trained=groups[:1])
    rows = list(read(tmp_path))
    assert rows[0] == {
        "prompt": "2+2?", "completion": "4", "reward": 1.0, "rewards/math": 1.0, "failed": [], "advantage": 0.0,
        "length": 1, "finish_reason": "stop", "version": 4, "group": 5, "member": 0, "tokens": [7, 8, 9, 3],
        "loss_mask": [False, False, False, True], "logps": [0.0, 0.0, 0.0, -0.5],
        "policy_logps": [0.0, 0.0, 0.0, -0.25], "answer": "4"}
    assert {name: rows[1].get(name) for name in ("reward", "rewards/math", "failed", "advantage", "member")} == {
        "reward": None, "rewards/math": None, "failed": ["math"], "advantage": 1.0, "member": 1}
    assert rows[2]["messages"] == [*USER, *said("Hello")]
    assert json.loads(rows[2]["prompt"]) == USER
    assert "advantage" not in rows[2]
    assert "policy_logps" not in rows[2]


def test_turns_of_an_environment_and_advantages_of_tokens(tmp_path):
    call, parts = [{"function": {"name": "add", "arguments": {"x": 1}}}], [{"text": "= "}, {"text": "3"}]
    turns = [{"role": "assistant", "content": "", "tool_calls": call},
             {"role": "tool", "content": parts, "name": "add"}, *said("So 3")]
    drawn = [True, False, False, True]
    opening = [{"role": "user", "content": "1+2?"}]
    episode = Episode([7, 8, 9, 1, 2, 3, 4], 3, drawn, [-1.0, 0.0, 0.0, -2.0], 1, turns, "length", {}, 1.0, opening)
    advantages = np.asarray([[9, 9, 9, 0.5, 9, 9, -0.5, 9]], np.float32)
    write(tmp_path, [group(0, "1+2?", episode)], advantages=advantages)
    [row] = read(tmp_path)
    assert row["advantages"] == [0, 0, 0, 0.5, 0, 0, -0.5]
    assert row["loss_mask"] == [False] * 3 + drawn
    assert row["messages"] == [{"role": "user", "content": "1+2?"},
                               {"role": "assistant", "content": "", "tool_calls": json.dumps(call)},
                               {"role": "tool", "content": "= 3", "name": "add"}, *said("So 3")]


def test_rows_are_trained_on_as_they_were_sampled(tmp_path, tokenizer):
    """Whatever text they have beside their tokens."""
    write(tmp_path, [group(0, "a", answer([3], [True], "other"), answer([4, 5], [True, True], "words")),
                     group(1, USER, answer([4, 6, 5], [True, False, True], "and more"))])
    rows = [encode_record(row, tokenizer, vocab_size=49152, training=True) for row in read(tmp_path)]
    assert [row.tokens.tolist() for row in rows] == [[7, 8, 9, 3], [7, 8, 9, 4, 5], [7, 8, 9, 4, 6, 5]]
    assert [row.loss_mask.tolist() for row in rows] == [[0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1]]


def test_prompts_are_answered_again_with_what_their_rows_had(tmp_path, tokenizer):
    schema = [{"function": {"name": "f", "default": None}}]
    groups = [group(0, "1+1?", answer([3], [True], "2"), answer="2", level=3, reward="not this one"),
              group(1, USER, answer([4, 5], [True, True], "Hello"), metadata={"k": [1, None]}, tools=schema)]
    write(tmp_path, groups)
    one, two = read_prompts(read(tmp_path), tokenizer, vocab_size=49152, max_length=64)
    assert (one.tokens, one.text, one.columns["answer"], one.columns["level"]) == ([7, 8, 9], "1+1?", "2", 3)
    assert one.columns["reward"] == 1.0, "names of this file are its own"
    assert (two.tokens, two.text, two.columns["metadata"]) == ([7, 8, 9], USER, {"k": [1, None]})
    assert json.loads(two.columns["tools"]) == schema
    write(tmp_path / "again", [Group(0, one, [answer([3], [True], "2", 0.25)])])
    [again] = read(tmp_path / "again")
    assert (again["reward"], again["answer"], again["tokens"]) == (0.25, "2", [7, 8, 9, 3])


@pytest.mark.parametrize(("values", "expected"), [
    ([1, 2.5], [1, 2.5]),
    (["a", 3], ['"a"', "3"]),
    ([{}, {"a": {}}], ["{}", '{"a": {}}']),
    ([[1], "a"], ["[1]", '"a"']),
    ([2**70, 1], [str(2**70), "1"]),
    ([{"a": 1}, {"a": "b"}], ['{"a": 1}', '{"a": "b"}']),
    ([{"a": 1}, {"b": [2]}], [{"a": 1}, {"b": [2]}]),
    ([None, True], [None, True]),
    ([None, None], [None, None]),
    (["é\u2028", "\ud83d"], ['"\\u00e9\\u2028"', '"\\ud83d"']),
    ([b"\xff", b""], [b"\xff", b""]),
    ([np.arange(2), np.arange(1)], [[0, 1], [0]]),
])
def test_columns_of_any_kind(tmp_path, values, expected):
    write(tmp_path, [group(number, "?", answer([3], [True], "2"), given=value) for number, value in enumerate(values)])
    assert [row.get("given") for row in read(tmp_path)] == expected


def test_steps_of_different_columns_are_read_together(tmp_path):
    write(tmp_path, [group(0, "?", answer([3], [True], "2"), level=1)])
    write(tmp_path, [group(0, USER, answer([3], [True], "\ud83d"), other="x")], step=2)
    write(tmp_path, [group(0, "?", answer([3], [True], "2"), level="high")], step=3)
    pq.write_table(pa.table(OLD), tmp_path / "samples" / "step-000004.parquet")
    rows = list(read(tmp_path))
    assert [row["completion"] for row in rows] == ["2", "?", "2", " a", "b"]
    assert [row.get("level") for row in rows] == [1, None, "high", None, None]


def test_samples_of_old_runs_are_rows_and_prompts(tmp_path, tokenizer):
    (tmp_path / "samples").mkdir()
    pq.write_table(pa.table(OLD), tmp_path / "samples" / "step-000004.parquet")
    source = read(tmp_path)
    rows = [encode_record(row, tokenizer, vocab_size=49152, training=True) for row in source]
    expected = [{"prompt": "?", "completion": " a"}, {"messages": [*USER, *said("b")]}]
    assert [row.tokens.tolist() for row in rows] == [
        encode_record(each, tokenizer, vocab_size=49152, training=True).tokens.tolist() for each in expected]
    assert [prompt.text for prompt in read_prompts(source, tokenizer, vocab_size=49152, max_length=64)] == ["?", USER]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    groups = [group(0, "?", answer([3], [True], "2"))]
    write(tmp_path, groups)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="samples.* cannot be written"):
        write(tmp_path / "file", groups)
    with pytest.raises(IndexError):
        write(tmp_path, groups, step=2, advantages=np.zeros(0))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000001.parquet"]
