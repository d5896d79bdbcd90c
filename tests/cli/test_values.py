"""Numbers that their types do not hold, and settings that nothing reads beside the others: one line everywhere."""

import copy
import dataclasses
import importlib
import math
import re
from typing import Annotated

import pytest

from cli.parsing import parse
from cli.policy import make_objective, with_kl
from cli.values import check_values, walk
from data.sources import DataSource, open_in_order, open_mixture
from errors import InputError, shown
from objectives.grpo import configure

RUN = ["--data", "d.jsonl", "--output-dir", "o"]
BASE = {
    "sft": ["--model", "m", *RUN, "--max-steps", "9"], "dpo": ["--model", "m", *RUN, "--max-steps", "9"],
    "kto": ["--model", "m", *RUN, "--max-steps", "9"], "reward": ["--model", "m", *RUN, "--max-steps", "9"],
    "grpo": ["--model", "m", *RUN, "--max-steps", "9", "--rewards", "length"],
    "online_dpo": ["--model", "m", *RUN, "--max-steps", "9", "--rewards", "length"],
    "ppo": ["--model", "m", *RUN, "--max-steps", "9", "--rewards", "length"],
    "pretrain": ["--model", "m", *RUN, "--max-steps", "9"], "generate": ["--model", "m", "--prompt", "p"],
    "score": ["--model", "m", "--data", "d", "--output", "o"], "export": ["--model", "m", "--output", "o"],
    "train_tokenizer": ["--data", "d", "--output", "o"],
    "evaluate": ["--model", "m", "--tasks", "t", "--output-dir", "o"], "quickstart": [], "identity": [],
    "arithmetic": [], "compare": [], "expert_iteration": [], "recount": RUN, "report": ["runs/a"],
    "curate": [*RUN, "--stages", "s"], "serve": ["--model", "m"],
    "check_accelerator": []}
EVAL = ["--eval-data", "e.jsonl"]
OBJECTIVE = ["--objective", "m:f"]


def config(script, *flags):
    made = parse(importlib.import_module(f"scripts.{script}").Config, [*BASE[script], *flags], "")
    check_values(made)
    return made


def line(script, *flags):
    with pytest.raises(InputError) as error:
        config(script, *flags)
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------------- settings read by nothing

UNREAD = [
    ("sft", "--eval-every 5", "without --eval-data", EVAL), ("sft", "--keep-best", "without --eval-data", EVAL),
    ("sft", "--lora.alpha 8", "at lora.rank 0", ["--lora.rank", "4"]),
    ("grpo", "--lora.dropout 0.1", "at lora.rank 0", ["--lora.rank", "4"]),
    ("dpo", "--lora.targets q v", "at lora.rank 0", ["--lora.rank", "4"]),
    ("sft", "--too-long drop --packing concat-then-split", "concat-then-split", ["--packing", "first-fit"]),
    ("pretrain", "--too-long drop", "concat-then-split", ["--packing", "first-fit"]),
    ("sft", "--optimizer.b1 0.8 --optimizer.name muon --lora.rank 4", "muon", ["--lora.rank", "0"]),
    ("dpo", "--loss ipo --objective m:f", "beside --objective", None),
    ("dpo", "--beta 0.2 --objective m:f", "beside --objective", None),
    ("dpo", "--wpo --objective m:f", "beside --objective", None),
    ("dpo", "--alpha 0.3", "with the divergence reverse_kl", ["--divergence", "alpha_divergence"]),
    ("dpo", "--label-smoothing 0.1 --loss ipo", "in the loss ipo", ["--loss", "ipo,robust=0.1"]),
    ("dpo", "--divergence forward_kl --loss sft", "in the loss sft", ["--loss", "sigmoid"]),
    ("dpo", "--ld-alpha 0.5 --loss sft=1,sft_token=1", "in the loss sft, sft_token", ["--loss", "sft=1,apo_zero=1"]),
    ("dpo", "--sync.alpha 0.5", "without --sync.every", ["--sync.every", "3"]),
    ("grpo", "--epsilon-high 0.28 --objective m:f", "beside --objective", None),
    ("grpo", "--loss-aggregation constant --objective m:f", "beside --objective", None),
    ("grpo", "--algorithm.mask-truncated --objective m:f", "beside --objective", None),
    ("grpo", "--algorithm.kl k2 --objective m:f", "beside --objective",
     ["--algorithm.kl-in", "reward", "--beta", "0.1"]),
    ("grpo", "--beta 0.1 --objective m:f", "beside --objective", ["--algorithm.kl-in", "reward"]),
    ("grpo", "--rollouts.num-eval-samples 4", "without --eval-data", EVAL),
    ("sft", "--evaluate.limit 5", "without --evaluate.tasks", ["--evaluate.tasks", "gsm8k"]),
    ("generate", "--top-k 5 --temperature 0", "at --temperature 0", ["--temperature", "1e-29"]),
    ("generate", "--min-p 0.1 --temperature 1e-40", "at --temperature 0", ["--temperature", "1"]),
    ("generate", "--too-long drop", "without --data", ["--data", "d.jsonl"]),
    ("export", "--dtype bfloat16 --format adapter", "with --format adapter", ["--format", "merged"])]


