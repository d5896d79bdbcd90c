"""What every training script shares: its flags, and the data that it trains on and is held out."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.sources import DataSource
from scripts import cli
from sharding.hosts import HostsConfig
from sharding.mesh import MeshConfig
from training.optimizer import OptimizerConfig

CHECKED = 10_000
"""rows up to which a data set is read through before the first step, to find bad rows and the longest early"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Of any training run."""

    data: tuple[DataSource, ...]
    """sources: FILE.jsonl, FILE.jsonl.gz, FILE.parquet (or globs of them), tfds:NAME[/CONFIG][:SPLIT],
    hf:OWNER/NAME[/CONFIG][:SPLIT], gym:TASK[(key=value, ...)]; several are mixed by weight, written SOURCE@WEIGHT"""
    output_dir: str
    """the run directory: config.yaml, metrics.jsonl, checkpoints/"""
    batch_size: int = 8
    """rows, pairs of them, or prompts of a step, over all devices and micro-batches"""
    num_microbatches: int = 1
    """parts that a step's rows are split into to save memory; the loss and gradient stay the same"""
    learning_rate: float = 1e-4
    """peak learning rate"""
    seed: int = 0
    """of what is initialised, the order of rows, dropout, and what is sampled"""
    eval_data: tuple[DataSource, ...] = ()
    """held-out rows, evaluated before the first step and after the last"""
    eval_every: int = 0
    """steps between evaluations; 0 for none in between"""
    save_every: int = 100
    """steps between checkpoints; one is always saved after the last step; 0 for none in between"""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """where metrics go besides metrics.jsonl"""
    profile: str | None = None
    """FIRST:LAST: write a JAX profiler trace of these steps to profile/"""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """of matmuls (and of the frozen weights under LoRA); auto is what is fastest here"""
    remat: Literal["none", "dots", "full"] = "none"
    """recompute in the backward pass to save memory: nothing, all but matmuls, or whole layers"""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """attention kernel; auto picks by platform"""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFlags(RunFlags):
    """Of a run that trains on rows as they are."""

    max_length: int | None = None
    """longest row allowed, in tokens, and length of packed rows; the model's context by default"""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """what happens to rows over --max-length; metrics count them (concat-then-split cuts every row where it must)"""
    bad_rows: Literal["error", "skip"] = "error"
    """what happens to rows that cannot be read or trained on; metrics count those skipped"""
    workers: int = 0
    """processes that read and tokenise ahead, on every host; 0: the training process does so itself"""
    keep_best: bool = False
    """keep the checkpoint with the least held-out loss, too, besides the newest two (--model RUN@best)"""
    hosts: HostsConfig = HostsConfig()


MAY_DIFFER = frozenset({"output_dir", "mesh", "hosts", "workers", "save_every", "eval_every", "keep_best", "trackers",
                        "profile", "bad_rows"})
"""what a resumed run may change"""


def check_flags(flags: RunFlags) -> None:
    """Raises InputError for numbers that make no sense."""
    cli.check_positive(flags, "batch_size", "num_microbatches")
    cli.check_not_negative(flags, "learning_rate", "eval_every", "save_every")
    cli.check_seed(flags.seed)
    if isinstance(flags, TrainingFlags):
        cli.check_positive(flags, "learning_rate")
        cli.check_not_negative(flags, "workers")


def open_sources(flags: RunFlags) -> tuple[list[Any], list[Any]]:
    """(sources trained on, sources held out), none of their rows read yet."""
    from data.sources import open_source

    return [open_source(each) for each in flags.data], [open_source(each) for each in flags.eval_data]


class Rows(NamedTuple):
    """What a run trains on and what is held out."""

    streams: Any
    held_out: list[Any]
    encoder: Any
    """of what is held out, which may be as long as the model's context"""
    held_out_sources: list[Any]
    recorded: dict[str, Any]
    """what config.yaml is to hold"""


def open_rows(flags: TrainingFlags, opened: Any, packing: str = "none", form: str = "row") -> Rows:
    """The rows for an opened model. Raises InputError for bad ones, or where --output-dir holds another experiment."""
    from data.reading import read_all
    from training.runs import check_free

    context = opened.config.max_length
    encoder = make_encoder(flags, packing, opened.tokenizer, opened.config.vocab_size, context, form)
    sources, held_out_sources = open_sources(flags)
    recorded_flags = recorded(flags, sources, held_out_sources)
    check_free(Path(flags.output_dir), recorded_flags, MAY_DIFFER)
    streams = make_streams(flags, packing, sources, encoder, context)
    whole = dataclasses.replace(encoder, max_length=context)
    return Rows(streams, read_all(held_out_sources, whole)[0], whole, held_out_sources, recorded_flags)


def replace_sources(rows: Rows, replace: Callable[[Any, Any, str], list[Any]]) -> Rows:
    """The same rows from other sources: `replace` takes sources, their encoder and "train" or "held-out"."""
    from data.reading import read_all

    sources = tuple(replace(rows.streams.sources, rows.streams.encoder, "train"))
    held_out, _ = read_all(replace(rows.held_out_sources, rows.encoder, "held-out"), rows.encoder)
    return rows._replace(streams=dataclasses.replace(rows.streams, sources=sources), held_out=held_out)


def make_encoder(flags: TrainingFlags, packing: str, tokenizer: Path | None, vocab_size: int, context: int,
                 form: str = "row") -> Any:
    """How records become rows; `context` is the model's, in tokens."""
    from data.reading import Encoder

    longest = None if packing == "concat-then-split" else cli.row_length(flags.max_length, context)
    return Encoder(tokenizer, vocab_size, longest, flags.too_long, flags.bad_rows, form=form)


def make_streams(flags: TrainingFlags, packing: str, sources: list[Any], encoder: Any, context: int) -> Any:
    """The training rows as streams. A small data set is read through first, a large one's first rows."""
    from data.reading import check_rows
    from data.streams import Streams
    from training.progress import track

    length = cli.row_length(flags.max_length, context)
    measured = packing == "none" or (packing == "first-fit" and flags.max_length is None)
    longest = check_rows(sources, encoder, CHECKED if measured else CHECKED // 100,
                         functools.partial(track, what="checking rows"))
    weights = tuple(each.weight for each in flags.data)
    return Streams(tuple(sources), weights, encoder, flags.batch_size, longest or length if measured else length,
                   packing, flags.seed)


def recorded(flags: RunFlags, *sources: list[Any]) -> dict[str, Any]:
    """What config.yaml holds: the flags, and what the data are known again by."""
    from data.reading import fingerprint

    return dataclasses.asdict(flags) | {"sha256": [fingerprint(each) for each in sources]}


def loop_config(flags: RunFlags, max_steps: int, flops_per_token: float) -> Any:
    """The flags that concern the loop."""
    from training.loop import LoopConfig
    from training.trackers import parse_steps

    return LoopConfig(max_steps, flags.save_every, flags.eval_every, getattr(flags, "keep_best", False), flags.trackers,
                      parse_steps(flags.profile) if flags.profile else None, flops_per_token)
