"""Online reinforcement learning: GRPO and its relatives, with verifiable or learned rewards; full or LoRA."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import command
from cli.checks import check_positive
from cli.policy import (
    AlgorithmFlags,
    PolicyFlags,
    check_policy,
    computed_columns,
    make_objective,
    nll_columns,
    tell_unclipped,
    with_kl,
)
from cli.renamed import GRPO
from errors import InputError

DESCRIPTION = """Make a model better at what a reward function asks for.

  python -m scripts.grpo --model smollm2-135m-instruct --data "gym:chain_sum(min_terms=2, max_terms=2)" \\
      --rewards gym_exact:chain_sum --output-dir runs/sums --max-steps 50 --batch-size 8 --group-size 8 \\
      --max-new-tokens 32 --lora.rank 16 --learning-rate 5e-4
  python -m scripts.grpo ... --data gsm8k.jsonl --rewards "math=1.0,math_format=0.2" --eval-data test.jsonl
  python -m scripts.grpo ... --data problems.jsonl --rewards my_rewards:short_and_right

A step: the policy answers --batch-size prompts --group-size times, rewards judge the answers, an answer's advantage is
how much better it is than others of its group, and the policy is updated. Rewards: math, math_strict, math_format,
format(pattern=...), length(target=...), overlong(max_length=..., cache=...), repetition, unit_tests and programs
(both also with _share; unit_tests(isolation=strict|shared|auto, packages=[numpy]), see docs/online.md), gym:TASK,
gym_exact:TASK, model:PATH_OR_ID, judge:URL, or package.module:function, with TRL's signature.

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupFlags(AlgorithmFlags):
    """What is changed rarely."""

    advantages: str = "group"
    """A reward is compared with mean and deviation of its group (group: GRPO), its mean (mean: Dr. GRPO), its mean and
    the deviation of the batch (batch), the mean of the others (leave_one_out: RLOO), the mean weighed by length (opo),
    the likeliest answer's (remax), or with all tokens of the batch (reinforce_plus_plus, and with the group's mean
    reinforce_plus_plus_baseline); or stretches of an answer with what others that go on from there get (vine:
    VinePPO); or a function of groups and their batch says, package.module:name (docs/new_objective.md)."""
    vine_stride: int = 32
    """Stretches have this many tokens."""
    vine_samples: int = 4
    """The answers that go on from the beginning of a stretch are this many."""

    @property
    def by_group(self) -> bool:
        """Whether answers are compared with those of their group, as far as that is known."""
        from rollouts.baselines import ALONE

        return self.advantages not in ALONE and ":" not in self.advantages

    @property
    def from_prefixes(self) -> bool:
        """Whether they compare with answers that go on from the middle of others."""
        if ":" not in self.advantages:
            return self.advantages == "vine"
        from objectives.base import declared
        from rollouts.credit import make_credit

        return "prefix_values" in declared(make_credit(self.advantages))

    def unread(self) -> dict[str, str]:
        return super().unread() | ({} if self.from_prefixes else dict.fromkeys(
            ("vine_stride", "vine_samples"), "without --algorithm.advantages vine"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PolicyFlags):
    dynamic_sampling_tries: int = 1
    """Groups whose rewards are all equal are replaced by those of other prompts, in this many tries in all (DAPO); 1
    replaces none."""
    algorithm: GroupFlags = GroupFlags()


COMPUTED = ("advantages", "old_logps", "ref_logps", "sampler_logps", "truncated")
"""columns that an objective is given besides the prompts' own numbers: docs/new_objective.md"""


def main(config: Config) -> None:
    import jax
    import numpy as np

    from cli import online
    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import choose_reference, load_model, open_optimizer
    from cli.microbatches import with_microbatch_tokens
    from data.prompts import PromptBatches
    from models.scoring import score, score_by
    from objectives.grpo import configure
    from rollouts.credit import make_credit, rewards_by_token, with_kl_in_reward
    from rollouts.drawing import draw_groups, greedy_rewards
    from rollouts.episodes import to_batch
    from rollouts.metrics import SpreadMonitor, step_metrics
    from rollouts.minibatches import Packer
    from rollouts.recording import Recorder
    from rollouts.vine import prefix_values
    from sharding.mesh import make_layout
    from training.reference import prepare_rollouts
    from training.state import init_state
    from training.step import check_split, make_minibatch_updates

    config = with_kl(online.begin(config, check))
    objective, credit = make_objective(config, configure), make_credit(config.algorithm.advantages)
    tell_unclipped(config)
    optimizer, schedule = open_optimizer(config, config.num_updates)
    layout, run = make_layout(config.mesh), Path(config.output_dir)
    policy_key, rollout_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    # prompts and rewards, for a model that is not read yet
    opened, tokenizer = online.open_tokenized(config.model)
    needed = needed_columns(objective, (*COMPUTED, *computed_columns(config)), scorer=score)
    environments = online.open_environments(config)
    prompts = online.open_prompts(config, opened, tokenizer, GRPO, needed)
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)
    prompts = online.without_questions(prompts, tasks)
    config = with_microbatch_tokens(config, opened.config, prompts.max_length + config.max_new_tokens, objective,
                                    layout)
    rewards = online.open_rewards(config, layout, tokenizer, prompts)

    # the policy; the reference, if it counts, is the same model without its adapter, or else a frozen one
    model, params = load_model(config, opened, layout)
    needs, old, held = columns_to_score(config, objective, credit)
    in_reward, on_host = config.algorithm.kl_in == "reward", needs & {"old_logps", "ref_logps"}
    reference, frozen = choose_reference(config, model, layout) if held else (None, None)
    state = init_state(model, params, optimizer, policy_key, layout)

    # the parts of a step
    collect = online.make_collect(config, model, tokenizer, rewards, environments, prompts, layout)
    scorer_of = functools.partial(score_by, temperature=config.temperature)
    packer = Packer(prompts.lengths, config.max_new_tokens, config.group_size, config.batch_size,
                    config.num_minibatches, config.microbatch_tokens, layout)
    check_split(objective, packer.num_parts)
    prepare = prepare_rollouts(model, reference, frozen, layout, scorer_of, old)
    update = make_minibatch_updates(make_step(config, objective, model, optimizer, schedule, state), state)
    recorder = Recorder(run, config.rollouts.log_completions_every, SpreadMonitor(by_group=config.algorithm.by_group),
                        config.rollouts.allow_failing_rewards)

    def step(state: Any, batches: PromptBatches, number: int) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
        # rollouts and rewards
        key = jax.random.fold_in(rollout_key, number)
        draw = draw_groups(batches.__next__, lambda some, again, advance: collect(
            state.variables(), some, jax.random.fold_in(key, again), number - 1, advance),
            config.dynamic_sampling_tries)
        batch = to_batch(draw.trained, prompts.columns)
        if "greedy_rewards" in needs:
            draw, batch["greedy_rewards"] = greedy_rewards(draw, lambda some, _, advance: collect(
                state.variables(), some, key, number - 1, advance, group_size=1, greedy=True))
        if "prefix_values" in needs:
            draw, batch["prefix_values"] = prefix_values(
                draw, config.algorithm.vine_stride, batch["tokens"].shape[1], lambda some, _, advance: collect(
                    state.variables(), some, jax.random.fold_in(key, config.dynamic_sampling_tries), number - 1,
                    advance, config.algorithm.vine_samples))

        # log-probabilities under policy and reference
        scoring = time.perf_counter()
        packed = packer.put(batch)
        packed.apply(lambda micro: prepare(state, micro))
        for name in on_host:
            batch[name] = packed.column(name)

        # advantages
        further = nll_columns(config, batch, batch["rewards"])
        batch["token_rewards"] = rewards_by_token(batch, config.beta if in_reward else 0.0, config.algorithm.kl)
        if in_reward:
            batch["rewards"] = with_kl_in_reward(batch, config.beta, config.algorithm.kl)
        credited = credit(draw.trained, batch) | further
        packed.add(credited)

        # updates
        updating = time.perf_counter()
        with jax.transfer_guard("disallow"):
            state, metrics, logps = jax.block_until_ready(
                update(state, packed.updates, config.num_iterations, packed.ahead))
        seconds = draw.seconds | {"scoring": updating - scoring, "update": time.perf_counter() - updating}

        metrics |= jax.tree.map(np.asarray, step_metrics(draw, seconds, prompts.num_dropped))
        return state, metrics, lambda: recorder.record(draw, number, credited["advantages"], packed.gathered(logps))

    online.train_on_prompts(config, prompts, model, tokenizer, layout, state, step, collect, eval_key, tasks)


