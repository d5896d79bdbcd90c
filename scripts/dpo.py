"""Preference optimisation: the DPO family, and any objective on pairs; full or LoRA."""

import dataclasses
from pathlib import Path
from typing import Any

from cli import command
from cli.flags import AnsweringFlags, ReferenceFlags
from cli.pair_loss import PairLossFlags, make_objective
from errors import InputError
from training.settings import SyncConfig

DESCRIPTION = """Change how a model answers, by pairs of a better and a worse answer (chosen, rejected).

  python -m scripts.dpo --model smollm2-135m-instruct --data pairs.jsonl --output-dir runs/dpo --max-steps 200 \\
      --lora.rank 16 --beta 0.1
  python -m scripts.dpo ... --loss "sigmoid=1.0,sft=0.1"
  python -m scripts.dpo ... --objective "objectives.simpo:simpo(beta=2.5, gamma=1.0)"

Losses: sigmoid (DPO), hinge, ipo, ipo_sum, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired,
apo_zero, apo_down, discopop, sigmoid_norm, sft, sft_token. objectives/dpo.py has their equations.

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairLossFlags, ReferenceFlags, AnsweringFlags):
    keep_reference: bool = False
    """All pairs are scored under the reference once, before the first step, and that is kept in the run directory."""
    sync: SyncConfig = SyncConfig()


def main(config: Config) -> None:
    import jax

    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import (
        begin,
        choose_reference,
        load_model,
        open_optimizer,
        open_rows,
        replace_sources,
        train_on_rows,
        with_steps,
    )
    from cli.kept_reference import keep_reference
    from cli.microbatches import with_microbatches
    from cli.readers import check_reference_flags, longest_row_of, open_reference_of
    from data.tokenizer import open_tokenizer
    from models.scoring import score
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.reference import needs_reference, prepare_pairs
    from training.runs import open_policy
    from training.state import init_state
    from training.step import check_split
    from training.sync import start_sync

    config = begin(config, check)
    objective = make_objective(config)
    check_reference_flags(objective, {"reference": config.reference, "keep-reference": config.keep_reference,
                                      "sync.every": config.sync.every})
    check_split(objective, config.num_microbatches or 1)
    layout = make_layout(config.mesh)

    # the model, not read yet, and the pairs
    opened = open_policy(config.model)
    needed = needed_columns(objective, ("chosen_length",), or_computed=("ref_logps",), scorer=score)
    rows = open_rows(config, opened, form="pair", needed=needed)
    config = with_microbatches(with_steps(config, rows.streams), opened.config, rows.streams, objective, layout,
                               group=2)
    optimizer, schedule = open_optimizer(config)
    placement = Placement(config.batch_size, config.num_microbatches, layout, group=2)
    tokenizer = open_tokenizer(opened.tokenizer)
    opened_reference = open_reference_of(config, opened, tokenizer, *longest_row_of(rows))
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)

    # the weights, straight to their shards; the reference is the same model without its adapter, or else a frozen one
    model, params = load_model(config, opened, layout)
    reference, frozen = model, None
    if needs_reference(objective) and not config.sync.every:
        reference, frozen = choose_reference(config, model, layout, opened_reference)
    if config.keep_reference:
        folder = Path(config.output_dir) / "reference"
        rows = replace_sources(rows, lambda sources, encoder, name: keep_reference(
            sources, encoder, folder / name, reference, frozen or {"params": params}, 2 * config.batch_size, layout),
            "ref_logps")

    # the experiment
    state = start_sync(init_state(model, params, optimizer, jax.random.key(config.seed), layout), config.sync)
    prepare = prepare_pairs(reference, frozen, layout, objective)
    step = make_step(config, model, optimizer, schedule, state)
    evaluate = make_evaluation(model, objective, rows.eval_rows, placement, prepare=prepare)
    train_on_rows(config, rows.streams, rows.config, model, tokenizer, placement, state,
                  lambda state, batch: step(state, prepare(state, batch)), evaluate, tasks)


def make_step(config: Config, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, prepared batch) -> (state, metrics)"""
    from training.step import make_train_step
    from training.sync import make_sync

    return make_train_step(model.clone(training=True), make_objective(config), optimizer, schedule, state,
                           after_update=make_sync(config.sync))


def programs(config: Config, devices: Any) -> list[Any]:
    """What a step runs, over shapes (scripts.plan): the reference's scores, where they are made each time, and the
    update."""
    from cli.columns import needed_columns
    from cli.shapes import pair_programs, shaped, shaped_reference
    from models.scoring import score
    from sharding.mesh import make_layout
    from training.reference import needs_reference, prepare_pairs
    from training.runs import open_config

    objective, layout = make_objective(config), make_layout(config.mesh, devices)
    shapes = shaped(config, open_config(config.model), layout)
    if config.sync.every:
        shapes = shapes._replace(state=shapes.state.replace(reference=shapes.state.trainable))
    reference, frozen = shapes.model, None
    if needs_reference(objective) and not config.sync.every:
        reference, frozen = shaped_reference(config, shapes, config.reference)
    needed = needed_columns(objective, ("chosen_length",), or_computed=("ref_logps",), scorer=score)
    prepare = prepare_pairs(reference, frozen, layout, objective)
    kept = ("ref_logps",) if config.keep_reference else ()
    return pair_programs(config, shapes, make_step(config, *shapes[1:]), prepare, (*needed.required, *kept))


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    if config.sync.every and (config.reference or config.keep_reference):
        raise InputError("--sync.every: a reference that follows the model begins as it and changes; leave out "
                         "--reference and --keep-reference")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
