"""How long a run is: said once, in steps, epochs or tokens, and epochs are counted once for a run."""

import types

import pytest
import yaml

from cli.experiment import with_steps
from cli.flags import check_flags
from data.sources import DataSource
from errors import InputError
from scripts import pretrain, sft


@pytest.fixture
def flags(tmp_path):
    def make(script=sft, data=("d.jsonl",), **flags):
        return script.Config(model="m", data=tuple(map(DataSource, data)), output_dir=str(tmp_path / "run"), **flags)

    return make


@pytest.mark.parametrize(("script", "given", "line"), [
    (sft, {}, "give one of --max-steps and --num-epochs, which"),
    (sft, {"max_steps": 3, "num_epochs": 1.0}, "give one of --max-steps and --num-epochs, which"),
    (pretrain, {"max_tokens": 3, "num_epochs": 1.0}, "give one of --max-steps, --num-epochs and --max-tokens"),
    (sft, {"num_epochs": 0.0}, "--num-epochs must be above 0"), (sft, {"max_steps": -1}, "--max-steps must be above 0"),
    (sft, {"num_epochs": 1.0, "data": ("a", "b")}, "--num-epochs: several sources are mixed by weight")])
def test_a_run_is_as_long_as_is_said_once(flags, script, given, line):
    with pytest.raises(InputError, match=line):
        check_flags(flags(script, **given))


def test_one_of_them_is_enough(flags):
    for given in ({"max_steps": 3}, {"num_epochs": 0.5}):
        check_flags(flags(**given))
    check_flags(flags(pretrain, max_tokens=5))


@pytest.fixture
def streams(monkeypatch):
    """Of 2.5 steps an epoch; counts how often they were asked."""
    from data import epochs

    found = types.SimpleNamespace(length=16, counted=0)

    def count(*_):
        found.counted += 1
        return 2.5

    monkeypatch.setattr(epochs, "steps_per_epoch", count)
    return found


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 5), (3.0, 8), (0.1, 1)])
def test_epochs_are_steps(flags, streams, capsys, epochs, steps):
    assert with_steps(flags(num_epochs=epochs), streams).max_steps == steps
    assert f"--num-epochs {epochs:g} is {steps} steps: 2.5 go" in capsys.readouterr().out


def test_tokens_are_steps_and_steps_are_steps(flags, streams):
    assert with_steps(flags(pretrain, max_tokens=8 * 16 * 3 + 5), streams).max_steps == 3
    assert with_steps(flags(max_steps=7), streams).max_steps == 7
    with pytest.raises(InputError, match="--max-steps 25\\d+ is too large"):
        with_steps(flags(num_epochs=1e12), streams)


def test_epochs_are_counted_once_for_a_run(flags, streams, tmp_path):
    (tmp_path / "run").mkdir()
    stored = {"num_epochs": 2.0, "max_steps": 6, "bad_rows": "error"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(stored))
    assert (with_steps(flags(num_epochs=2.0), streams).max_steps, streams.counted) == (6, 0)
    assert (with_steps(flags(num_epochs=4.0), streams).max_steps, streams.counted) == (10, 1)
    assert (with_steps(flags(num_epochs=2.0, bad_rows="skip"), streams).max_steps, streams.counted) == (5, 2)
