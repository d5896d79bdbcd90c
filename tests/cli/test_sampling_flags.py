"""Flags of sampling: one set for all scripts, with one meaning and one set of checks."""

import importlib

import pytest

from cli.parsing import parse
from cli.values import check_values
from errors import InputError
from rollouts.sampling import make_controls
from scripts import generate
from sharding.settings import SamplingMesh

BASE = {"generate": ["--model", "m", "--prompt", "p"],
        "grpo": ["--model", "m", "--data", "d.jsonl", "--rewards", "math", "--max-steps", "1", "--output-dir", "o"]}
PREFIX = {"generate": "--", "grpo": "--sampling."}


def config(script, *flags):
    module = importlib.import_module(f"scripts.{script}")
    return parse(module.Config, [*BASE[script], *flags], "")


@pytest.mark.parametrize("script", BASE)
@pytest.mark.parametrize(("flag", "value"), [
    ("top-k", 5), ("top-p", 0.5), ("min-p", 0.1), ("repetition-penalty", 1.2), ("presence-penalty", -0.5),
    ("frequency-penalty", 0.25)])
def test_a_flag_is_a_control(script, flag, value):
    sampling = config(script, f"{PREFIX[script]}{flag}", str(value)).sampling
    assert sampling.controls(0.7) == make_controls(0.7, **{flag.replace("-", "_"): value})
    assert sampling.controls(0.7) != make_controls(0.7)
    assert f"note: --sampling.{flag} change the distribution that is drawn from" in sampling.note


def test_nothing_is_noted_of_what_changes_no_distribution():
    assert config("grpo", "--sampling.stop", "ab", "--sampling.mesh.tensor", "2").sampling.note is None


@pytest.mark.parametrize("script", BASE)
@pytest.mark.parametrize(("flag", "value"), [
    ("top-k", "-1"), ("top-p", "0"), ("top-p", "1.5"), ("min-p", "-0.1"), ("min-p", "2"), ("repetition-penalty", "0"),
    ("repetition-penalty", "-1"), ("repetition-penalty", "1e9"), ("presence-penalty", "129"),
    ("frequency-penalty", "-1e30"), ("top-p", "nan"), ("repetition-penalty", "inf"), ("presence-penalty", "-inf"),
    ("frequency-penalty", "nan"), ("min-p", "nan"), ("top-k", "99999999999"), ("presence-penalty", "1e39")])
def test_what_leaves_no_distribution_is_one_line(script, flag, value):
    made = config(script, f"{PREFIX[script]}{flag}={value}")
    with pytest.raises(InputError, match=rf"^(--(sampling\.)?)?{flag} ") as refused:
        check(made)
    assert "\n" not in str(refused.value)


def check(made):
    check_values(made)
    made.sampling.controls(made.temperature)


def test_the_sampling_mesh_has_one_name_everywhere(tmp_path):
    flags = ("--sampling.mesh.tensor", "2", "--sampling.mesh.data", "4")
    assert config("grpo", *flags).sampling.mesh == config("generate", *flags).sampling_layout.mesh == SamplingMesh(4, 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("top-k: 3\nsampling: {mesh: {tensor: 2}}\nmesh: {fsdp: 2}\n")
    made = config("generate", "--config", str(recipe))
    assert (made.sampling.top_k, made.sampling_layout.mesh, made.mesh.fsdp) == (3, SamplingMesh(-1, 2), 2)


def test_what_nothing_reads_at_temperature_0_is_refused_and_penalties_are_read():
    check_values(config("generate", "--temperature", "0", "--repetition-penalty", "1.3"))
    with pytest.raises(InputError, match="--top-k 3: nothing reads it at --temperature 0"):
        check_values(config("generate", "--temperature", "0", "--top-k", "3"))


def test_biases():
    assert generate.parse_bias(("5=-2.5", "0=1e3")) == {5: -2.5, 0: 1000.0}
    for text in ("5", "=3", "a=1", "5=", "5=x", "1.5=2", "5:2"):
        with pytest.raises(InputError, match="the form is TOKEN=NUMBER"):
            generate.parse_bias((text,))


@pytest.mark.parametrize(("bias", "words"), [("999=1", "a logit bias has token 999"), ("5=nan", "must be a number"),
                                             ("-1=2", "has token -1"), ("5=1e30", "must be a number from -1e+08")])
def test_a_bias_that_the_model_cannot_have_is_one_line(bias, words):
    from rollouts.requests import checked

    with pytest.raises(InputError, match=words.replace("+", r"\+")):
        checked_bias(checked, generate.parse_bias((bias,)))


def checked_bias(checked, bias):
    import jax
    from tiny import CONFIG

    from rollouts.engine import Request

    return checked(Request([1], 1, jax.random.key(0), logit_bias=bias), CONFIG, 256)
