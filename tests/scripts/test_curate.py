"""scripts.curate and scripts.recount: what they leave, what they refuse, and that nothing is done twice."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from curation.recount import recount
from data.sources import DataSource, open_source
from errors import InputError
from files import only_one


@pytest.fixture
def data(write_rows):
    return (write_rows("a.jsonl", [{"text": f"{'x' * (number % 12)}", "source": "web"} for number in range(30)]),
            write_rows("b.jsonl", [{"text": f"y{number}", "likes": number} for number in range(10)]))


@pytest.fixture
def recipe(tmp_path):
    def write(*stages, **bounds):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"max_removal": bounds or {"default": 1.0}, "stages": list(stages)}))
        return path

    return write


STAGES = ({"curated:shorter": {"than": 10}}, "curated:distinct", {"shuffle": {"seed": 3}})


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_folder_of_rows_becomes_kept_dropped_and_a_card(run_script, data, recipe, tmp_path, kind):
    out = tmp_path / "out"
    flags = ("--data", *data, "--stages", recipe(*STAGES), "--output-dir", out, "--format", kind)
    status, said, err = run_script("curate", *flags)
    assert status == 0, err
    assert "curated.distinct: 20 of 36 rows are kept" in said
    kept = list(open_source(DataSource(str(out / f"kept.{kind}"))))
    assert sorted((row["source"], row["row"]) for row in kept) == [
        *((data[0], number) for number in range(10)), *((data[1], number) for number in range(10))]
    assert [row["row"] for row in kept] != sorted(row["row"] for row in kept)
    assert {row.get("source_in_data") for row in kept} == {"web", None}
    assert {row["stage"] for row in kept} == {"data"}
    card = (out / "card.md").read_text()
    assert f"| {data[0]} | 30 | 10 | 33.3% |" in card
    assert yaml.safe_load(card.partition("```yaml")[2].partition("```")[0])["stages"][0] == STAGES[0]
    assert {path.name for path in out.iterdir()} == {f"kept.{kind}", "dropped", "cache", "card.md", "counts.json",
                                                     "profile.json", "report.html"}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run_script("curate", *flags)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    assert run_script("recount", "--data", *data, "--output-dir", out)[:2] == (
        0, "40 read + 0 made = 20 kept + 20 dropped; no row is lost, and none is there twice\n")


def test_a_folder_is_of_one_run_at_a_time_and_of_one_recipe(run_script, data, recipe, tmp_path):
    out = tmp_path / "out"
    flags = ("--data", *data, "--output-dir", out, "--stages")
    assert run_script("curate", *flags, recipe(*STAGES))[0] == 0
    with only_one(out):
        status, _, err = run_script("curate", *flags, recipe(*STAGES))
        assert (status, "is being written by another process" in err, err.count("\n")) == (1, True, 1)
    assert run_script("curate", *flags, recipe("curated:distinct", default=0.1))[0] == 1
    status, _, err = run_script("recount", "--data", *data, "--output-dir", out)
    assert (status, "of a scripts.curate that has ended" in err) == (1, True)
    assert run_script("curate", *flags, recipe("curated:distinct"))[0] == 0
    assert [path.name for path in (out / "dropped").iterdir()] == ["curated.distinct.parquet"]
    assert run_script("recount", "--data", *data, "--output-dir", out)[0] == 0


@pytest.mark.parametrize(("change", "words"), [
    (lambda rows: rows[1:], "and counts.json says"), (lambda rows: [rows[1], *rows[1:]], "is there 2 times"),
    (lambda rows: [{**rows[0], "row": 77}, *rows[1:]], "is neither kept nor dropped")])
def test_what_is_lost_is_found_by_counting_again(run_script, data, recipe, tmp_path, change, words):
    out = tmp_path / "out"
    assert run_script("curate", "--data", *data, "--stages", recipe(*STAGES[:2]), "--output-dir", out)[0] == 0
    rows = [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]
    (out / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    status, _, err = run_script("recount", "--data", *data, "--output-dir", out)
    assert (status, err.count("\n")) == (1, 1)
    assert words in err


def unlist(path):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"stages": [stage | {"dropped": None} for stage in found["stages"]]}))


TAMPERED = [
    ("counts.json", lambda path: path.write_text("{}"), "of a scripts.curate that has ended"),
    ("counts.json", lambda path: path.write_text('{"kept": "kept.jsonl", "stages": [1]}'), "that has ended"),
    ("counts.json", unlist, "that has ended"), ("counts.json", lambda path: path.write_bytes(b"\xff"), "has ended"),
    ("kept.jsonl", lambda path: path.write_text('{"text": "x"}\n'), "kept.jsonl:1: source null, row null"),
    ("kept.jsonl", lambda path: path.write_text('{"source": "a", "row": "1"}\n'), 'row "1" and sample 0 name no row'),
    ("kept.jsonl", lambda path: path.write_text("{"), "kept.jsonl:1: malformed JSON"),
    ("kept.jsonl", lambda path: path.unlink(), "cannot be read"),
    ("dropped/curated.distinct.parquet", lambda path: path.write_bytes(b"PAR1"), "no sound Parquet file"),
    ("dropped/curated.distinct.parquet", lambda path: path.write_bytes(path.read_bytes()[:-40]), "no sound Parquet"),
    ("dropped/curated.distinct.parquet", lambda path: pq.write_table(pq.read_table(path).drop(["row"]), path),
     "row null and sample 0"),
    ("dropped/curated.distinct.parquet", lambda path: path.unlink(), "is missing")]


def test_files_that_were_tampered_with_are_a_line(run_script, data, recipe, tmp_path):
    out = tmp_path / "out"
    flags = ("--data", *data, "--output-dir", out)
    assert run_script("curate", *flags, "--stages", recipe(*STAGES[:2]))[0] == 0
    for number, (name, change, words) in enumerate(TAMPERED):
        copy = shutil.copytree(out, tmp_path / str(number))
        change(copy / name)
        with pytest.raises(InputError) as raised:
            recount(copy, {str(data[0]): 30, str(data[1]): 10})
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
    (out / "counts.json").write_text("[]")
    assert run_script("curate", *flags, "--stages", recipe(*STAGES[:2]))[0] == 0
    assert run_script("recount", *flags)[0] == 0
    (out / "profile.json").write_text("[]")
    status, _, err = run_script("curate", *flags, "--stages", recipe(*STAGES[:2]))
    assert (status, err.count("\n"), "profile.json is not as --dry-run left it" in err) == (1, 1, True)


def test_what_was_kept_may_be_curated_again_and_again(run_script, data, recipe, tmp_path):
    """No column takes another's name, and no file of another format is left to be taken for the new one."""
    given, out = data[0], tmp_path / "0"
    for number in range(3):
        out = tmp_path / str(number)
        for kind in ("parquet", "jsonl") if number == 2 else ("jsonl",):
            assert run_script("curate", "--data", given, "--stages", recipe("curated:distinct"), "--output-dir", out,
                              "--format", kind)[0] == 0
        assert [path.name for path in out.glob("kept.*")] == ["kept.jsonl"]
        given = out / "kept.jsonl"
    row = json.loads(given.read_text().splitlines()[3])
    assert (row["source_in_data_in_data_in_data"], row["source_in_data_in_data"], row["source_in_data"]) == (
        "web", str(data[0]), str(tmp_path / "0/kept.jsonl"))
    assert (row["source"], row["row"], row["row_in_data_in_data"]) == (str(tmp_path / "1/kept.jsonl"), 3, 3)