@pytest.mark.parametrize(("script", "flags", "reason", "otherwise"), UNREAD, ids=lambda each: str(each)[:60])
def test_a_setting_that_nothing_reads_is_refused(script, flags, reason, otherwise):
    flag, _, value = flags.partition(" ")
    value = value.split(" --")[0] if value and not value.startswith("--") else "true"
    found = line(script, *flags.split())
    assert found.startswith(f"{flag} {value}: nothing reads it ")
    assert reason in found
    if otherwise is not None:
        config(script, *flags.split(), *otherwise)


def test_a_group_without_a_prefix_of_its_own_is_named_so():
    @dataclasses.dataclass(frozen=True)
    class Group:
        size: int = 0
        depth: int = 0

        def unread(self):
            return {} if self.size else {"depth": "without size"}

    @dataclasses.dataclass(frozen=True)
    class Outer:
        plain: Annotated[Group, "no prefix"] = Group()
        group: Group = Group()

    for changed, flag in ((Outer(Group(0, 3)), "--depth"), (Outer(group=Group(0, 3)), "--group.depth")):
        with pytest.raises(InputError, match=f"^{flag} 3: nothing reads it without size"):
            check_values(changed)


@pytest.mark.parametrize("script", ["sft", "grpo", "score", "train_tokenizer"])
def test_a_flag_that_needs_values_has_one(script):
    assert line(script, "--data") == "--data has no value; give one or several"


@pytest.mark.parametrize("script", BASE)
def test_what_is_declared_unread_are_flags(script):
    """A field that was renamed would be checked no more."""
    made = config(script, *(OBJECTIVE if script in ("dpo", "grpo", "ppo", "online_dpo") else ()))
    assert getattr(made, "unread", dict)().keys() <= walk(made).keys()


def test_what_the_loss_settings_of_grpo_do_not_read():
    def refused(*flags):
        with pytest.raises(InputError) as error:
            make_objective(config("grpo", *flags), configure)
        return str(error.value)

    assert "importance_sampling_cap is of the correction" in refused("--importance-sampling-cap", "2")
    assert "importance_sampling_floor is of the correction" in refused("--importance-sampling-floor", "0.5")
    assert "epsilon_low is of the loss clip" in refused("--algorithm.loss", "cispo", "--epsilon-low", "0.1")
    assert "kl says nothing while beta is 0" in refused("--algorithm.kl", "k2")


