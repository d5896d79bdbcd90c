"""Recipes become flags, later flags win, old names are refused with new ones, and what is refused is one line."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.flags import check_flags, check_online_flags
from cli.parsing import parse, parse_recipe, take_value
from cli.policy import make_objective
from cli.renamed import EXPORT, GENERATE, GRPO
from cli.values import check_values
from data.messages import parse_template_kwargs
from data.sources import DataSource
from errors import InputError
from objectives.grpo import configure
from scripts import dpo, export, generate, grpo, ppo, pretrain, report, sft

BASE = ["--model", "m", "--data", "d.jsonl", "--output-dir", "o", "--max-steps", "3"]


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return ["--config", str(tmp_path / "recipe.yaml")]

    return write


def test_a_recipe_is_its_flags(recipe):
    made = parse(sft.Config, recipe("model: m\ndata: [a.jsonl@2, b.jsonl]\noutput-dir: o\nmax_steps: 3\n"
                                    "learning-rate: 2e-4\noptimizer: {b1: 0, warmup_steps: 2}\nlora:\n  rank: 4\n"
                                    "  targets: [q, v]\nkeep-best: true\nprofile: null\n"
                                    "mesh: {data: -1, rules: [mlp=none]}\n"), "")
    flags = ["--model", "m", "--data", "a.jsonl@2", "b.jsonl", "--output-dir", "o", "--max-steps", "3",
             "--learning-rate", "2e-4", "--optimizer.b1", "0", "--optimizer.warmup-steps", "2", "--lora.rank", "4",
             "--lora.targets", "q", "v", "--keep-best", "--mesh.data", "-1",
             "--mesh.rules", "mlp=none"]
    assert made == parse(sft.Config, flags, "")
    assert (made.data, made.learning_rate, made.profile) == ((DataSource("a.jsonl", 2.0), DataSource("b.jsonl")), 2e-4,
                                                            None)


def test_later_flags_win_wherever_the_recipe_stands(recipe):
    text = "model: m\ndata: [a.jsonl, b.jsonl]\noutput-dir: o\nmax-steps: 3\nwpo: true\nlora: {rank: 4}\n"
    for flags in (["--lora.rank", "8", "--data", "c.jsonl", "--no-wpo", *recipe(text)],
                  [*recipe(text), "--lora.rank=8", "--data", "c.jsonl", "--no-wpo"]):
        made = parse(dpo.Config, flags, "")
        assert (made.lora.rank, made.data, made.wpo) == (8, (DataSource("c.jsonl"),), False)
    assert parse(dpo.Config, recipe(text), "").wpo


def test_columns_are_renamed_in_a_recipe_and_on_the_command_line(recipe):
    columns = {"prompt": "question", "completion": "the answer, all"}
    source = DataSource("hf:openai/gsm8k/main:train[:100]", 0.5, columns)
    made = parse(sft.Config, [*BASE, *recipe(
        "data:\n  - source: hf:openai/gsm8k/main:train[:100]\n    weight: 0.5\n"
        "    columns: {prompt: question, completion: 'the answer, all'}\n")], "")
    assert made.data == (DataSource("d.jsonl"),), "the flag wins"
    text = ("model: m\noutput-dir: o\nmax-steps: 3\ndata:\n  source: hf:openai/gsm8k/main:train[:100]\n  weight: 0.5\n"
            "  columns: {prompt: question, completion: 'the answer, all'}\n")
    assert parse(sft.Config, recipe(text), "").data == (source,)
    assert parse(sft.Config, [*BASE, "--data", '{source: x.jsonl, columns: {prompt: "q: x"}}'], "").data == (
        DataSource("x.jsonl", columns={"prompt": "q: x"}),)


@pytest.mark.parametrize(("text", "line"), [
    ("{source: x, colums: {}}", "unknown key 'colums'"), ("{weight: 2}", "no source"), ("{source: [", "not readable"),
    ("{source: x, columns: [a]}", "give our name: their name"), ("{x.jsonl}", "unknown key 'x.jsonl'")])
def test_a_source_that_cannot_be_read(text, line):
    with pytest.raises(InputError, match=line):
        parse(sft.Config, [*BASE, "--data", text], "")


def test_values_that_may_be_left_out_are_typed_by_the_parser(recipe):
    made = parse(pretrain.Config, recipe("data: d\noutput-dir: o\nmax-tokens: 5\nmodel: null\ntokenizer: t\n"
                                         "architecture: {qk-norm: true, tie_embeddings: false, embed-dim: 64}\n"), "")
    assert (made.model, made.max_tokens, made.max_steps) == (None, 5, None)
    sizes = made.architecture
    assert (sizes.qk_norm, sizes.tie_embeddings, sizes.embed_dim) == (True, False, 64)


def test_flags_of_sampling_have_no_prefix_where_sampling_is_all_there_is(recipe):
    text = "model: m\nprompt: hi\ntop-k: 5\nstop: ['--', x, -a, -1, '']\nmax-new-tokens: 7\n"
    made = parse(generate.Config, [*recipe(text), "--min-p", "0.1"], "")
    assert (made.sampling.top_k, made.sampling.min_p, made.max_new_tokens) == (5, 0.1, 7)
    assert made.sampling.stop == ("--", "x", "-a", "-1", "")


@pytest.mark.parametrize(("config", "renamed"), [(grpo.Config, GRPO), (generate.Config, GENERATE),
                                                 (export.Config, EXPORT)])
def test_an_old_name_gets_one_line_with_the_new_one(config, renamed, capsys):
    with pytest.raises(SystemExit):
        parse(config, ["--help"], "")
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    for old, new in renamed.items():
        for arguments in ([f"--{old}", "1"], [f"--{old.replace('-', '_')}=1"]):
            with pytest.raises(InputError, match=rf"^--{old} is called --{new} now; write that$"):
                parse(config, arguments, "", renamed)
        assert f"--{new}" in known, "the new name is a flag"
        assert f"--{old}" not in known


def test_flags_of_all_scripts_are_taken_out_with_their_value():
    for given in (["--cache", "off"], ["--cache=off"]):
        assert take_value(["--a", *given, "--b"], "--cache", "a folder") == ("off", ["--a", "--b"])
    assert take_value(["--caches", "off"], "--cache", "a folder") == (None, ["--caches", "off"])
    for bad in (["--cache"], ["--cache", "--model", "m"]):
        with pytest.raises(InputError, match="^--cache needs a folder$"):
            take_value(bad, "--cache", "a folder")
    with pytest.raises(InputError, match="^--cache is given more than once; give it once$"):
        take_value(["--cache", "a", "--b", "--cache=off"], "--cache", "a folder")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_the_parser_refuses_is_one_line_whatever_the_terminal_writes(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(InputError, match="^Error parsing --max-steps: [^;]* base 10: '---'; --help"):
        parse(sft.Config, [*BASE, "--max-steps=---"], "")


def test_the_negative_of_an_old_name_is_known_too():
    with pytest.raises(InputError, match="^--mask-truncated is called --algorithm.mask-truncated now"):
        parse(grpo.Config, ["--no-mask-truncated"], "", GRPO)


def test_old_names_in_a_recipe_are_refused_too(recipe):
    with pytest.raises(InputError, match="--max-draws is called --dynamic-sampling-tries now"):
        parse(grpo.Config, recipe("max-draws: 3\n"), "", GRPO)


@pytest.mark.parametrize(("flags", "line"), [
    (["--learning-rat", "1"], "Unrecognized options: --learning-rat"), (["--lora.rank", "1.5"], "--lora.rank"),
    (["--max-steps", "many"], "invalid literal for int"), (["--packing", "tight"], "invalid choice 'tight'"),
    (["--learning-rate"], "--learning-rate"), (["more"], "more"), (["--lora.rank", "-1"], "lora.rank -1 must be")])
def test_flags_that_are_refused_in_one_line(flags, line, capsys):
    with pytest.raises(InputError) as error:
        parse(sft.Config, [*BASE, *flags], "")
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not set("│╭─") & set(str(error.value))
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_is_named_in_one_line():
    with pytest.raises(InputError, match="^Missing from .*--data .*--output-dir STR; --help"):
        parse(sft.Config, ["--model", "m"], "")


def test_a_recipe_with_flags_of_its_callers(recipe):
    [_, path] = recipe("model: m\ndata: d\noutput-dir: o\nmax-steps: 3\n")
    made = parse_recipe(sft.Config, path, max_steps=7, output_dir=None)
    assert (made.max_steps, made.output_dir) == (7, "o")


@pytest.mark.parametrize("path", sorted({*Path("configs").glob("*.yaml")} - {Path("configs/best_answers.yaml")}),
                         ids=lambda path: path.stem)
def test_the_recipes_are_read(path):
    """All but that of scripts.curate, which tests/scripts/test_expert_iteration.py reads."""
    script = {"quickstart": sft, "curate": sft, "identity": dpo, "pretrain": pretrain, "gsm8k_ppo": ppo,
              "gsm8k_ppo_smoke": ppo}.get(path.stem, grpo)
    made = parse_recipe(script.Config, path)
    check_flags(made)
    check_values(made)
    if script in (grpo, ppo):
        check_online_flags(made)
        script.check(made)
        make_objective(made, configure)


@pytest.mark.parametrize("script", ["grpo", "generate", "export"])
def test_scripts_know_their_old_names(script):
    """Through the script itself, in a process of its own."""
    old, new = next(iter({"grpo": GRPO, "generate": GENERATE, "export": EXPORT}[script].items()))
    done = subprocess.run([sys.executable, "-m", f"scripts.{script}", f"--{old}", "1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: --{old} is called --{new} now; write that\n")


def test_template_kwargs_are_a_mapping_in_a_recipe_and_in_a_flag(recipe):
    for arguments in (recipe("chat_template_kwargs: {enable_thinking: false, budget: 3}\n"),
                      ["--chat-template-kwargs", '{"enable_thinking": false, "budget": 3}']):
        made = parse(sft.Config, [*arguments, *BASE], "")
        assert parse_template_kwargs(made.chat_template_kwargs) == {"enable_thinking": False, "budget": 3}
    for text in ("{", "enable_thinking", "[1]"):
        with pytest.raises(InputError, match="not a mapping; the form is"):
            parse_template_kwargs(text)


def test_what_is_given_without_a_flag_is_no_group():
    assert parse(report.Config, ["a", "b", "--text"], "").runs == ("a", "b")
    with pytest.raises(InputError, match="^--report-to is a flag of TRL"):
        parse(report.Config, ["a", "--report-to", "wandb"], "")