def test_what_removes_too_much_is_refused_and_gone_on_from_when_allowed(run_script, data, recipe, tmp_path):
    flags = ("--data", *data, "--output-dir", tmp_path / "out")
    status, said, err = run_script("curate", *flags, "--stages", recipe(*STAGES, default=0.5))
    assert (status, err.count("\n")) == (1, 1)
    assert "stage curated.distinct removes 16 of 26 rows" in err
    assert "max_removal: {curated:distinct: 0.62}" in err
    assert pq.read_metadata(tmp_path / "out/dropped/curated.distinct.parquet").num_rows == 16
    bounds = {"default": 0.5, "curated:distinct": 0.62}
    assert run_script("curate", *flags, "--stages", recipe(*STAGES, **bounds))[0] == 0


@pytest.mark.parametrize(("stages", "words"), [
    (("exact_duplicat",), "no stage is called 'exact_duplicat'"), (({"sample": {"model": "x", "k": 3}},), "no key of"),
    ((), "a recipe is a mapping")])
def test_a_recipe_with_a_mistake_is_a_line(run_script, data, recipe, tmp_path, stages, words):
    status, _, err = run_script("curate", "--data", *data, "--stages", recipe(*stages), "--output-dir", tmp_path / "o")
    assert (status, err.count("\n")) == (1, 1)
    assert words in err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_model_answers_and_the_best_is_kept(run_script, write_rows, recipe, tmp_path):
    from chat_model import write_model

    from curation.answers import Answers

    model = write_model(tmp_path / "model")
    data = write_rows("rows.jsonl", [{"prompt": f"q {number}", "answer": str(number)} for number in range(20)])
    sample = {"model": str(model), "num_samples": 4, "rewards": "chat_model:digits", "max_new_tokens": 8,
              "temperature": [0.8, 1.0], "top_logprobs": 3}
    flags = ("--data", data, "--stages", recipe({"sample": sample}, {"best_of": {"keep": 1}}), "--output-dir")
    assert run_script("curate", *flags, tmp_path / "one")[0] == 0
    kept = [json.loads(line) for line in (tmp_path / "one/kept.jsonl").read_text().splitlines()]
    dropped = pq.read_table(tmp_path / "one/dropped/best_of.parquet").to_pylist()
    assert (len(kept), len(dropped)) == (20, 60)
    for row in kept:
        others = [json.loads(each["notes"])["reward"] for each in dropped if each["row"] == row["row"]]
        assert row["reward"] == sum(map(str.isdigit, row["completion"])) / max(1, len(row["completion"])) >= max(others)
        assert [max(top) for top in row["top_logps"]] == [top[0] for top in row["top_logps"]]
        assert {len(top) for top in row["top_tokens"]} == {3}
        assert len(row["top_tokens"]) == len(row["completion_tokens"])
    assert len({row["completion"] for row in kept}) > 10
    assert run_script("recount", "--data", data, "--output-dir", tmp_path / "one")[0] == 0

    # answers that are there are not asked for again, and the end is the same
    answers = (tmp_path / "one/cache/sample/answers.jsonl").read_bytes().splitlines(keepends=True)
    folder = tmp_path / "two/cache/sample"
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_bytes(b"".join(answers[:50]) + answers[50][:30])
    put, written = Answers.put, []
    Answers.put = lambda kept, key, value: written.append(key) or put(kept, key, value)
    try:
        assert run_script("curate", *flags, tmp_path / "two")[0] == 0
    finally:
        Answers.put = put
    assert len(written) == 30
    assert (tmp_path / "two/kept.jsonl").read_bytes() == (tmp_path / "one/kept.jsonl").read_bytes()
