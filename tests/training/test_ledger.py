"""A ledger of what is trained on: through kills and other numbers of processes, every row as often as it should be.

Row i is token i, over and over, so the tokens of a batch say which rows it holds.
"""

import collections
import json
import random

import numpy as np
import pytest
from processes import finish, kill_one, started

from data.batches import TrainingBatches
from data.reading import Encoder
from data.streams import Streams
from training.checkpoints import finished_steps
from training.metrics import read_metrics

IDS = 128
"""the tiny model's vocabulary"""

COUNTING = """
import jax.numpy as jnp
from objectives.sft import sft

def counted(scores, batch):
    real = (batch["segment_ids"] != 0).astype(jnp.float32)
    counts = jnp.zeros(128).at[batch["tokens"]].add(real)
    share = jnp.sum(jnp.any(real, axis=1)) / BATCH  # of the global batch's rows, which may lie on several devices
    return sft(scores, batch)._replace(metrics={f"row{i}": (counts[i], share) for i in range(128)})
"""
"""an objective that says how many tokens of each row are in the global batch, where the loss is computed"""


def sizes(packing, count, first=0):
    """Tokens of each row. Packed rows hold 32: then lengths of which whole epochs fill them without a rest."""
    return {row: 3 + row * 5 % 6 if packing == "none" else 12 for row in range(first, first + count)}


# By B no data set can be divided. name -> (packing, sources, weights, steps, how often each row comes in all of them).
# First-fit keeps 8 packed rows open, two rows in each, and lets all go before it takes a 17th: 16 rows of a stream are
# 8 steps. Three packed rows of concat-then-split are 8 rows. A window of a mixture is 16 steps: two are 192 rows, of
# which 13 in 16 are of the first source.
B = 6
CASES = {
    "none": ("none", [sizes("none", 50)], (1,), 25, (3,)),
    "first-fit": ("first-fit", [sizes("first-fit", 64)], (1,), 16, (3,)),
    "concat-then-split": ("concat-then-split", [sizes("concat-then-split", 64)], (1,), 12, (3,)),
    "mixture": ("none", [sizes("none", 52), sizes("none", 9, first=60)], (13, 3), 32, (3, 4)),
}


def expected(case):
    """Tokens of each row in the whole run."""
    _, sources, _, _, times = CASES[case]
    return {row: length * often for source, often in zip(sources, times) for row, length in source.items()}


class Rows:
    """A source in memory."""

    def __init__(self, source):
        self.rows = [{"tokens": [row] * length} for row, length in source.items()]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def place(self, index):
        return f"rows:{index}"


def make(case, batch_size=B):
    packing, sources, weights, _, _ = CASES[case]
    length = 8 if packing == "none" else 32
    encoder = Encoder(None, IDS, None if packing == "concat-then-split" else length)
    return Streams(tuple(map(Rows, sources)), tuple(map(float, weights)), encoder, batch_size, length, packing, seed=0)


def read(streams, start, count, workers, steps, saved):
    """A Counter of tokens for each step, by `count` hosts, each with its own rows; and the position after `saved` of
    the steps, as a checkpoint holds it."""
    hosts = [TrainingBatches(streams, rows.tolist(), workers, start)
             for rows in np.array_split(np.arange(streams.batch_size), count)]
    ledger, position = [], start
    for step in range(1, steps + 1):
        batches = [next(host) for host in hosts]
        ledger.append(sum((tokens_of(batch) for batch in batches), collections.Counter()))
        if step == saved:
            position = json.loads(json.dumps({row: state for host in hosts for row, state in host.position().items()}))
    for host in hosts:
        host.close()
    return ledger, [position[str(row)] for row in range(streams.batch_size)]


def tokens_of(batch):
    return collections.Counter(batch["tokens"][batch["segment_ids"] > 0].tolist())


@pytest.mark.parametrize(("case", "hosts", "workers"), [*((case, (1, 2, 4), 0) for case in CASES),
                                                       pytest.param("concat-then-split", (1, 2, 1), 1,
                                                                    marks=pytest.mark.slow)])
def test_every_row_as_often_as_it_should_be_with_other_readers_after_each_kill(case, hosts, workers):
    streams, steps = make(case), CASES[case][3]
    whole, _ = read(streams, None, 1, 0, steps, steps)
    ledger, start = [], None
    for count, end in zip(hosts, (random.randint(2, 4), random.randint(6, 9), steps)):
        saved = end - len(ledger)
        found, start = read(streams, start, count, workers, saved + random.randint(0, 3), saved)  # some are lost
        ledger += found[:saved]
    assert ledger == whole
    assert sum(ledger, collections.Counter()) == expected(case)


def test_the_last_step_reaches_into_the_next_epoch():
    """50 rows, 4 at a time: 38 steps are three epochs and the first two rows of the fourth."""
    ledger, _ = read(make("none", batch_size=4), None, 2, 0, 38, 38)
    seen = sum(ledger, collections.Counter())
    times = collections.Counter(seen[row] / length for row, length in sizes("none", 50).items())
    assert times == {3: 48, 4: 2}


def write_data(folder, case):
    """The flags of a run of the case, its data and its objective written."""
    packing, sources, weights, steps, _ = CASES[case]
    (folder / "ledger.py").write_text(COUNTING.replace("BATCH", str(B)))
    for number, source in enumerate(sources):
        lines = (json.dumps({"tokens": [row] * length}) + "\n" for row, length in source.items())
        (folder / f"{number}.jsonl").write_text("".join(lines))
    data = [f"{folder / str(number)}.jsonl@{weight}" for number, weight in enumerate(weights)]
    packed = () if packing == "none" else ("--packing", packing, "--max-length", 32)
    return ("--data", *data, "--batch-size", B, "--max-steps", steps, "--save-every", 1,
            "--objective", "ledger:counted", *packed)


def ledger_of(run):
    """metrics.jsonl's tokens of each row at each step; of what was lost in a kill it holds nothing."""
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [collections.Counter({row: line[f"row{row}"] for row in range(IDS) if line[f"row{row}"]}) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_row_as_often_as_it_should_be_through_kills_of_one_process_and_of_two(tmp_path, case):
    flags, steps = write_data(tmp_path, case), CASES[case][3]
    finish(tmp_path / "whole", *flags, devices=2)
    run = tmp_path / "killed"
    with started(run, *flags, devices=2) as processes:
        kill_one(processes, run, random.randint(1, 3), 0)
    first = max(finished_steps(run / "checkpoints"))
    assert first < steps
    with started(run, *flags, count=2) as processes:
        kill_one(processes, run, random.randint(first + 1, max(first + 1, steps - 6)), random.randrange(2))
    assert first < max(finished_steps(run / "checkpoints")) < steps
    finish(run, *flags, devices=2)
    assert ledger_of(run) == ledger_of(tmp_path / "whole")
    assert sum(ledger_of(run), collections.Counter()) == expected(case)
