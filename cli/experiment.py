"""The set-up that training scripts share: what comes before the experiment's own lines, and what comes after them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from cli import banner
from cli.checks import compute_in, max_row_length, resolve_dtype
from cli.columns import NOTHING, Needed, tell_unread
from cli.command import print_once
from cli.flags import RunFlags, TrainingFlags, check_flags
from cli.parsing import invocation
from cli.resume import (
    MAY_DIFFER,
    ON_ROWS,
    check_place,
    check_steps,
    split_of,
    stored_dtype,
    stored_flags,
    stored_split,
    tell,
)
from cli.values import check_values, defaults
from errors import InputError

Flags = TypeVar("Flags", bound=RunFlags)

GENERATE = "generate --model {run} --prompt '...' --output out.jsonl"
"""a script and its flags that one might type after a run"""

CHECKED = 10_000
"""rows up to which a data set is read through before the first step, to find bad rows and the longest early"""


def begin(flags: Flags, check: Callable[[Any], None] = lambda flags: None) -> Flags:
    """Checks the flags, by a script's own `check` too, and connects the processes; the flags as resolve gives them."""
    from sharding.hosts import connect

    check_flags(flags)
    check(flags)
    connect(flags.hosts)
    check_place(flags)
    return resolve(flags)


def resolve(flags: Flags) -> Flags:
    """The flags with paths of models made absolute and --dtype made concrete, and the micro-batches of a run that goes
    on: its own, as its dtype is."""
    from training.runs import absolute_reference

    models = {name: absolute_reference(getattr(flags, name)) for name in ("model", "reference")
              if getattr(flags, name, None)}
    dtype = compute_in(stored_dtype(flags, resolve_dtype(flags.dtype)))
    return dataclasses.replace(flags, dtype=dtype, **models, **stored_split(flags))


