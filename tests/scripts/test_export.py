"""Exports: the base that an adapter names plus the adapter is what was trained; ends, tokenizer, processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from chat_model import write_model
from processes import ended, launched

from data.transformers_tokenizer import QWEN2
from models.pretrained import open_pretrained
from tests.fixtures.variants import cases

FIXTURES = Path(__file__).parents[1] / "fixtures"
LORA = ("--lora.rank", 4, "--lora.alpha", 8)


@pytest.fixture
def run(run_script, token_rows, tmp_path):
    def script(name, *flags):
        status, out, err = run_script(name, *flags)
        assert status == 0, err
        return out, err

    return script


@pytest.fixture
def sft(run, token_rows, tmp_path):
    def train(name, model, *more):
        run("sft", "--model", model, "--data", token_rows, "--output-dir", tmp_path / name, "--max-steps", 2,
            "--batch-size", 8, "--learning-rate", "3e-2", "--dtype", "float32", *more)
        return tmp_path / name

    return train


@pytest.fixture
def logps(run, token_rows, tmp_path):
    def scores(model):
        run("score", "--model", model, "--data", token_rows, "--output", tmp_path / "scores.jsonl", "--dtype",
            "float32")
        lines = (tmp_path / "scores.jsonl").read_text().splitlines()
        return np.concatenate([json.loads(line)["logps"] for line in lines])

    return scores


@pytest.fixture
def adapter(run, tmp_path):
    """Exports an adapter; its folder and its configuration."""
    def export(model, *more):
        run("export", "--model", model, "--output", tmp_path / "adapter", "--format", "adapter", *more)
        return tmp_path / "adapter", json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())

    return export


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_an_adapter_of_a_lora_run_on_a_lora_run(sft, adapter, logps, tiny_model, tmp_path):
    second = sft("second", sft("first", tiny_model, *LORA), "--lora.rank", 2, "--lora.targets", "q", "up")
    folder, config = adapter(second)
    assert config["base_model_name_or_path"] == str(Path(tiny_model).resolve())
    assert config["r"] == 6
    assert f"beginning with `{tmp_path / 'first'}`" in (folder / "README.md").read_text()
    np.testing.assert_allclose(logps(folder), logps(second), atol=1e-4)


@pytest.mark.slow
def test_an_adapter_of_a_run_on_an_adapter(sft, adapter, logps, tmp_path, write_rows):
    below = cases.write(tmp_path / "below", "adapter, rank_pattern")
    rows = write_rows("small.jsonl", [{"tokens": list(range(1 + at, 20 + at))} for at in range(9)])
    trained = sft("run", below, *LORA, "--data", rows)
    folder, config = adapter(trained, "--lora-scale", 0.5)
    assert config["base_model_name_or_path"] == str((tmp_path / "below" / "base").resolve())
    assert config["r"] == 12
    opened = open_pretrained(str(folder))
    assert opened.name == config["base_model_name_or_path"]
    assert opened.adapter[0].rank == 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a run of all weights", "gguf"])
def test_a_base_that_transformers_does_not_load_is_written_beside(kind, sft, adapter, logps, tiny_model, tmp_path,
                                                                  write_rows):
    rows = write_rows("small.jsonl", [{"tokens": list(range(1 + at, 20 + at))} for at in range(9)])
    base = FIXTURES / "gguf" / "F32.gguf" if kind == "gguf" else sft("full", tiny_model)
    trained = sft("run", base, *LORA, "--data", rows)
    folder, config = adapter(trained)
    assert config["base_model_name_or_path"] == str(tmp_path / "adapter" / "base")
    assert (folder / "base" / "model.safetensors").exists()
    (tmp_path / "rows.jsonl").write_text(Path(rows).read_text())
    np.testing.assert_allclose(logps(folder), logps(trained), atol=1e-4)
    np.testing.assert_allclose(logps(folder / "base"), logps(base), atol=1e-4)


def test_ends_are_in_the_configuration(run, tmp_path):
    model = write_model(tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "do_sample": True}))
    settings = read(model / "tokenizer_config.json") | {"bos_token": "#", "pad_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    run("export", "--model", model, "--output", tmp_path / "out")
    ids = {"bos_token_id": 5, "eos_token_id": [1, 7], "pad_token_id": 0}
    assert read(tmp_path / "out" / "generation_config.json") == ids
    assert ids.items() <= read(tmp_path / "out" / "config.json").items()
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_ends_of_a_model_without_a_tokenizer(run, tiny_model, tmp_path):
    run("export", "--model", tiny_model, "--output", tmp_path / "out", "--mesh.fsdp", 2, "--mesh.data", 4)
    given = read(Path(tiny_model) / "generation_config.json")
    assert read(tmp_path / "out" / "generation_config.json") == {
        name: value for name, value in given.items() if name.endswith("token_id") and value is not None}


def test_a_tokenizer_that_transformers_makes_anew_is_told(run, tmp_path):
    run("export", "--model", FIXTURES / "gguf" / "F32.gguf", "--output", tmp_path / "llama")
    model = tmp_path / "qwen2"
    cases.write_model(model, cases.ON)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "llama" / name, model / name)
    _, err = run("export", "--model", model, "--output", tmp_path / "out")
    assert "makes a Qwen2Tokenizer for a model of the family qwen2, which gives other ids" in err
    assert "warning" not in run("export", "--model", tmp_path / "llama", "--output", tmp_path / "again")[1]
    content = read(model / "tokenizer.json")
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
                "normalizer": {"type": "NFC"}}
    (model / "tokenizer.json").write_text(json.dumps(content))
    assert "warning" not in run("export", "--model", model, "--output", tmp_path / "qwens own")[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_two_processes_write_the_same_export(form, sft, run, tiny_model, tmp_path):
    trained = sft("run", tiny_model, *LORA)
    flags = ("--model", trained, "--format", form)
    with launched("export", *flags, "--output", tmp_path / "two", count=2, devices=2) as processes:
        printed = ended(processes)
    assert sorted(out.count(f"exported: {tmp_path / 'two'}\n") for out in printed) == [0, 1]
    run("export", *flags, "--output", tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
