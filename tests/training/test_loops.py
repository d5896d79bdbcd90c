"""Both loops, of rows and of prompts, are stopped, fail and go on alike: as if nothing had happened, bit for bit."""

import contextlib
import functools
import itertools
import operator
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answered import answered
from same_run import assert_same_run, timeless
from tiny import one_device

from errors import InputError, Stopped
from evals.during import Benchmarks, parse_when
from evals.results import read_evaluation, write_evaluation
from rollouts.online import train_online
from sharding.placement import Placement
from training.checkpoints import finished_steps
from training.keeping import LoopConfig
from training.loop import train
from training.metrics import read_metrics
from training.state import TrainState
from training.watching import PATIENCE

STEPS = 7


class Numbers:
    """Endless batches of one number each; `at(number)` is called for each."""

    rows = (0,)

    def __init__(self, start, at):
        self._taken, self._at = start[0] if start else 0, at

    def __next__(self):
        self._at(self._taken)
        self._taken += 1
        return {"tokens": np.full((1, 2), self._taken, np.int32)}

    def position(self):
        return [self._taken]

    def close(self):
        pass


class OneStream(Numbers):
    """The same as the one stream of the rows of a batch."""

    def position(self):
        return {0: self._taken}


@jax.jit
def update(state, tokens):
    """What a step makes of its numbers: all that it reads has a say in the state."""
    noise = jax.random.normal(jax.random.fold_in(state.rng, state.step), (3,))
    weights = state.params["w"] * 0.9 + noise * jnp.sum(tokens)
    metrics = {"loss": jnp.sum(weights), "num_tokens": jnp.asarray(tokens.size), "skipped_updates": jnp.asarray(0)}
    return state.replace(step=state.step + 1, params={"w": weights}), metrics


def beginning(layout):
    return jax.device_put(TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(3)}, None, {"count": jnp.zeros(2)},
                                     jax.random.key(0)), layout.sharding())


def of_rows(run, config, evaluate, at, at_step, benchmarks=None):
    def step(state, batch):
        at_step(int(jax.device_get(state.step)) + 1)
        return update(state, batch["tokens"])

    return train(beginning(one_device()), step, lambda position: OneStream(position, at), run,
                 Placement(1, 1, one_device()), config, evaluate, benchmarks)


def of_prompts(run, config, evaluate, at, at_step, benchmarks=None, keep=lambda number: None):
    """A step draws one batch, two or three."""
    def step(state, prompts, number):
        drawn = sum(next(prompts)["tokens"] for _ in range(1 + number % 3))
        at_step(number)
        return *update(state, jnp.asarray(drawn)), lambda: keep(number) or {}

    return train_online(beginning(one_device()), step, lambda position: Numbers(position, at), run,
                        config, evaluate, benchmarks)


@pytest.fixture(params=[of_rows, of_prompts])
def loop(request):
    return request.param


def nothing(number):
    """Befalls."""


def go(loop, run, save_every=0, evaluate=None, at=nothing, at_step=nothing, steps=STEPS, benchmarks=None):
    run.mkdir(exist_ok=True)
    return loop(run, LoopConfig(steps, save_every, eval_every=2), evaluate, at, at_step, benchmarks)


class Longer(OneStream):
    """Batches of two tokens, three, one, two, ..."""

    def __next__(self):
        return {"tokens": np.ones((1, 1 + super().__next__()["tokens"][0, 0] % 3), np.int32)}


def test_a_token_costs_what_the_length_of_its_own_batch_makes_it_cost(tmp_path):
    config = LoopConfig(STEPS, 0, 0, flops_per_token=lambda length: 1e12 * length)
    train(beginning(one_device()), lambda state, batch: update(state, batch["tokens"]),
          lambda position: Longer(position, nothing), tmp_path, Placement(1, 1, one_device()), config)
    costs = [line["tflops_per_second"] / line["tokens_per_second"] for line in read_metrics(tmp_path)]
    assert costs == pytest.approx([2, 3, 1, 2, 3, 1, 2])


