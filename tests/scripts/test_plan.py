"""scripts.plan: the programs that are compiled are those of the scripts, and bad flags are one line."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from tiny import CONFIG

from errors import InputError
from models.config import PRESETS
from scripts import plan
from scripts.plan import ON_ROWS, ONLINE, make_program, read_flags, read_own

FLAGS = ["--model", "qwen3-0.6b", "--batch-size", "8", "--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2"]
ROWS = ["--max-length", "128"]
SAMPLED = ["--max-new-tokens", "128", "--group-size", "4", "--rollouts.num-slots", "8"]
PRETRAIN = ["--tokenizer", "none", "--architecture.preset", "qwen3-0.6b", *FLAGS[2:]]

TINY = dataclasses.replace(CONFIG, num_kv_heads=4, qkv_bias=False)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "qwen3-0.6b", TINY)


def programs(script, arguments, prompt_length=32):
    config = dataclasses.replace(read_flags(script, arguments), attention="xla")
    first = make_program(jax.devices(), script, config, prompt_length, 0)
    return [first, *(make_program(jax.devices(), script, config, prompt_length, number)
                     for number in range(1, first.of))]


GRADIENT, UPDATE = "policy: gradient of a micro-batch", "policy: update"
SAMPLING = ["sampling: prefill", "sampling: a token in every slot"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("script", "arguments", "names"), [
    slow("sft", [*FLAGS, *ROWS, "--packing", "first-fit"], ["update"]),
    slow("pretrain", [*PRETRAIN, *ROWS, "--z-loss", "1e-4"], ["update"]),
    ("dpo", [*FLAGS, *ROWS], ["update", "reference"]),
    slow("dpo", [*FLAGS, *ROWS, "--keep-reference"], ["update"]),
    slow("dpo", [*FLAGS, *ROWS, "--sync.every", "5"], ["update", "reference"]),
    slow("reward", [*FLAGS, *ROWS, "--lora.rank", "4"], ["update"]),
    slow("grpo", [*FLAGS, *SAMPLED], [GRADIENT, UPDATE, *SAMPLING]),
    slow("grpo", [*FLAGS, *SAMPLED, "--beta", "0.1", "--num-minibatches", "2"],
     [GRADIENT, UPDATE, "scoring of a micro-batch", *SAMPLING]),
    slow("online_dpo", [*FLAGS, *SAMPLED], ["update", "reference", *SAMPLING]),
    slow("ppo", [*FLAGS, *SAMPLED[:2], "--lora.rank", "4", "--critic.lora.rank", "4"],
     [GRADIENT, UPDATE, "critic: gradient of a micro-batch", "critic: update", "scoring of a micro-batch",
      "values of a micro-batch", *SAMPLING])])
def test_the_programs_of_a_step_can_be_traced(script, arguments, names):
    found = programs(script, arguments)
    assert [each.name for each in found] == names
    for each in found if script in ON_ROWS else found[:1]:
        each.function.trace(*each.arguments)


@pytest.mark.slow
def test_each_program_knows_what_else_is_there():
    from planning.program import held

    gradient, *_, decode = programs("grpo", [*FLAGS, *SAMPLED])
    beside = {each.name for each in held(gradient.resident)}
    assert {"embedding", "0/attn/keys"} <= beside
    assert "params/embedding" not in beside  # an argument
    assert "params/embedding" in {each.name for each in held(decode.resident)}


def test_the_step_is_the_scripts(monkeypatch, tmp_path):
    """State, batch and step of a real run, by shape, type and place."""
    from scripts import sft
    from training import loop

    rows = [{"tokens": list(range(1, 40)), "loss_mask": [0, *[1] * 38]}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {}

    def train(state, step, open_batches, run, placement, *_):
        batch = placement.put(next(open_batches(None)), placement.local_rows())
        seen.update(arguments=(state, batch), text=step.lower(state, batch).as_text())

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr("cli.experiment.load_model", made_up)
    monkeypatch.setattr("training.runs.open_policy", lambda name: Opened(tmp_path))
    arguments = [*FLAGS, "--max-steps", "1", "--data", str(tmp_path / "rows.jsonl"), "--output-dir",
                 str(tmp_path / "run"), "--max-length", "40", "--dtype", "bfloat16", "--num-microbatches", "2"]
    sft.main(read_flags("sft", arguments))
    [planned] = programs("sft", arguments)
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), seen["arguments"])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), planned.arguments) == real
    assert planned.function.lower(*planned.arguments).as_text() == seen["text"]


@dataclasses.dataclass
class Opened:
    tokenizer: Path
    config = TINY


def made_up(flags, opened, layout):
    from cli.shapes import shaped_model
    from models.architecture import random_params

    model = shaped_model(flags, opened.config, layout)
    return model, random_params(model.config, jax.random.key(0), layout)


@pytest.mark.parametrize(("arguments", "message"), [
    (["prtrain"], "'prtrain' is no script that is planned; there are sft, pretrain, dpo, reward, grpo"),
    (["sft", *FLAGS], "give --topology"),
    (["sft", "--topology"], "--topology needs a chip and its topology"),
    (["sft", "--topology", "", *FLAGS], "--topology : no chip '' is known; there are v5e, v6e, v5p, tpu7x"),
    (["sft", "--topology", "v9:2x2", *FLAGS], "--topology v9:2x2: no chip 'v9' is known"),
    (["sft", "--topology", "v5e", *FLAGS], "--topology v5e: give a chip and its topology, such as v5p:2x2x2"),
    (["sft", "--topology", "v5e:2x-2", *FLAGS], "--topology v5e:2x-2: give a chip and its topology"),
    (["sft", "--topology", "v5e:2x2", "--topology=v5e:4x4", *FLAGS], "--topology is given more than once"),
    (["sft", "--topology", "v5e:2x2", "--slices", "0"], "--slices 0: give a number from 1 on"),
    (["sft", "--topology", "v5e:2x2", "--slices", ""], "--slices : give a number from 1 on"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--json", "/nowhere/a.json"], "--json /nowhere/a.json: no file can be"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--json", "/"], "--json /: no file can be written there"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--json", ""], "no file can be written there"),
    (["sft", "--topology", "v5e:2x2", "--prompt-length", "5"], "--prompt-length is of scripts that sample"),
    (["sft", "--topology", "v5e:2x2"], "--model"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--batch-size", "0"], "--batch-size must be above 0"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--remat", "some"], "invalid choice 'some' for argument '--remat'"),
    (["dpo", "--topology", "v5e:2x2", *FLAGS, "--sync.every", "2", "--reference", "x"], "--sync.every: a reference"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--max-steps", "3", "--num-epochs", "1"], "give one of --max-steps"),
    (["sft", "--topology", "v5e:2x2", *FLAGS, "--libtpu", "/nowhere"], "pip install --no-deps --target /nowhere")])
def test_bad_flags_are_one_line_before_anything_is_compiled(arguments, message, monkeypatch):
    monkeypatch.setattr("planning.planner.compile_for", None)
    with pytest.raises(InputError) as error:
        plan.main(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_own_flags_are_taken_off(capsys):
    own, rest = read_own(["grpo", "--topology=v5e:2x2", "--quick", "--model", "m", "--prompt-length", "64", "--search"])
    assert (own.topology, own.quick, own.search, own.prompt_length) == ("v5e:2x2", True, True, 64)
    assert rest == ["--model", "m"]
    plan.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*ON_ROWS, *ONLINE))
