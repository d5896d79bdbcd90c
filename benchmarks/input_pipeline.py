"""How fast rows are read, tokenised and packed, with nothing trained: tokens a second by number of workers.

Every number of workers has its turn in each round, so that a machine that slows down does so for all. A turn starts the
readers, throws the first steps away (starting workers, opening the tokenizer, filling the windows that are shuffled),
and counts the tokens of the next ones. What share of a training step its reading takes is in the run's own
metrics.jsonl: data_seconds over step_seconds, which --run sums.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from cli import command
from cli.checks import check_positive
from data.sources import DataSource
from errors import InputError

DESCRIPTION = """Tokens a second of the input pipeline alone, and its share of a run's step time.

  python -m benchmarks.input_pipeline --tokenizer tokenizers/python
  python -m benchmarks.input_pipeline --tokenizer tokenizers/python --run runs/pretrain"""


@dataclasses.dataclass(frozen=True)
class Config:
    tokenizer: str
    """tokenizer folder, .gguf or .model file"""
    data: tuple[DataSource, ...] = (DataSource("tfds:python_stdlib"),)
    """sources, as --data of scripts.pretrain"""
    packing: Literal["first-fit", "concat-then-split"] = "concat-then-split"
    batch_size: int = 8
    max_length: int = 512
    workers: tuple[int, ...] = (0, 1, 2)
    """numbers of worker processes to measure; 0: this process reads"""
    seconds: float = 10.0
    """of every turn"""
    rounds: int = 3
    run: str | None = None
    """run directory whose metrics.jsonl says what share of its steps was spent waiting for data"""


def main(config: Config) -> None:
    from data.tokenizer import load_tokenizer

    check_positive(config, "batch_size", "max_length", "seconds", "rounds")
    streams = make_streams(config, load_tokenizer(config.tokenizer).vocab_size)
    turns = [{workers: measure(streams, workers, config.seconds) for workers in config.workers}
             for _ in range(config.rounds)]
    table = Table("workers", "tokens/s, median", "slowest", "fastest")
    for workers in config.workers:
        speeds = [turn[workers] for turn in turns]
        shown = statistics.median(speeds), min(speeds), max(speeds)
        table.add_row(str(workers), *(f"{value:,.0f}" for value in shown))
    console = Console()
    console.print(table)
    if config.run:
        console.print(share_of_steps(Path(config.run)), highlight=False)


def make_streams(config: Config, vocab_size: int) -> Any:
    from data.reading import Encoder
    from data.sources import open_source
    from data.streams import Streams

    longest = config.max_length if config.packing == "first-fit" else None
    encoder = Encoder(Path(config.tokenizer), vocab_size, longest, "truncate")
    sources, weights = zip(*((open_source(each), each.weight) for each in config.data))
    return Streams(sources, weights, encoder, config.batch_size, config.max_length, config.packing, seed=0)


def measure(streams: Any, workers: int, seconds: float) -> float:
    """Tokens (padding is none) a second, over whole windows that together take `seconds` or a little more."""
    from data.batches import TrainingBatches
    from data.streams import SHUFFLED_TOKENS

    batches = TrainingBatches(streams, range(streams.batch_size), workers)
    window = max(1, SHUFFLED_TOKENS // streams.length)  # steps after which the same work begins again
    _read(batches, window)
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokens += _read(batches, window)
    passed = time.perf_counter() - start
    batches.close()
    return tokens / passed


def _read(batches: Any, steps: int) -> int:
    return sum(int((next(batches)["segment_ids"] > 0).sum()) for _ in range(steps))


def share_of_steps(run: Path) -> str:
    """What metrics.jsonl says: data_seconds over step_seconds, both summed over all steps but the first."""
    from training.metrics import read_metrics

    steps = [line for line in read_metrics(run) if "step_seconds" in line][1:]
    if not steps:
        raise InputError(f"--run {run}: metrics.jsonl holds fewer than two steps; let the run take some")
    waited, passed = (sum(line[name] for line in steps) for name in ("data_seconds", "step_seconds"))
    return f"{run}: {len(steps)} steps took {passed:.1f} s, {waited:.2f} s of it ({waited / passed:.2%}) reading data"


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
