"""Recipes over rows: nothing is lost, what was ended goes on, and processes change no bit."""

import json
import sys

import pyarrow.parquet as pq
import pytest

import curation.dependencies as dependencies
import curation.run as running
from curation.output import write_kept
from curation.recipe import parse_recipe
from curation.rows import DataRows, fingerprint
from curation.run import run_stages
from curation.runners import make_spread
from data.sources import DataSource
from errors import InputError

TEXTS = [f"{'x' * (number % 12)} {number % 40}" for number in range(300)]


@pytest.fixture
def rows(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, texts in zip(files, (TEXTS[:200], TEXTS[200:])):
        file.write_text("".join(json.dumps({"text": text, "nothing": None, "x": 1 / 3}) + "\n" for text in texts))
    return DataRows([DataSource(str(file)) for file in files])


def run(rows, output, stages, processes=1, **bounds):
    recipe = parse_recipe({"max_removal": {"default": 1, **bounds}, "stages": stages})
    left, counts = run_stages(rows, recipe, output, fingerprint(rows), make_spread("local", processes))
    return list(left), counts


def files(output):
    return {path.name: path.read_bytes() for folder in ("work", "dropped") for path in (output / folder).iterdir()}


STAGES = [{"curated:shorter": {"than": 10}}, "curated:distinct"]


def test_every_row_is_kept_or_dropped_with_its_reason(rows, tmp_path):
    left, counts = run(rows, tmp_path / "out", STAGES)
    assert [row.record["text"] for row in left] == list(dict.fromkeys(text for text in TEXTS if len(text) < 10))
    dropped = {name: pq.read_table(tmp_path / f"out/dropped/curated.{name}.parquet").to_pylist()
               for name in ("shorter", "distinct")}
    places = [row.place for row in left] + [
        (each["source"], each["row"]) for stage in dropped.values() for each in stage]
    assert sorted(places) == sorted(row.place for row in rows)
    assert {each["reason"] for each in dropped["shorter"]} == {
        f"{len(text)} characters" for text in TEXTS if len(text) >= 10}
    for each in dropped["distinct"]:
        kept = next(row for row in left if row.place == (each["kept_instead"]["source"], each["kept_instead"]["row"]))
        assert kept.record["text"] == json.loads(each["record"])["text"]
    assert [sum(each.dropped.values()) for each in counts] == [len(each) for each in dropped.values()]
    assert left[0].record["x"] == 1 / 3
    assert left[0].notes["length"] == len(left[0].record["text"]) / 3


def test_processes_change_no_bit(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SHARE", 64)
    run(rows, tmp_path / "one", STAGES)
    run(rows, tmp_path / "two", STAGES, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_was_ended_goes_on_with_the_stage_it_was_in(rows, tmp_path, monkeypatch):
    run(rows, tmp_path / "whole", STAGES)
    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path / "ended", [STAGES[0], {"curated:distinct": {"fail_after": 99}}])
    before = {name: text for name, text in files(tmp_path / "ended").items() if not name.endswith(".partial")}
    ran, run_stage = [], running._run_stage
    monkeypatch.setattr(running, "_run_stage", lambda rows, step, *rest: ran.append(step.name) or run_stage(
        rows, step, *rest))
    run(rows, tmp_path / "ended", STAGES)
    assert ran == ["curated:distinct"]
    after = files(tmp_path / "ended")
    assert before.items() <= after.items()
    assert files(tmp_path / "whole").items() <= after.items()


def test_a_recipe_that_changed_goes_on_from_the_change(rows, tmp_path):
    run(rows, tmp_path / "out", STAGES)
    run(rows, tmp_path / "out", [{"curated:shorter": {"than": 5}}, "curated:distinct"])
    again, _ = run(rows, tmp_path / "out", STAGES)  # dropped/ is the other recipe's by now
    fresh, _ = run(rows, tmp_path / "fresh", STAGES)
    assert again == fresh
    assert files(tmp_path / "fresh").items() <= files(tmp_path / "out").items()


def test_a_stage_that_removes_too_much_of_a_source_ends_the_run(rows, tmp_path):
    with pytest.raises(InputError, match=r"distinct removes \d+ of \d+ rows of .*b.jsonl .*more than its max_removal "
                                         r"of 0.9"):
        run(rows, tmp_path / "out", STAGES, **{"curated:distinct": 0.9})
    assert pq.read_metadata(tmp_path / "out/dropped/curated.distinct.parquet").num_rows
    with pytest.raises(InputError, match="drops all 300 rows"):
        run(rows, tmp_path / "out", [{"curated:shorter": {"than": 0}}])


def test_a_stage_that_loses_a_row_is_found_out(rows, tmp_path):
    with pytest.raises(AssertionError, match="curated.lossy"):
        run(rows, tmp_path / "out", ["curated:lossy"])


@pytest.mark.parametrize("stage", ["doubles", "renames"])
def test_a_row_that_another_stands_for_is_found_out(rows, tmp_path, stage):
    """As many rows as before, of the same sources."""
    with pytest.raises(AssertionError, match=f"curated.{stage}"):
        run(rows, tmp_path / "out", [f"curated:{stage}"])
    with pytest.raises(InputError, match="stage curated.odd gives 'a row'; a stage gives each row back"):
        run(rows, tmp_path / "out", ["curated:odd"])
    with pytest.raises(InputError, match="stage curated:shapeless: its function gives None"):
        run(rows, tmp_path / "out", ["curated:shapeless"])


@pytest.mark.parametrize("names", [("a.jsonl", "a.jsonl"), ("a.jsonl", "./a.jsonl"), ("link.jsonl", "a.jsonl"),
                                   ("b.jsonl", "*.jsonl"), ("[al]*.jsonl",)])
def test_data_given_twice_is_refused_whatever_its_names(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    with pytest.raises(InputError, match="is given twice|is the same file as"):
        DataRows([DataSource(name) for name in names])


def test_lines_that_are_no_rows_are_dropped_where_the_recipe_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": \r\n\n[1]\n{"text": "\xff"}\nnull\n{"text": "b"}\r\n'
                     b'{"x": "y"}')
    source = DataSource(str(path), columns={"text": "text"})
    stages = ["unreadable", {"curated:shorter": {"than": 9}}]
    for processes in (1, 2):
        left, counts = run(DataRows([source], drops_unreadable=True), tmp_path / str(processes), stages, processes)
        assert [(row.index, row.record["text"]) for row in left] == [(0, "a"), (5, "b")]
        dropped = pq.read_table(tmp_path / f"{processes}/dropped/unreadable.parquet").to_pylist()
        assert [each["row"] for each in dropped] == [1, 2, 3, 4, 6]
        assert [json.loads(each["record"]).get("line") for each in dropped] == [
            '{"text": \r', "[1]", '{"text": "\\xff"}', "null", None]
        assert f"{path}:2: malformed JSON" in dropped[0]["reason"]
        assert "no column 'text'" in dropped[4]["reason"]
    with pytest.raises(InputError, match="a.jsonl:2: malformed JSON"):
        run(DataRows([source]), tmp_path / "out", stages[1:])
    with pytest.raises(InputError, match="stage unreadable removes 5 of 7 rows"):
        run(DataRows([source], drops_unreadable=True), tmp_path / "out", stages, unreadable=0.5)


def test_a_stage_whose_code_or_files_changed_is_done_again(rows, tmp_path, monkeypatch):
    """And those after it; what is left is as if there had been no run before."""
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    code = "def far(*, words: str):\n    import helper_of_far\n    return helper_of_far.stage\n"
    helper = ("from curation.stages import Drop\n\n\ndef stage(rows):\n"
              "    return (row if row.index < 90 else Drop(row, 'far') for row in rows)\n")
    (tmp_path / "mine/my_far.py").write_text(code)
    (tmp_path / "mine/helper_of_far.py").write_text(helper)
    words = tmp_path / "words.txt"
    words.write_text("a")
    ran, run_stage = [], running._run_stage
    monkeypatch.setattr(running, "_run_stage", lambda rows, step, *rest: ran.append(step.name) or run_stage(
        rows, step, *rest))
    stages = ["curated:distinct", {"my_far:far": {"words": str(words)}}, {"shuffle": {"seed": 1}}]

    def again():
        ran.clear()
        dependencies._hash_code.cache_clear()
        sys.modules.pop("helper_of_far", None)
        return len(run(rows, tmp_path / "out", stages)[0])

    assert (again(), len(ran)) == (90, 3)
    assert (again(), len(ran)) == (90, 0)
    (tmp_path / "mine/helper_of_far.py").write_text(helper.replace("90", "9"))
    assert (again(), ran) == (9, ["my_far:far", "shuffle"])
    words.write_text("another")
    assert (again(), ran) == (9, ["my_far:far", "shuffle"])
    (tmp_path / "mine/helper_of_far.py").write_text(helper)
    assert (again(), len(ran)) == (90, 2)
    assert (again(), len(ran)) == (90, 0)


def test_half_a_surrogate_pair_is_kept_and_dropped_by_its_escape(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "\\ud83d much longer"}\n')
    rows = DataRows([DataSource(str(tmp_path / "a.jsonl"))])
    left, _ = run(rows, tmp_path / "out", STAGES)
    write_kept(tmp_path / "kept.jsonl", left)
    assert json.loads((tmp_path / "kept.jsonl").read_text())["text"] == "\ud83d"
    dropped = pq.read_table(tmp_path / "out/dropped/curated.shorter.parquet").to_pylist()
    assert json.loads(dropped[0]["record"]) == {"text": "\ud83d much longer"}
    with pytest.raises(InputError, match="--format jsonl"):
        write_kept(tmp_path / "kept.parquet", left)


@pytest.mark.parametrize("text", ["", ".", "..", "/", "{", "{prompt}\n- a: b", "*.jsonl", "\0", "x" * 200_000, "http://x:1/v1",
                                  "hf:a/b", "[", "a:b:c", "no.such:thing", "json:loads", "{source: 3}", "{1: 2}"])
def test_any_text_may_stand_in_a_key(text):
    step = parse_recipe({"stages": [{"phrases": {"drop": [text]}}]}).steps[0]
    assert dependencies.state_of(step, "") == dependencies.state_of(step, "") != dependencies.state_of(step, "other")