class Number:
    """A metric that is told when it is read."""

    def __init__(self, value, tell):
        self._value, self._tell = value, tell

    def __array__(self, dtype=None, copy=None):
        self._tell()
        return np.asarray(self._value)


def test_the_devices_never_wait_for_the_host(tmp_path):
    """The metrics of a step are read once the next one is under way."""
    order, numbers = [], itertools.count(1)

    def step(state, batch):
        state, metrics = update(state, batch["tokens"])
        number = next(numbers)
        order.append(f"step {number}")
        told = Number(0, lambda: order.append(f"read {number}"))
        return state, metrics | {"loss": told}

    train(beginning(one_device()), step, lambda position: OneStream(position, nothing), tmp_path,
          Placement(1, 1, one_device()), LoopConfig(4, 0, 0))
    assert order == ["step 1", "step 2", "read 1", "step 3", "read 2", "step 4", "read 3", "read 4"]


def programs(folder):
    """How often a program was executed while a profile was taken."""
    [file] = folder.rglob("*.xplane.pb")
    return sum("ExecuteHelper" in event.name for plane in jax.profiler.ProfileData.from_file(str(file)).planes
               for line in plane.lines for event in line.events)


def test_a_step_is_the_only_program_of_a_step(tmp_path):
    state, tokens = beginning(one_device()), jnp.ones((1, 2), jnp.int32)
    jax.block_until_ready(update(state, tokens))
    with jax.profiler.trace(str(tmp_path / "once")):
        jax.block_until_ready(update(state, tokens))
    train(state, lambda state, batch: update(state, batch["tokens"]), lambda position: OneStream(position, nothing),
          tmp_path, Placement(1, 1, one_device()), LoopConfig(STEPS, 0, 0, profile=(2, STEPS - 1)))
    assert programs(tmp_path / "profile") == (STEPS - 2) * programs(tmp_path / "once") > 0


def raising(bad):
    def raise_there(number):
        if number == bad:
            raise InputError(f"number {number} is bad")

    return raise_there


def saved(run):
    return finished_steps(run / "checkpoints")


