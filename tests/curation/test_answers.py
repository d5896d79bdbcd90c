"""Answers in a file: read back, added to, and whole whatever ended the last run."""

import pytest

from curation.answers import Answers
from errors import InputError


def test_what_is_put_is_there_again_and_half_a_line_is_not(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    answers = Answers(path)
    answers.put("a", {"text": "\u2028 \ud83d", "logps": [1 / 3]})
    answers.put("b", [1])
    assert answers["a"] == {"text": "\u2028 \ud83d", "logps": [1 / 3]}
    with path.open("ab") as file:
        file.write(b'{"key": "c", "val')
    again = Answers(path)
    assert ("a" in again, "c" in again, list(again.values())) == (True, False, [answers["a"], [1]])
    again.put("c", 3)
    assert (Answers(path)["c"], Answers(path)["b"]) == (3, [1])
    assert path.read_bytes().count(b"\n") == 3


def test_a_full_disk_is_a_line_and_leaves_whole_lines(tmp_path, monkeypatch):
    answers = Answers(tmp_path / "answers.jsonl")
    answers.put("a", 1)
    writer = answers._writer

    class Full:
        seek, truncate = writer.seek, writer.truncate

        def write(self, line):
            return writer.write(line[:5])

    answers._writer = Full()
    with pytest.raises(InputError, match="answers.jsonl: cannot be written .*No space left"):
        answers.put("b", 2)
    answers._writer = writer
    answers.put("c", 3)
    assert list(Answers(tmp_path / "answers.jsonl").values()) == [1, 3]


@pytest.mark.parametrize("line", ["\0\0\0", "{}", "[1]", '{"key": "a"}'])
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    Answers(path).put("a", 1)
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match="answers.jsonl:2: is no answer"):
        Answers(path)