def test_the_kl_in_the_reward_is_k1():
    def kl(*flags):
        return with_kl(config("grpo", "--beta", "0.1", *flags)).algorithm.kl

    assert (kl(), kl("--algorithm.kl-in", "reward")) == ("k3", "k1")
    assert kl("--algorithm.kl-in", "reward", "--algorithm.kl", "k3") == "k3"
    assert kl("--algorithm.kl", "k1") == "k1"
    in_loss = make_objective(config("grpo", "--beta", "0.1", "--algorithm.kl", "k2"), configure)
    in_reward = make_objective(config("grpo", "--beta", "0.1", "--algorithm.kl-in", "reward"), configure)
    assert (in_loss.keywords["kl"], in_loss.keywords["beta"]) == ("k2", 0.1)
    assert "beta" not in in_reward.keywords


def test_a_weight_is_a_mixtures():
    one, other = DataSource("tests/cli/none.jsonl", 0.5), DataSource("tests/cli/none.jsonl")
    for open_all, entries in ((open_in_order, [other, one]), (open_mixture, [one])):
        with pytest.raises(InputError, match=r"^data tests/cli/none.jsonl@0.5: a weight mixes several sources"):
            open_all(entries)
    with pytest.raises(InputError, match="cannot be read"):
        open_mixture([one, other])


# ----------------------------------------------------------------------------------------------------------- numbers

def changed(made, name, value):
    """The flags with a number put in the place of another, as if the command line had it."""
    group, dot, rest = name.partition(".")
    old = getattr(made, group)
    object.__setattr__(made := copy.copy(made), group, changed(old, rest, value) if dot else value)
    return made


@pytest.mark.parametrize("script", BASE)
def test_a_number_that_its_type_does_not_hold_is_one_line(script):
    made = config(script)
    numbers = {path: flag for path, flag in walk(made).items() if type(flag.value) in (int, float)}
    for path, (name, field, number) in numbers.items():
        whole = (2**64, -(2**70), field.metadata.get("largest", 2**31 - 1) + 1)
        real = (math.inf, math.nan, 1e39, *(() if field.metadata.get("counts_as_0") else (1e-320,)))
        for value in whole if isinstance(number, int) else real:
            with pytest.raises(InputError, match=rf"^--{re.escape(name)} .*{re.escape(str(value))}"):
                check_values(changed(made, path, value))


@pytest.mark.parametrize(("script", "flags", "words"), [
    ("generate", "--top-k 3000000000", "--top-k 3000000000 is too large"),
    ("grpo", "--sampling.top-k 3000000000", "--sampling.top-k 3000000000 is too large"),
    ("sft", "--max-steps 99999999999999999999", "--max-steps 99999999999999999999 is too large"),
    ("sft", "--seed 4294967296", "--seed 4294967296 is too large"),
    ("pretrain", "--max-length 3000000000", "--max-length 3000000000 is too large"),
    ("dpo", "--ld-alpha inf", "--ld-alpha must be a finite number, not inf"),
    ("kto", "--beta 1e-320", "--beta 1e-320 is 0 in float32"),
    ("sft", "--lora.rank 4 --lora.alpha -1", "lora.alpha -1.0 must be above 0")])
def test_the_flag_is_named(script, flags, words):
    assert words in line(script, *flags.split())


def test_what_may_be_larger_is_not_refused():
    assert config("pretrain", "--max-tokens", str(10**13)).max_tokens == 10**13
    assert config("sft", "--seed", str(2**32 - 1)).seed == 2**32 - 1


def test_values_are_shown_as_people_write_them():
    sources = DataSource("a.jsonl", 2.0), DataSource("b", columns={"prompt": "q"})
    assert shown(sources) == "a.jsonl@2 b (prompt from q)"
    assert [shown(each) for each in (None, True, 0.5, "x", ["q", "v"], (), {"rank": 4, "targets": ("q",)})] == [
        "none", "true", "0.5", "x", "q v", "none", "rank 4 targets q"]


def test_every_script_is_here():
    from pathlib import Path

    others = {"__init__", "cli", "plan"}  # whose flags are those of the script that it plans
    assert {path.stem for path in Path("scripts").glob("*.py")} - others == BASE.keys()
    assert all(dataclasses.is_dataclass(importlib.import_module(f"scripts.{name}").Config) for name in BASE)
