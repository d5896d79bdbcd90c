"""Online preference optimisation: the best of a group of answers against the worst, by any loss on pairs; full or LoRA.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import command
from cli.checks import check_positive
from cli.flags import OnlineFlags, ReferenceFlags
from cli.pair_loss import PairLossFlags, make_objective
from errors import InputError
from models.settings import LoRAConfig

DESCRIPTION = """Make a model better at what a reward function asks for, by pairs of its own answers.

  python -m scripts.online_dpo --model smollm2-135m-instruct --data "gym:chain_sum(min_terms=2,max_terms=2)" \\
      --rewards gym:chain_sum --output-dir runs/pairs --max-steps 50 --batch-size 8 --group-size 8 \\
      --max-new-tokens 32 --lora.rank 16 --learning-rate 1e-4 --beta 0.1
  python -m scripts.online_dpo ... --rewards judge:http://localhost:8001 --loss ipo

A step: the policy answers --batch-size prompts --group-size times, rewards judge the answers, and of each group the
best answer and the worst are a pair for one update by the losses of scripts.dpo (Guo et al. 2024, arXiv:2402.04792,
have two answers a prompt). Rewards are those of scripts.grpo (docs/online.md).

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairLossFlags, ReferenceFlags, OnlineFlags):
    num_microbatches: int | None = None
    """A step's pairs are split into this many parts to save memory; the loss and gradient stay the same. By default
    1, or on CPUs as many as keep weights, optimiser state and activations within half of the machine's memory."""
    dynamic_sampling_tries: int = 1
    """Groups whose rewards are all equal, which make no pair, are replaced by those of other prompts, in this many
    tries in all; 1 replaces none."""
    lora: LoRAConfig = LoRAConfig()

    def unread(self) -> dict[str, str]:
        return super().unread() | {"microbatch_tokens": "here; --num-microbatches bounds memory"}


def main(config: Config) -> None:
    import jax
    import numpy as np

    from batch import ladder, pad
    from cli import online
    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import choose_reference, load_model, open_optimizer
    from cli.microbatches import with_microbatches_of
    from cli.readers import check_reference_flags, open_reference_of
    from data.prompts import PromptBatches
    from models.scoring import score
    from rollouts.drawing import draw_groups
    from rollouts.metrics import SpreadMonitor, step_metrics
    from rollouts.pairs import best_and_worst, signs, to_rows
    from rollouts.recording import Recorder
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.reference import needs_reference, prepare_pairs
    from training.state import init_state
    from training.step import check_split

    config = online.begin(config, check)
    objective = make_objective(config)
    check_reference_flags(objective, {"reference": config.reference})
    check_split(objective, config.num_microbatches or 1)
    optimizer, schedule = open_optimizer(config)
    layout, run = make_layout(config.mesh), Path(config.output_dir)
    policy_key, rollout_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    # prompts and rewards, for a model that is not read yet
    opened, tokenizer = online.open_tokenized(config.model)
    needed = needed_columns(objective, ("chosen_length", "ref_logps"), scorer=score)
    environments = online.open_environments(config)
    prompts = online.open_prompts(config, opened, tokenizer, {}, needed)
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)
    prompts = online.without_questions(prompts, tasks)
    longest = prompts.max_length + config.max_new_tokens
    config = with_microbatches_of(config, opened.config, longest, objective, layout, group=2)
    opened_reference = open_reference_of(config, opened, tokenizer, longest, "lower --max-new-tokens")
    rewards = online.open_rewards(config, layout, tokenizer, prompts)

    # the policy; the reference is the same model without its adapter, or else a frozen one
    model, params = load_model(config, opened, layout)
    reference, frozen = choose_reference(config, model, layout, opened_reference) if needs_reference(objective) else (
        model, None)
    state = init_state(model, params, optimizer, policy_key, layout)

    # the parts of a step
    collect = online.make_collect(config, model, tokenizer, rewards, environments, prompts, layout)
    placement, sizes = Placement(config.batch_size, config.num_microbatches, layout, group=2), ladder(longest)
    prepare = prepare_pairs(reference, frozen, layout, objective)
    update = make_step(objective, model, optimizer, schedule, state)
    recorder = Recorder(run, config.rollouts.log_completions_every, SpreadMonitor(),
                        config.rollouts.allow_failing_rewards)

    def step(state: Any, batches: PromptBatches, number: int) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
        # rollouts and rewards
        key = jax.random.fold_in(rollout_key, number)
        draw = draw_groups(batches.__next__, lambda some, again, advance: collect(
            state.variables(), some, jax.random.fold_in(key, again), number - 1, advance),
            config.dynamic_sampling_tries)

        # pairs
        updating = time.perf_counter()
        members = best_and_worst(draw.trained)
        batch = pad([row.columns() for row in to_rows(draw.trained, members, prompts.columns)], sizes)
        pairs = placement.put(batch, list(range(config.batch_size)))

        # an update
        with jax.transfer_guard("disallow"):
            state, metrics = jax.block_until_ready(update(state, prepare(state, pairs)))
        seconds = draw.seconds | {"update": time.perf_counter() - updating}

        metrics |= jax.tree.map(np.asarray, step_metrics(draw, seconds, prompts.num_dropped))
        return state, metrics, lambda: recorder.record(draw, number, signs(draw.trained, members), None)

    online.train_on_prompts(config, prompts, model, tokenizer, layout, state, step, collect, eval_key, tasks)


def make_step(objective: Any, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, prepared batch) -> (state, metrics)"""
    from training.step import make_train_step

    return make_train_step(model.clone(training=True), objective, optimizer, schedule, state)


def programs(config: Config, devices: Any, prompt_length: int) -> list[Any]:
    """What a step runs, over shapes, for prompts of so many tokens (scripts.plan)."""
    from batch import multiple_of_8
    from cli.columns import needed_columns
    from cli.online_shapes import longest_of, sampling_programs, together
    from cli.shapes import pair_programs, shaped, shaped_reference
    from models.scoring import score
    from sharding.mesh import make_layout
    from training.reference import needs_reference, prepare_pairs
    from training.runs import open_config

    objective, layout = make_objective(config), make_layout(config.mesh, devices)
    shapes, longest = shaped(config, open_config(config.model), layout), longest_of(config, prompt_length)
    reference, frozen = shaped_reference(config, shapes, config.reference) if needs_reference(objective) else (
        shapes.model, None)
    needed = needed_columns(objective, ("chosen_length", "ref_logps"), scorer=score)
    training = pair_programs(config, shapes, make_step(objective, *shapes[1:]),
                             prepare_pairs(reference, frozen, layout, objective), needed.required,
                             multiple_of_8(longest))
    sampling, engine = sampling_programs(config, shapes.model, layout, longest)
    return together(training, sampling, engine, (shapes.state, frozen))


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    check_positive(config, "num_microbatches", "dynamic_sampling_tries")
    if config.group_size < 2:
        raise InputError(f"--group-size {config.group_size}: a pair is of two answers to a prompt; give 2 or more")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
