"""Bad input: one line that names the culprit, a non-zero exit status, nothing overwritten."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def refused(run_script):
    def run(*arguments):
        status, _, err = run_script(*arguments)
        assert status == 1
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def sft(refused, tiny_model, token_rows, tmp_path):
    """sft with flags changed; checks that no run directory was left behind."""

    def run(**changes):
        flags = {"model": tiny_model, "data": token_rows, "output_dir": str(tmp_path / "run"), "max_steps": 2} | changes
        arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        err = refused("sft", *arguments)
        assert not (tmp_path / "run").exists()
        return err

    return run


def test_missing_model(sft):
    assert "model 'nowhere': no such file or folder" in sft(model="nowhere")


def test_missing_data(sft, tmp_path):
    assert "none.jsonl: cannot be read" in sft(data=tmp_path / "none.jsonl")


def test_malformed_row(sft, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"tokens": [1, 2, 3]}\n{"tokens": [1,\n')
    assert "bad.jsonl:2: malformed JSON" in sft(data=tmp_path / "bad.jsonl")


def test_row_without_an_assistant_turn(sft, write_rows):
    data = write_rows("chats.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    err = sft(data=data, model="smollm2-135m-instruct")
    assert "chats.jsonl:1" in err
    assert "assistant" in err


def test_row_longer_than_the_context(sft, write_rows):
    data = write_rows("long.jsonl", [{"tokens": [1] * 129}])
    assert "long.jsonl:1: 129 tokens are longer than the 128 allowed" in sft(data=data)


def test_max_length_beyond_the_context(sft):
    assert "--max-length 129 must be from 2 to the model's context of 128" in sft(max_length=129)


def test_mesh_that_does_not_fit(sft):
    assert "mesh slice=1 data=3 fsdp=1 tensor=1 does not fit 8 device(s)" in sft(**{"mesh.data": 3})


def test_mesh_that_does_not_divide(sft, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"vocab_size": 127}))
    tensors = load_file(tmp_path / "odd" / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:127].copy()
    save_file(tensors, tmp_path / "odd" / "model.safetensors")
    err = sft(model=tmp_path / "odd", data=_small(tmp_path), **{"mesh.data": 4, "mesh.tensor": 2})
    assert "embedding: axis 'vocab' of size 127 does not divide over 2 devices" in err


def _small(tmp_path):
    (tmp_path / "small.jsonl").write_text('{"tokens": [1, 2, 3]}\n')
    return tmp_path / "small.jsonl"


def test_nan_in_the_weights(sft, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "spoilt")
    tensors = load_file(tmp_path / "spoilt" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "spoilt" / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in sft(model=tmp_path / "spoilt")


def test_unknown_objective(sft):
    assert "'objectives.sft:none' names no function" in sft(objective="objectives.sft:none")


def test_what_is_found_late_leaves_no_directory_either(sft):
    assert "warmup_steps 9 must be fewer" in sft(**{"optimizer.warmup_steps": 9})
    assert "--seed must be from 0" in sft(seed=-1)


def test_changed_rows_are_another_experiment(refused, run_script, tiny_model, write_rows, tmp_path):
    flags = ("--model", tiny_model, "--output-dir", tmp_path / "run", "--max-steps", 1)
    assert run_script("sft", *flags, "--data", write_rows("rows.jsonl", [{"tokens": [1, 2, 3]}]))[0] == 0
    err = refused("sft", *flags, "--data", write_rows("rows.jsonl", [{"tokens": [1, 2, 4]}]))
    assert "holds another experiment (sha256: the rows of the data are others); choose" in err


def test_prompts_that_do_not_fit_are_named_first(refused, run_script, tiny_model, write_rows, tmp_path):
    data = write_rows("prompts.jsonl", [{"tokens": [1]}, {"tokens": [1] * 120}])
    err = refused("generate", "--model", tiny_model, "--data", data, "--max-new-tokens", 9)
    assert "prompts.jsonl:2: a prompt of 120 tokens, where 1 to 119 fit" in err
    err = refused("generate", "--model", tiny_model, "--data", data, "--max-new-tokens", 2_000_000_000)
    assert "--max-new-tokens leaves no room for a prompt in the model's context; lower it" in err
    status, out, _ = run_script("generate", "--model", tiny_model, "--data", write_rows("one.jsonl", [{"tokens": [1]}]),
                                "--max-new-tokens", 2, "--temperature", "1e-320")
    assert (status, "None" in out) == (0, False)
    assert re.search(r"^\d+( \d+)?\n---$", out, re.MULTILINE)


def test_prompts_that_do_not_fit_are_left_out_of_what_is_generated(run_script, tiny_model, write_rows, tmp_path):
    data = write_rows("prompts.jsonl", [{"tokens": [1] * 120, "id": 0}, {"tokens": [1], "id": 1}])
    status, out, err = run_script("generate", "--model", tiny_model, "--data", data, "--max-new-tokens", 9,
                                  "--num-samples", 2, "--too-long", "drop", "--output", tmp_path / "out.jsonl")
    assert status == 0, err
    assert "1 of 2 prompts are longer than the 119 tokens that fit" in out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [1, 1]


def test_an_adapter_that_would_do_nothing(sft):
    assert "--lora.alpha must be above 0" in sft(**{"lora.rank": 4, "lora.alpha": 0})


@pytest.mark.parametrize("flag", ["max_steps", "batch_size", "num_microbatches", "learning_rate"])
def test_numbers_that_must_be_positive(sft, flag):
    assert f"--{flag.replace('_', '-')} must be above 0" in sft(**{flag: 0})


def test_another_experiments_directory(refused, run_script, tiny_model, token_rows, tmp_path):
    flags = ("--model", tiny_model, "--data", token_rows, "--output-dir", tmp_path / "run", "--max-steps", 1)
    assert run_script("sft", *flags)[0] == 0
    before = _written(tmp_path / "run")
    err = refused("sft", *flags, "--learning-rate", "0.5")
    assert "holds another experiment (learning_rate: 0.0001 there, 0.5 now)" in err
    assert before == _written(tmp_path / "run")
    assert run_script("sft", *flags)[0] == 0  # the same command again finds all done


def _written(run):
    """When each file was, but for the one that says who holds the directory."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}


