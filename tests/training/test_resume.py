"""A run that is killed and started again ends with the very numbers of one that was not."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tiny
from same_run import LORA, assert_same_run, finish, flags, kill_once, seeded, unfinished, write_pairs, write_rows

from data.batches import TrainingBatches
from data.reading import Encoder
from data.records import JsonlSource
from data.streams import Streams
from errors import Stopped
from models.transformer import Transformer
from objectives.sft import sft
from sharding.placement import Placement
from training.checkpoints import finished_steps
from training.keeping import LoopConfig
from training.loop import train
from training.metrics import MetricsFile, read_metrics
from training.preemption import Preemption
from training.state import init_state
from training.step import make_train_step

PACKINGS = ("none", "first-fit", "concat-then-split")
VARIANTS = {
    "full": ("sft", ()),
    "lora": ("sft", LORA),
    "first-fit": ("sft", ("--packing", "first-fit", "--max-length", 40)),
    "concat-then-split": ("sft", (*LORA, "--packing", "concat-then-split", "--max-length", 24)),
    "workers": ("sft", ("--workers", 1)),
    "pretrain": ("pretrain", ("--optimizer.name", "muon", "--max-length", 24)),
    "dpo": ("dpo", ("--sync.every", 5, "--sync.alpha", 0.5)),
    "dpo-kept-reference": ("dpo", (*LORA, "--keep-reference")),
}


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", 22)


@pytest.mark.slow
def test_killed_once_in_a_lora_run_with_dropout(tmp_path, rows):
    more = (*LORA, "--eval-data", rows)
    finish(flags(tmp_path / "whole", rows, 40, *more))
    run = tmp_path / "killed"
    kill_once(run, flags(run, rows, 40, *more), 12, seeded())  # the save after step 12 waits for that after step 6
    assert 6 <= max(finished_steps(run / "checkpoints")) < 40
    finish(flags(run, rows, 40, *more))
    assert_same_run(run, tmp_path / "whole", 40)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_ten_times_half_of_them_during_a_save(tmp_path, rows, variant):
    script, more = VARIANTS[variant]
    if script == "dpo":
        rows = write_pairs(tmp_path / "pairs.jsonl", 22)
    finish(flags(tmp_path / "whole", rows, 300, *more), script)
    run, draw, torn = tmp_path / "killed", seeded(sorted(VARIANTS).index(variant)), 0
    arguments = flags(run, rows, 300, *more)
    for attempt in range(10):
        saved = max(finished_steps(run / "checkpoints"), default=0)
        kill_once(run, arguments, saved, draw, script, in_a_save=attempt % 2 == 1)
        assert max(finished_steps(run / "checkpoints"), default=0) < 300
        torn += attempt % 2 == 1 and bool(unfinished(run))
    assert torn >= 3
    finish(arguments, script)
    assert_same_run(run, tmp_path / "whole", 300)


def read(streams, steps, start=None):
    """(batch, position after it) of each step."""
    batches = TrainingBatches(streams, range(4), start=start)
    return [(next(batches), json.loads(json.dumps([batches.position()[row] for row in range(4)])))
            for _ in range(steps)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("count", [22, 24])
def test_any_step_can_be_gone_on_from_also_at_the_edges_of_epochs(tmp_path, packing, count):
    """22 rows are no whole number of steps, 24 are."""
    source = JsonlSource(write_rows(tmp_path / "rows.jsonl", count))
    length = 16 if packing == "none" else 24
    streams = Streams((source,), (1.0,), Encoder(None, 128, None), 4, length, packing, 0)
    whole = read(streams, 16)
    for step in range(1, 15):
        for (batch, place), (other, other_place) in zip(whole[step : step + 2], read(streams, 2, whole[step - 1][1])):
            for name, array in batch.items():
                np.testing.assert_array_equal(array, other[name], err_msg=f"{name} after {step}")
            assert place == other_place


@pytest.mark.slow
@pytest.mark.parametrize("count", [22, 24])
def test_stopped_at_the_edges_of_epochs(tmp_path, monkeypatch, count):
    """22 rows are over in the middle of step 6 and after step 11, 24 after steps 6 and 12."""
    layout, optimizer, schedule = tiny.one_device(), optax.adamw(1e-2), optax.constant_schedule(1e-2)
    source, vocab = JsonlSource(write_rows(tmp_path / "rows.jsonl", count, vocab=64)), tiny.CONFIG.vocab_size
    streams = Streams((source,), (1.0,), Encoder(None, vocab, None), 4, 16, "none", 0)
    model = Transformer(tiny.CONFIG, dataclasses.replace(tiny.LORA, dropout=0.1), training=True)

    def beginning():
        return init_state(model, tiny.variables_on(layout)["params"], optimizer, jax.random.key(0), layout)

    train_step = make_train_step(model, sft, optimizer, schedule, beginning())

    def go_on(run):
        run.mkdir(exist_ok=True)
        train(beginning(), train_step, lambda position: TrainingBatches(streams, range(4), start=position), run,
              Placement(4, 1, layout), LoopConfig(max_steps=14, save_every=0, eval_every=0))

    go_on(tmp_path / "whole")
    for stop in (5, 6, 11, 12):
        monkeypatch.setattr(Preemption, "requested", lambda _, step, stop=stop: step == stop)
        with pytest.raises(Stopped, match=f"after step {stop} of 14"):
            go_on(tmp_path / "run")
    monkeypatch.undo()
    go_on(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", 14)


def test_metrics_after_a_resume_hold_each_step_once(tmp_path):
    file = MetricsFile(tmp_path, 0)
    for step in range(1, 6):
        file.write(step, {"loss": float("nan") if step == 2 else 0.5, "num_tokens": 10})
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 6, "lo')
    again = MetricsFile(tmp_path, 3)
    assert again.totals["num_tokens"] == 30
    again.write(4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[1]["loss"] is None
