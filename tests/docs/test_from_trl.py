"""docs/from_trl.md has the table that a script answers by, which names flags that there are."""

import importlib
import re
from pathlib import Path

import pytest

from cli.parsing import _kinds, parse, parse_recipe
from cli.trl_names import ANSWERS, TRL
from errors import InputError
from scripts import generate, grpo, sft

PAGE = (Path(__file__).parents[2] / "docs" / "from_trl.md").read_text()
SCRIPTS = ("sft", "dpo", "kto", "reward", "pretrain", "grpo", "ppo", "online_dpo")
REQUIRED = ["--model", "m", "--data", "d", "--output-dir", "o", "--max-steps", "3"]


def test_the_page_has_the_table():
    rows = re.findall(r"(?m)^\| (`--[^|]*) \| (.*) \|$", PAGE)
    assert [(" ".join(re.findall(r"`--([\w-]+)`", names)), answer) for names, answer in rows] == [*ANSWERS]
    assert len(TRL) == sum(len(names.split()) for names, _ in ANSWERS), "a name stands there once"


def flags_of(script):
    def walk(kind, prefix=""):
        for name, each in _kinds(kind).items():
            flag = prefix + name.replace("_", "-")
            yield flag
            if hasattr(each, "__dataclass_fields__"):
                yield from walk(each, f"{flag}.")

    return set(walk(importlib.import_module(f"scripts.{script}").Config))


def test_what_is_named_is_a_flag():
    known = {flag for script in SCRIPTS for flag in flags_of(script)}
    named = re.findall(r"--([a-z][\w.-]*\w)", " ".join(TRL.values()) + PAGE.partition("## Flags")[0])
    assert set(named) - {"use_peft"} <= known
    assert not {name for name in TRL if all(name in flags_of(script) for script in SCRIPTS)}, "it is a flag of ours"


@pytest.mark.parametrize("name", ["per-device-train-batch-size", "num-train-epochs", "bf16"])
@pytest.mark.parametrize("script", [sft, grpo])
def test_their_name_gets_ours_in_one_line(script, name, tmp_path):
    for given in ([f"--{name}", "2"], [f"--{name.replace('-', '_')}=2"], [f"--no-{name}"]):
        with pytest.raises(InputError) as error:
            parse(script.Config, [*REQUIRED, *given], "")
        assert str(error.value) == f"--{name} is a flag of TRL or transformers; here: {TRL[name]} (docs/from_trl.md)"
    (tmp_path / "recipe.yaml").write_text(f"{name.replace('-', '_')}: 2\n")
    with pytest.raises(InputError, match=rf"recipe.yaml: --{name} is a flag of TRL"):
        parse_recipe(script.Config, tmp_path / "recipe.yaml")


def test_a_flag_of_ones_own_is_taken():
    assert parse(generate.Config, ["--model", "m", "--prompt", "p", "--top-p", "0.5"], "").sampling.top_p == 0.5
    with pytest.raises(InputError, match="here: --sampling.top-p"):
        parse(grpo.Config, [*REQUIRED, "--rewards", "length", "--top_p", "0.5"], "")
    assert parse(sft.Config, [*REQUIRED, "--lora.alpha", "8", "--lora.rank", "2"], "").lora.alpha == 8