def test_stopped_by_a_signal_after_any_step(loop, tmp_path):
    go(loop, tmp_path / "whole")
    for stop in (1, 4):
        with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {stop} of {STEPS}, which is saved"):
            go(loop, tmp_path / "run",
               at_step=lambda step, stop=stop: step == stop and os.kill(os.getpid(), signal.SIGTERM))
        assert saved(tmp_path / "run")[-1] == stop == timeless(tmp_path / "run")[-1]["step"]
    go(loop, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_a_signal_in_the_last_step_stops_nothing(loop, tmp_path):
    go(loop, tmp_path / "run", at_step=lambda step: step == STEPS and os.kill(os.getpid(), signal.SIGTERM))
    assert saved(tmp_path / "run") == [STEPS]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("where", ["at", "at_step"])
def test_what_is_bad_ends_a_run_that_is_saved(loop, tmp_path, where):
    """In the data, where the loop of prompts comes to it in the middle of a step, and in the step itself."""
    go(loop, tmp_path / "whole")
    for _ in range(2):  # it stands in the way until something is done about it
        with pytest.raises(InputError, match="number 5 is bad"):
            go(loop, tmp_path / "run", **{where: raising(5)})
        assert saved(tmp_path / "run") == [timeless(tmp_path / "run")[-1]["step"]]
    go(loop, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_what_is_bad_once_the_state_is_donated_is_told_too(loop, tmp_path, monkeypatch):
    def donating(state, tokens, update=update):
        if int(jax.device_get(state.step)) == 4:
            jax.tree.map(lambda leaf: leaf.delete(), state.params)
            raise InputError("number 5 is bad")
        return update(state, tokens)

    monkeypatch.setitem(globals(), "update", donating)
    with pytest.raises(InputError, match="number 5 is bad"):
        go(loop, tmp_path / "run", save_every=3)
    assert saved(tmp_path / "run") == [3]


def test_an_error_before_anything_is_done_saves_nothing(loop, tmp_path):
    with pytest.raises(InputError):
        go(loop, tmp_path / "run", at=raising(0))
    assert not saved(tmp_path / "run")


def test_evaluations_before_the_first_step_when_due_and_after_the_last(loop, tmp_path):
    seen = []
    go(loop, tmp_path / "run", evaluate=lambda state: seen.append(int(state.step)) or {"loss": 1.0})
    assert seen == [0, 2, 4, 6, 7]
    lines = [line["step"] for line in timeless(tmp_path / "run") if "eval/loss" in line]
    assert lines == seen


def test_an_evaluation_that_failed_is_made_up_for(loop, tmp_path):
    def evaluate(state, bad=None):
        raising(bad)(int(state.step))
        return {"loss": float(jnp.sum(state.params["w"]))}

    go(loop, tmp_path / "whole", evaluate=evaluate)
    for _ in range(2):
        with pytest.raises(InputError):
            go(loop, tmp_path / "run", evaluate=lambda state: evaluate(state, 4))
        assert saved(tmp_path / "run") == [4]
    go(loop, tmp_path / "run", evaluate=evaluate)
    assert [line["step"] for line in timeless(tmp_path / "run") if "eval/loss" in line] == [0, 2, 4, 6, 7]
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_updates_that_are_all_skipped_end_a_run(loop, tmp_path, monkeypatch):
    skipping = jax.jit(lambda state, tokens: (state.replace(step=state.step + 1), {
        "loss": jnp.nan, "num_tokens": jnp.asarray(1), "skipped_updates": jnp.asarray(1)}))
    monkeypatch.setitem(globals(), "update", skipping)
    with pytest.raises(InputError, match=f"step {PATIENCE}: loss or gradient is not finite, .* {PATIENCE} steps in"):
        go(loop, tmp_path / "run", steps=PATIENCE + 5)


def test_a_loop_of_prompts_has_written_its_step_before_the_next_begins(tmp_path):
    def is_written(step):
        assert step == 1 or timeless(tmp_path / "run")[-1]["step"] == step - 1

    go(of_prompts, tmp_path / "run", at_step=is_written)


def test_every_step_that_is_saved_was_kept(tmp_path):
    """Though keeping fails."""
    kept = set()

    def keep(number, bad=None):
        raising(bad)(number)
        kept.add(number)

    with pytest.raises(InputError):
        go(functools.partial(of_prompts, keep=functools.partial(keep, bad=5)), tmp_path / "run", save_every=3)
    assert kept == {1, 2, 3, 4}
    assert saved(tmp_path / "run") == [3]
    go(functools.partial(of_prompts, keep=keep), tmp_path / "run", save_every=3)
    assert kept == set(range(1, STEPS + 1))


def raising_error(bad):
    """What no loop saves a run for."""
    def raise_there(number):
        if number == bad:
            raise RuntimeError

    return raise_there


class Judge:
    """Notes down which weights it is given, and answers ever better; fails at a step, if told to."""

    def __init__(self, run, at="before,after,every 3", bad=None):
        self.seen, self._bad = {}, bad
        self.benchmarks = Benchmarks(run, parse_when(at), STEPS, self.judge, {"model": "m"})

    def judge(self, variables, step, folder):
        assert folder.is_dir()
        if step == self._bad:
            raise InputError("no judge")
        self.seen[step] = variables["params"]["w"].tolist()
        return {"sums": answered(values=[1.0] * (step + 1) + [0.0] * (20 - step))}


def judged(loop, run, **how):
    """What a judge sees of a run up to where it is stopped, fails or ends."""
    judge = Judge(run, **{name: how.pop(name) for name in ("at", "bad") & how.keys()})
    with contextlib.suppress(Stopped, InputError, RuntimeError):
        go(loop, run, benchmarks=judge.benchmarks, **how)
    return judge.seen


def test_benchmarks_have_the_weights_of_their_step_the_first_of_no_update(loop, tmp_path, capsys):
    states = {}
    seen = judged(loop, tmp_path / "run", at="before,after,every 2", evaluate=lambda state: states.update(
        {int(state.step): state.params["w"].tolist()}) or {"loss": 0.0})
    assert seen == states
    assert seen[0] == beginning(one_device()).params["w"].tolist() != seen[2]
    figures = {line["step"]: line["eval/sums/correct"] for line in timeless(tmp_path / "run")
               if "eval/sums/correct" in line}
    assert figures == {step: pytest.approx((step + 1) / 21) for step in (0, 2, 4, 6, 7)}
    assert "sums correct: higher by 33.3 points (7 up, 0 down, p 0.016)" in capsys.readouterr().out
    assert "sums correct: within noise (2 up" in (tmp_path / "run/evals/step-000002/tables.txt").read_text()


def test_benchmarks_are_asked_once_whatever_becomes_of_the_run(loop, tmp_path):
    stop = functools.partial(lambda step, at: step == at and os.kill(os.getpid(), signal.SIGTERM))
    whole = judged(loop, tmp_path / "whole")
    run = tmp_path / "run"
    seen = [judged(loop, run, at_step=raising(1)),  # nothing is saved yet
            judged(loop, run, at_step=functools.partial(stop, at=2)),
            judged(loop, run, at_step=functools.partial(stop, at=3)),  # stops before it is judged
            judged(loop, run, bad=3), judged(loop, run, bad=7), judged(loop, run), judged(loop, run)]
    assert [sorted(each) for each in seen] == [[0], [], [], [], [3, 6], [7], []]
    assert functools.reduce(operator.or_, seen) == whole
    assert_same_run(run, tmp_path / "whole", STEPS)


def test_what_a_kill_took_from_the_metrics_is_there_again(loop, tmp_path):
    """Step 3 is judged, and the run killed before it is saved."""
    judged(loop, tmp_path / "whole")
    assert sorted(judged(loop, tmp_path / "run", at_step=raising_error(5))) == [0, 3]
    assert sorted(judged(loop, tmp_path / "run")) == [6, 7]
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_a_run_that_has_begun_is_never_judged_as_if_it_had_not(loop, tmp_path):
    go(loop, tmp_path / "run", steps=2)
    assert sorted(judged(loop, tmp_path / "run", at="before,after")) == [7]
    assert judged(loop, tmp_path / "other", at="after").keys() == {7}


def test_other_questions_than_before_end_no_run(loop, tmp_path, capsys):
    judged(loop, tmp_path / "run", steps=2)
    shutil.copytree(tmp_path / "run/evals/step-000000", tmp_path / "kept")
    samples = read_evaluation(tmp_path / "kept")
    write_evaluation(tmp_path / "run/evals/step-000000", {"sums": samples["sums"][:5]}, {})
    assert sorted(judged(loop, tmp_path / "run")) == [3, 6, 7]
    assert "note: sums: the evaluation before the first step has 5 questions, this one 21" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "due"), [("before,after", [0, 7]), ("after", [7]), ("every 3", [3, 6]),
                                           ("every 7", [7]), ("before, every=2", [0, 2, 4, 6]),
                                           ("every5 after before", [0, 5, 7])])
def test_when_a_run_is_judged(text, due):
    assert [step for step in range(8) if parse_when(text).due(step, 7)] == due


@pytest.mark.parametrize("text", ["", "during", "before,before", "every", "every 0", "every 2,every 3", "before x",
                                  "before 3"])
def test_when_no_run_can_be_judged(text):
    with pytest.raises(InputError, match="give before, after and every N"):
        parse_when(text)
