"""What TensorBoard's files and wandb get, across a resume too, and that a trace is written."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

from errors import InputError
from training.trackers import StepProfiler, open_trackers, parse_steps


def _log(run, first, last, scale):
    tracker = open_trackers(("tensorboard",), run, first - 1 if first else 0)
    for step in range(first, last + 1):
        tracker.log(step, {"loss": scale * step, "eval/loss": None})
    tracker.close()


def _as_tensorboard_shows(folder):
    """{name: {step: value}} of all event files: a session's start drops what came before from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = {}
    for path in sorted(folder.iterdir()):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                shown = {name: {step: value for step, value in steps.items() if step < event.step}
                         for name, steps in shown.items()}
            for value in event.summary.value:
                assert event.step not in shown.setdefault(value.tag, {})
                shown[value.tag][event.step] = value.simple_value
    return shown


def _records(data):
    """TFRecords: length in 8 bytes, 4 of checksum, the record, 4 of checksum."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_shows_a_resumed_run_once(tmp_path, monkeypatch):
    clock = iter(range(10**9, 2 * 10**9))
    monkeypatch.setattr("time.time", lambda: next(clock))  # files are named by the second
    _log(tmp_path, 0, 7, scale=-1.0)  # killed before its first checkpoint
    _log(tmp_path, 0, 5, scale=1.0)
    _log(tmp_path, 4, 6, scale=10.0)
    shown = _as_tensorboard_shows(tmp_path / "tensorboard")
    assert shown == {"loss": {0: 0, 1: 1, 2: 2, 3: 3, 4: 40, 5: 50, 6: 60}}


def test_tensorboard_shows_texts_as_they_are(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    tracker = open_trackers(("tensorboard",), tmp_path, 0)
    tracker.log_text(3, "completions", "<b>*four*</b>\n# no heading \ud800")
    tracker.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    shown = [value.tensor.string_val[0].decode() for record in _records(file.read_bytes())
             for value in Event.FromString(record).summary.value]
    assert shown == ["    <b>*four*</b>\n    # no heading \\ud800\n"]


@pytest.mark.parametrize(("names", "installed", "opened"), [
    ((), True, True), ((), False, False), (("none",), True, False), (("tensorboard",), False, True)])
def test_tensorboard_is_on_where_it_is_installed(tmp_path, monkeypatch, names, installed, opened):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    open_trackers(names, tmp_path, 0).close()
    assert (tmp_path / "tensorboard").exists() == opened


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package: keeps what it is given."""
    fake = types.ModuleType("wandb")
    fake.Error, fake.calls = type("Error", (Exception,), {}), []

    def init(**arguments):
        fake.calls.append(arguments)
        return types.SimpleNamespace(log=lambda values, step: fake.calls.append((step, values)),
                                     finish=lambda: fake.calls.append("finish"))

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_under_the_id_of_the_run_directory(wandb, tmp_path):
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        tracker = open_trackers(("wandb",), tmp_path / folder, 2)
        tracker.log(3, {"loss": 0.5, "grad_norm": None})
        tracker.close()
    first, again, other = (call for call in wandb.calls if isinstance(call, dict))
    assert first == again
    assert first["id"] != other["id"]
    assert first["resume"] == "allow"
    assert wandb.calls[1:3] == [(3, {"loss": 0.5}), "finish"]


def test_what_keeps_wandb_from_starting_is_one_line(wandb, tmp_path, monkeypatch):
    def init(**_):
        raise wandb.Error("no API key\nmore")

    wandb.init = init
    with pytest.raises(InputError, match="no API key; run `wandb login`"):
        open_trackers(("wandb",), tmp_path, 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        open_trackers(("wandb",), tmp_path, 1)


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(InputError, match="'mlflow': choose from tensorboard, wandb"):
        open_trackers(("mlflow",), tmp_path, 1)


def test_only_process_0_tracks(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    open_trackers(("tensorboard",), tmp_path, 1).log(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_steps_of_a_profile():
    assert parse_steps("10:13") == (10, 13)
    for text in ("10", "13:10", "a:b", "0:2", ":", "1:2:3", "-1:2"):
        with pytest.raises(InputError, match="FIRST:LAST"):
            parse_steps(text)


def _steps(profiler, steps):
    waited = []
    for step in steps:
        profiler.before(step)
        y = jax.jit(lambda x: x @ x)(jnp.ones((8, 8)))
        profiler.after(step, lambda y=y, step=step: waited.append((step, jax.block_until_ready(y))[0]))
    profiler.close(lambda: waited.append("close"))
    return waited


@pytest.mark.parametrize(("steps", "seen", "waited"), [
    ((2, 3), range(1, 6), [3]),
    ((2, 9), range(1, 4), ["close"]),  # the run ends first
    ((2, 4), range(3, 6), [4]),  # resumed in between
    ((2, 4), range(5, 7), []),
    (None, range(1, 3), []),
])
def test_a_trace_of_the_chosen_steps(tmp_path, steps, seen, waited):
    assert _steps(StepProfiler(tmp_path, steps), seen) == waited
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == bool(waited)