def open_sources(flags: RunFlags, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """(sources of --data, sources of --eval-data), none of their rows read yet; `tokenizer` has the chat template.

    Raises InputError for --chat-template-kwargs that it does not look at."""
    from data.sources import open_in_order, open_mixture, with_template_kwargs

    train, held_out = (with_template_kwargs(each, flags.chat_template_kwargs, tokenizer)
                       for each in (open_mixture(flags.data), open_in_order(flags.eval_data)))
    return train, held_out


class Rows(NamedTuple):
    """What a run trains on and is evaluated on."""

    streams: Any
    eval_rows: list[Any]
    eval_encoder: Any
    """of eval rows, which may be as long as the model's context"""
    eval_sources: list[Any]
    config: dict[str, Any]
    """what config.yaml holds"""


def open_rows(flags: TrainingFlags, opened: Any, packing: str = "none", form: str = "turns",
              needed: Needed = NOTHING) -> Rows:
    """The rows for an opened model, with the columns that the objective takes. Raises InputError for bad ones, or where
    --output-dir holds another experiment."""
    from data.reading import read_all

    context = opened.config.max_length
    encoder = make_encoder(flags, packing, opened.tokenizer, opened.config.vocab_size, context, form)
    sources, eval_sources = open_sources(flags, encoder.open_tokenizer())
    encoder = dataclasses.replace(encoder, **needed.found([*sources, *eval_sources]))
    tell_unread([*sources, *eval_sources], form, needed)
    config = check_output_dir(flags, sources, eval_sources)
    streams = make_streams(flags, packing, sources, encoder, context)
    eval_encoder = dataclasses.replace(encoder, max_length=context)
    eval_rows, counts = read_all(eval_sources, eval_encoder)
    tell_counts("held out", counts)
    eval_rows = [row.spread() for row in eval_rows] if packing != "none" else eval_rows  # as those that are trained on
    return Rows(streams, eval_rows, eval_encoder, eval_sources, config)


def replace_sources(rows: Rows, replace: Callable[[Any, Any, str], list[Any]], column: str) -> Rows:
    """The same rows from other sources, which have a further `column`: `replace` takes sources, their encoder and
    "train" or "held-out"."""
    from data.reading import read_all

    def with_column(encoder: Any) -> Any:
        others = tuple(name for name in encoder.columns if name != column)
        return dataclasses.replace(encoder, columns=(*others, column), absent=())

    sources = tuple(replace(rows.streams.sources, rows.streams.encoder, "train"))
    eval_sources = replace(rows.eval_sources, rows.eval_encoder, "held-out")
    streams = dataclasses.replace(rows.streams, sources=sources, encoder=with_column(rows.streams.encoder))
    return rows._replace(streams=streams, eval_rows=read_all(eval_sources, with_column(rows.eval_encoder))[0])


def make_encoder(flags: TrainingFlags, packing: str, tokenizer: Path | None, vocab_size: int, context: int,
                 form: str = "turns", columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> Any:
    """How records become rows; `context` is the model's, in tokens, `columns` are of Needed.found."""
    from data.reading import Encoder

    max_length = None if packing == "concat-then-split" else max_row_length(flags.max_length, context)
    return Encoder(tokenizer, vocab_size, max_length, flags.too_long, flags.bad_rows, form=form, **columns)


def make_streams(flags: TrainingFlags, packing: str, sources: list[Any], encoder: Any, context: int) -> Any:
    """The training rows as streams. A small data set is read through first, a large one's first rows; what they have
    decides which lengths rows are padded to."""
    from batch import choose_lengths, lengthened
    from data.reading import check_rows
    from data.streams import Streams
    from training.progress import track

    length = max_row_length(flags.max_length, context)
    measured = packing == "none" or (packing == "first-fit" and flags.max_length is None)
    lengths, complete, counts = check_rows(sources, encoder, CHECKED if measured else CHECKED // 100,
                                           functools.partial(track, what="checking rows"))
    tell_counts("checked", counts)
    if 0 < counts["rows_checked"] <= counts["rows_truncated"] + counts["rows_dropped"]:
        print_once(f"warning: every one of {counts['rows_checked']} rows that were checked is longer than "
                   f"{encoder.max_length} tokens, and is cut or left out; raise --max-length up to the model's context")
    weights, made = tuple(each.weight for each in flags.data), max(1, counts["rows_made"])
    length = max(lengths) if measured and complete else length
    sizes = tuple(lengthened(choose_lengths(lengths, flags.batch_size, flags.max_steps), length))
    return Streams(tuple(sources), weights, encoder, flags.batch_size, length, packing, flags.seed,
                   counts["tokens_checked"] / made, counts["rows_made"] / max(1, counts["rows_checked"]), sizes)


def with_steps(flags: TrainingFlags, streams: Any) -> TrainingFlags:
    """The flags with the --max-steps that --num-epochs or --max-tokens stands for. A run's epochs are counted once."""
    if flags.num_epochs is not None:
        steps = _stored_epochs(flags) or _steps_of_epochs(flags, streams)
    elif getattr(flags, "max_tokens", None) is not None:
        steps = max(1, flags.max_tokens // (flags.batch_size * streams.length))
    else:
        return flags
    found = dataclasses.replace(flags, max_steps=steps)
    check_values(found)
    return found


def _stored_epochs(flags: TrainingFlags) -> int | None:
    """The steps that the same epochs of the same rows were when the run was begun."""
    stored = stored_flags(flags)
    same = all(stored.get(name) == getattr(flags, name) for name in ("num_epochs", "bad_rows"))
    return stored["max_steps"] if same else None


def _steps_of_epochs(flags: TrainingFlags, streams: Any) -> int:
    from data.epochs import steps_per_epoch
    from training.progress import track

    one = steps_per_epoch(streams, functools.partial(track, what="counting rows"))
    steps = max(1, math.ceil(flags.num_epochs * one - 1e-6))
    print_once(f"--num-epochs {flags.num_epochs:g} is {steps} steps: {one:,.1f} go through all rows once")
    return steps


def tell_counts(which: str, counts: Mapping[str, int]) -> None:
    """Says what the chat template did to rows, and how many are left out for being bad."""
    from data.chat import explain

    if counts.get("rows_skipped"):
        print_once(f"note: rows {which}: {counts['rows_skipped']} cannot be read or trained on and are left out "
                   f"(--bad-rows skip)")
    for line in explain(counts):
        print_once(f"note: rows {which}: {line}")


def check_output_dir(flags: RunFlags, *sources: list[Any],
                     renamed: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What config.yaml holds: the flags, and what the data are known again by. Raises InputError where --output-dir
    holds another experiment; one from before flags were `renamed` is the same."""
    from data.reading import fingerprint
    from training.runs import check_free

    config = dataclasses.asdict(flags) | {"sha256": [fingerprint(each) for each in sources]}
    del config["restart"]
    may_differ = MAY_DIFFER | ON_ROWS if isinstance(flags, TrainingFlags) else MAY_DIFFER
    tell(check_free(Path(flags.output_dir), config, may_differ, renamed, defaults(flags)))
    return config


def load_model(flags: Any, opened: Any, layout: Any) -> tuple[Any, Any]:
    """(model, params) of an opened model, straight to their shards, with --lora's adapter where there is one; what is
    frozen is kept in --dtype, what is trained in float32."""
    from models.pretrained import load_merged
    from models.transformer import Transformer

    config, params = load_merged(opened, layout, **compute_of(flags))
    return Transformer(config, lora_of(flags), layout=layout), params


def lora_of(flags: Any) -> Any:
    """The adapter that is trained; None where all weights are."""
    lora = getattr(flags, "lora", None)
    return lora if lora and lora.rank else None


def compute_of(flags: Any) -> dict[str, Any]:
    """What a model's configuration has from the flags: how it computes, and in what its weights are kept."""
    return {"dtype": flags.dtype, "remat": flags.remat, "attention": flags.attention,
            "param_dtype": flags.dtype if lora_of(flags) else "float32"}


def open_optimizer(flags: RunFlags, updates_per_step: int = 1, tokens_per_step: int = 1, idle_steps: int = 0,
                   whose: str = "") -> tuple[Any, Any]:
    """(optimiser, schedule of its learning rate) over the run's updates, of which the first `idle_steps` steps have
    none; `whose` is said where it is not the policy's. Raises InputError where --output-dir holds a run that cannot go
    on for as many steps (check_steps)."""
    check_steps(flags, updates_per_step, tokens_per_step, idle_steps, whose)
    return make_optimizer_of(flags, (flags.max_steps - idle_steps) * updates_per_step, whose)


def make_optimizer_of(flags: RunFlags, updates: int, whose: str = "") -> tuple[Any, Any]:
    """(optimiser, schedule of its learning rate) over so many updates."""
    from training.optimizer import make_optimizer, make_schedule

    try:
        schedule = make_schedule(flags.optimizer, flags.learning_rate, updates)
    except InputError as error:
        raise InputError(f"{whose}{error}") from None
    return make_optimizer(flags.optimizer, schedule), schedule


def choose_reference(flags: Any, model: Any, layout: Any, opened: Any = None) -> tuple[Any, Any]:
    """(model, variables) of the reference: the one that was opened, or else the model as it was, which under LoRA is
    the model without its adapter (None)."""
    from training.reference import load_reference
    from training.runs import open_policy

    if opened is None and flags.lora.rank:
        return model, None
    return load_reference(opened or open_policy(flags.model), model.config, layout)


def loop_config(flags: RunFlags, flops_per_token: Callable[[int], float] | None = None) -> Any:
    """The flags that concern the loop."""
    from training.keeping import LoopConfig
    from training.trackers import parse_steps

    profile = parse_steps(flags.profile) if flags.profile else None
    if profile and profile[0] > flags.max_steps:
        raise InputError(f"--profile {flags.profile}: the run ends at step {flags.max_steps}; give earlier steps")
    return LoopConfig(flags.max_steps, flags.save_every, flags.eval_every, getattr(flags, "keep_best", False),
                      flags.trackers, profile, flops_per_token)


def train_on_rows(flags: TrainingFlags, streams: Any, config: dict[str, Any], model: Any, tokenizer: Any,
                  placement: Any, state: Any, step: Any, evaluate: Any, tasks: Sequence[Any] = (),
                  command: str = GENERATE) -> None:
    """Starts the run directory with its `config`, or goes on with it, and steps to the end; `command` might be typed
    next. `tasks` judge the model as --evaluate says."""
    from cli.evaluation import make_benchmarks
    from data.batches import TrainingBatches
    from training.holding import held
    from training.loop import train
    from training.runs import start
    from training.throughput import flops_per_token

    run, records = Path(flags.output_dir), placement.local_rows()
    loop = loop_config(flags, functools.partial(flops_per_token, model.config, lora=model.lora))
    benchmarks = make_benchmarks(flags, tasks, model, tokenizer, placement.layout)
    about = banner.of_rows(flags, streams, model, placement.layout, state)
    with held(run):
        start(run, config | {"max_steps": flags.max_steps} | split_of(flags), model.config, tokenizer, about)
        banner.tell_banner(about)
        train(state, step, lambda position: TrainingBatches(streams, records, flags.workers, position), run, placement,
              loop, evaluate, benchmarks)
    print_done(flags, command)


def print_done(flags: RunFlags, command: str = GENERATE) -> None:
    """The last line of a run; what might be typed next only where no other script goes on."""
    script, _, rest = command.partition(" ")
    started = type(flags).__module__ == "__main__"
    hint = f" (next: {invocation(script)} {rest.format(run=flags.output_dir)})" if started else ""
    print_once(f"done: {flags.output_dir}{hint}")