def test_a_directory_of_something_else(refused, tiny_model, token_rows, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    err = refused("sft", "--model", tiny_model, "--data", token_rows, "--output-dir", tmp_path / "mine",
                  "--max-steps", 1)
    assert "exists and is no run of Temper" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_bad_recipes(refused, tmp_path):
    def recipe(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return refused("sft", "--config", tmp_path / "recipe.yaml")

    assert "unknown key 'learning_rat'; known are data, output_dir" in recipe("learning_rat: 1\n")
    assert "unknown key 'lora.rnk'; known are rank, alpha" in recipe("lora: {rnk: 1}\n")
    others = "model: m\ndata: d.jsonl\noutput-dir: o\n"
    assert "--max-steps: invalid literal for int() with base 10: 'many'" in recipe(others + "max_steps: many\n")
    err = recipe(others + "max-steps: 1\noptimizer: {schedule: step}\n")
    assert "invalid choice 'step' for argument '--optimizer.schedule'" in err
    assert "'cosine', 'linear', 'wsd', 'constant'" in err
    assert "with " in err
    assert "recipe.yaml: " in err
    assert "--max-length" in recipe(others + "max-steps: 1\nmax-length: abc\n")
    assert "--lora.rank" in recipe(others + "max-steps: 1\nlora: {rank: 1.5}\n")
    assert "recipe.yaml: lora.rank: true, as YAML reads it" in recipe(others + "lora: {rank: true}\n")
    assert "recipe.yaml: output-dir: false, as YAML reads it" in recipe("output-dir: no\n")
    for value in ("4", "", "[rank, 4]"):
        assert "recipe.yaml: lora: a mapping of flags was expected" in recipe(f"lora: {value}\n")
    assert "--max-steps" in recipe(others)
    assert "lora.targets qq: choose from q, k" in recipe(others + "max-steps: 1\nlora: {targets: qq}\n")
    assert "a mapping of flags was expected" in recipe("- 1\n")
    assert "not readable as YAML" in refused("sft", "--config", tmp_path / "none.yaml")
    (tmp_path / "utf16.yaml").write_text("model: m\n", "utf-16")
    assert "utf16.yaml: not readable as YAML" in refused("sft", "--config", tmp_path / "utf16.yaml")


def test_outputs_that_cannot_be_written(refused, tiny_model, token_rows, tmp_path):
    err = refused("score", "--model", tiny_model, "--data", token_rows, "--output", tmp_path / "no" / "s.jsonl")
    assert "no file can be written there" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists and is not empty" in refused("export", "--model", tiny_model, "--output", tmp_path / "full")


def test_adapter_of_a_run_without_lora(refused, tiny_model, tmp_path):
    err = refused("export", "--model", tiny_model, "--output", tmp_path / "out", "--format", "adapter")
    assert "needs a run trained with LoRA" in err
    for scale, words in ((0.5, "trained with LoRA"), (1.5, "from 0 (the base model) to 1")):
        assert words in refused("export", "--model", tiny_model, "--output", tmp_path / "out", "--lora-scale", scale)
    assert not list(tmp_path.glob("out*"))


def test_generate_needs_one_kind_of_prompt(refused, tiny_model, token_rows):
    assert "either --prompt TEXT or --data" in refused("generate", "--model", tiny_model)
    assert "temperature must be 0 or more" in refused("generate", "--model", tiny_model, "--data", token_rows,
                                                       "--temperature", -1)
    assert "the model has no tokenizer" in refused("generate", "--model", tiny_model, "--prompt", "Hi")