def columns_to_score(config: Config, objective: Any, credit: Any) -> tuple[set[str], bool, bool]:
    """(columns that advantages take; whether the policy is scored before its update; whether the reference is)."""
    from objectives.base import declared

    needs = {*declared(credit)} | ({"old_logps", "ref_logps"} if config.algorithm.kl_in == "reward" else set())
    wanted = needs | {*declared(objective)}
    return needs, config.num_updates > 1 or "old_logps" in wanted, "ref_logps" in wanted


def make_step(config: Config, objective: Any, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, micro-batches, ahead) -> (state, metrics, logps)"""
    from models.scoring import score_by
    from training.step import make_accumulated_step

    return make_accumulated_step(model.clone(training=True), objective, optimizer, schedule, state,
                                 functools.partial(score_by, temperature=config.temperature))


def programs(config: Config, devices: Any, prompt_length: int) -> list[Any]:
    """What a step runs, over shapes, for prompts of so many tokens (scripts.plan)."""
    from cli.online_shapes import rollouts_of, sampling_programs, scoring_program, together, update_programs
    from cli.shapes import shaped, shaped_reference
    from models.scoring import score_by
    from objectives.grpo import configure
    from rollouts.abstract import micro_batch_shapes
    from rollouts.credit import make_credit
    from sharding.mesh import make_layout
    from training.reference import prepare_rollouts
    from training.runs import open_config
    from training.step import check_split

    config, layout = with_kl(config), make_layout(config.mesh, devices)
    objective, credit = make_objective(config, configure), make_credit(config.algorithm.advantages)
    shapes = shaped(config, open_config(config.model), layout, config.num_updates)
    rollouts = rollouts_of(config, layout, prompt_length, config.num_minibatches, config.microbatch_tokens)
    check_split(objective, rollouts.parts)
    _, old, held = columns_to_score(config, objective, credit)
    reference, frozen = shaped_reference(config, shapes) if held else (None, None)

    scored = ("old_logps",) * old + ("ref_logps",) * held
    micro = micro_batch_shapes(rollouts.shape, layout, scored, ("advantages", *computed_columns(config)))
    step = make_step(config, objective, *shapes[1:])
    training = update_programs("policy", shapes, step, micro, rollouts, config.num_updates)
    if scored:
        prepare = prepare_rollouts(shapes.model, reference, frozen, layout,
                                   functools.partial(score_by, temperature=config.temperature), old)
        training.append(scoring_program("scoring of a micro-batch", shapes, prepare.compiled, (shapes.state, frozen),
                                        micro, rollouts, config.num_minibatches, len(scored)))
    sampling, engine = sampling_programs(config, shapes.model, layout, rollouts.longest)
    return together(training, sampling, engine, (shapes.state, frozen))


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    check_policy(config)
    check_positive(config, "dynamic_sampling_tries")
    check_positive(config.algorithm, "vine_stride", "vine_samples", prefix="algorithm.")
    check_prefixes(config)
    if config.group_size < 2 and config.algorithm.by_group:
        raise InputError(f"--group-size {config.group_size}: an answer is compared with others of its group; "
                         f"give 2 or more")
    if config.group_size < 2 and config.dynamic_sampling_tries > 1:
        raise InputError(f"--dynamic-sampling-tries {config.dynamic_sampling_tries} replaces groups whose rewards are "
                         f"all equal, as those of one are; give --group-size 2 or more, or leave it out")
    if config.algorithm.kl_in == "reward" and (not config.beta > 0 or config.algorithm.kl_weighted):
        raise InputError("--algorithm.kl-in reward needs a --beta above 0, and takes no --algorithm.kl-weighted: "
                         "nothing there is weighted")


def check_prefixes(config: Config) -> None:
    """Raises InputError for what looks at an answer from its beginning, where answers go on from the middle of one."""
    sampling = [name for name in ("stop", "presence_penalty", "frequency_penalty") if getattr(config.sampling, name)]
    given = ["--environment.make"] * bool(config.environment.make) + [f"--sampling.{name}" for name in sampling]
    if given and config.algorithm.from_prefixes:
        raise InputError(f"--algorithm.advantages {config.algorithm.advantages} goes on from the middle of an answer, "
                         f"and {given[0].replace('_', '-')} looks at one from its beginning; leave that out, or choose "
                         f"other advantages")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, GRPO)
