"""scripts.generate: its output grows in order, is gone on with by the same command, and is refused to another."""

import fcntl
import json
import random
import shutil
import time

import pytest
from processes import WAIT, launched

from scripts import generate


@pytest.fixture
def rows(write_rows):
    draw = random.Random(0)
    start = [draw.randrange(128) for _ in range(60)]
    return write_rows("rows.jsonl", [
        {"tokens": start[: draw.randrange(3, 60)] + [draw.randrange(128)] * 5, "id": each} for each in range(9)])


@pytest.fixture
def flags(tiny_model, rows):
    """27 completions, of which a block has 20, 10 at a time."""
    return ("--model", tiny_model, "--data", rows, "--num-samples", 3, "--max-new-tokens", 9, "--num-slots", 10,
            "--seed", 5)


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(generate, "BLOCK", 2)


def test_what_was_ended_anywhere_goes_on_to_the_same_bytes(run_script, flags, short_blocks, tmp_path):
    whole, other = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    status, out, err = run_script("generate", *flags, "--output", whole)
    assert (status, out) == (0, f"27 completions: {whole}\n"), err
    text = whole.read_bytes()
    lines = text.splitlines(keepends=True)
    assert [json.loads(line)["id"] for line in lines] == [each for each in range(9) for _ in range(3)]
    shutil.copy(f"{whole}.config.yaml", f"{other}.config.yaml")
    for end in (sum(map(len, lines[:13])) + 20, sum(map(len, lines[:21])), len(text)):
        other.write_bytes(text[:end])
        assert run_script("generate", *flags, "--output", other)[:2] == (0, f"27 completions: {other}\n")
        assert other.read_bytes() == text


def test_rows_come_as_they_are_made(run_script, flags, tmp_path, monkeypatch):
    from rollouts.engine import Engine

    out, sizes, step = tmp_path / "out.jsonl", [], Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: sizes.append(out.read_bytes().count(b"\n")) or step(engine))
    assert run_script("generate", *flags, "--output", out)[0] == 0
    assert len(set(sizes)) > 2
    assert sizes == sorted(sizes)


def test_other_flags_are_refused(run_script, flags, tmp_path):
    out = tmp_path / "out.jsonl"
    flags = (*flags[:4], *flags[8:], "--max-new-tokens", 1, "--output", out)
    assert run_script("generate", *flags)[0] == 0
    before = out.read_bytes()
    for more, words in ((("--temperature", 0.5), "temperature: 1 there, 0.5 now"),
                        (("--top-k", 4), "sampling.top_k: 0 there, 4 now"),
                        (("--num-slots", 3), "num_slots: 10 there, 3 now")):
        status, _, err = run_script("generate", *flags, *more)
        assert (status, err.count("\n")) == (1, 1)
        assert f"--output {out} holds rows of another command ({words})" in err
        assert out.read_bytes() == before


def test_other_rows_other_weights_and_files_of_others_are_refused(run_script, tiny_model, write_rows, tmp_path):
    out, model = tmp_path / "out.jsonl", tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def complete(rows):
        data = write_rows("rows.jsonl", rows)
        status, _, err = run_script("generate", "--model", model, "--data", data, "--max-new-tokens", 1,
                                    "--output", out)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == status
        return "".join(errors)

    assert not complete([{"tokens": [1, 2, 3]}])
    assert "another command (rows: " in complete([{"tokens": [1, 2, 3], "id": 7}])
    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2] ^= 1
    weights.write_bytes(changed)
    assert "another command (weights: " in complete([{"tokens": [1, 2, 3]}])
    shutil.copy(f"{tiny_model}/model.safetensors", weights)
    with out.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being written by another process" in complete([{"tokens": [1, 2, 3]}])
    assert not complete([{"tokens": [1, 2, 3]}])
    (tmp_path / "out.jsonl.config.yaml").unlink()
    assert "no out.jsonl.config.yaml says of what command it is" in complete([{"tokens": [1, 2, 3]}])
    out.unlink()
    assert not complete([{"tokens": [9]}])


def test_a_row_that_json_or_utf8_cannot_hold_as_it_is(run_script, tiny_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"tokens": [1, 2], "text": "\\ud83d"}\n')
    out = tmp_path / "out.jsonl"
    assert run_script("generate", "--model", tiny_model, "--data", tmp_path / "rows.jsonl", "--max-new-tokens", 1,
                      "--output", out)[0] == 0
    assert json.loads(out.read_text())["text"] == "\ud83d"


def test_numbers_that_are_not_finite_are_counted(run_script, tiny_model, write_rows, tmp_path, monkeypatch):
    from training.runs import Pretrained

    load = Pretrained.load

    def broken(opened, mesh, **compute):
        model, variables = load(opened, mesh, **compute)
        return model, {"params": variables["params"] | {"embedding": variables["params"]["embedding"] * float("nan")}}

    monkeypatch.setattr(Pretrained, "load", broken)
    out = tmp_path / "out.jsonl"
    status, _, err = run_script("generate", "--model", tiny_model, "--data", write_rows("one.jsonl", [{"tokens": [1]}]),
                                "--max-new-tokens", 1, "--output", out)
    assert status == 0
    assert "warning: 1 completions are cut short" in err
    assert json.loads(out.read_text())["finish_reason"] == "error"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_killed_processes_go_on(flags, tmp_path, count):
    flags = (*flags[:4], "--num-samples", 12, "--max-new-tokens", 60, "--num-slots", 2, "--dtype", "float32")
    mesh = ("--mesh.fsdp", 2) if count == 2 else ()
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    with launched("generate", *flags, *mesh, "--output", whole, count=count) as processes:
        [process.communicate(timeout=WAIT) for process in processes]
    rows, kills = 0, 0
    while rows < 108:
        with launched("generate", *flags, *mesh, "--output", killed, count=count) as processes:
            deadline = time.monotonic() + WAIT
            wanted = rows + random.randint(5, 50)
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                if killed.exists() and killed.read_bytes().count(b"\n") >= min(wanted, 107):
                    kills += 1
                    break
                time.sleep(0.01)
        rows = killed.read_bytes().count(b"\n")
    with launched("generate", *flags, *mesh, "--output", killed, count=count) as processes:
        printed = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, printed
    assert kills >= 2
    assert killed.read_bytes() == whole.read_bytes()
