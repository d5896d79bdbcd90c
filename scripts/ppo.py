"""Online reinforcement learning with a critic: PPO, with verifiable or learned rewards; full or LoRA."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_fraction, check_not_negative
from cli.critic import (
    CriticFlags,
    check_critic,
    for_critic,
    load_critic,
    open_critic_of,
    shares_base,
    with_absolute_critic,
)
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
from errors import InputError

DESCRIPTION = """Make a model better at what a reward function asks for, with a critic that says what states are worth.

  python -m scripts.ppo --model smollm2-135m-instruct --data "gym:chain_sum(min_terms=2, max_terms=2)" \\
      --rewards gym_exact:chain_sum --output-dir runs/sums-ppo --max-steps 50 --batch-size 64 --max-new-tokens 32 \\
      --lora.rank 16 --learning-rate 5e-4 --critic.lora.rank 16 --critic.warmup-steps 5
  python -m scripts.ppo ... --rewards model:runs/reward --critic.model runs/reward

A step: the policy answers --batch-size prompts --group-size times, rewards judge the answers, the critic says what each
token's state was worth, a token's advantage is how much better it went than that (GAE), and critic and policy are
updated, each with an optimiser of its own. Rewards are those of scripts.grpo (docs/online.md).

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFlags(AlgorithmFlags):
    """What is changed rarely."""

    kl_in: Literal["loss", "reward"] = "reward"
    """The KL of --beta counts in the loss or, token by token, in the reward."""
    lam_alpha: float = 0.0
    """Above 0, an episode of l tokens has 1 - 1 / (lam_alpha l) in place of --lam in its advantages (VAPO; 0.05 there).
    """
    missing_end_penalty: float = 0.0
    """This is taken from the reward of a completion that a limit cut."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PolicyFlags):
    group_size: int = 1
    """A prompt is answered this many times."""
    num_iterations: int = 4
    """A batch of rollouts is gone through this many times."""
    beta: float = 0.05
    """The KL to the reference has this weight, in the reward unless --algorithm.kl-in loss."""
    gamma: float = 1.0
    """What comes a token later counts by this factor."""
    lam: float = 0.95
    """Advantages trust the critic at 0, and only the rewards that came at 1 (GAE's lambda)."""
    algorithm: TokenFlags = TokenFlags()
    critic: CriticFlags = CriticFlags()

    def unread(self) -> dict[str, str]:
        adaptive = self.algorithm.lam_alpha > 0 and self.critic.lam is not None
        return super().unread() | ({"lam": "beside --algorithm.lam-alpha and --critic.lam"} if adaptive else {}) | (
            {} if self.beta else dict.fromkeys(("algorithm.kl", "algorithm.kl_in"), "at --beta 0"))


COMPUTED = ("advantages", "returns", "old_logps", "ref_logps", "sampler_logps", "truncated")
"""columns that an objective is given besides the prompts' own numbers: docs/new_objective.md"""

OF_CRITIC = ("loss", "grad_norm", "learning_rate", "clip_ratio", "values", "error")
"""metrics of its updates that are written down, as critic/NAME"""


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
    from objectives.ppo import configure_policy
    from rollouts.credit import GAE, value_metrics
    from rollouts.drawing import draw_groups
    from rollouts.episodes import to_batch
    from rollouts.metrics import SpreadMonitor, step_metrics
    from rollouts.minibatches import Packer
    from rollouts.recording import Recorder
    from sharding.mesh import make_layout
    from training.critic import prepare_values
    from training.reference import prepare_rollouts
    from training.state import init_state, with_params_of
    from training.step import check_split, make_minibatch_updates, make_skip

    config = with_absolute_critic(with_kl(online.begin(config, check)))
    objective = make_objective(config, configure_policy)
    tell_unclipped(config)
    optimizer, schedule = open_optimizer(config, config.num_updates, idle_steps=config.critic.warmup_steps)
    critic_optimizer, critic_schedule = open_optimizer(for_critic(config, config.critic), config.critic.num_updates,
                                                       whose="critic's ")
    layout, run = make_layout(config.mesh), Path(config.output_dir)
    policy_key, critic_key, rollout_key, eval_key = jax.random.split(jax.random.key(config.seed), 4)

    # prompts and rewards, for models that are not read yet
    opened, tokenizer = online.open_tokenized(config.model)
    needed = needed_columns(objective, (*COMPUTED, *computed_columns(config)), scorer=score)
    environments = online.open_environments(config)
    prompts = online.open_prompts(config, opened, tokenizer, {}, needed)
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)
    prompts = online.without_questions(prompts, tasks)
    config = with_microbatch_tokens(config, opened.config, prompts.max_length + config.max_new_tokens, objective,
                                    layout)
    opened_critic = open_critic_of(config.critic, opened, tokenizer, prompts.max_length + config.max_new_tokens)
    rewards = online.open_rewards(config, layout, tokenizer, prompts)

    # the policy; the reference, if it counts, is the same model without its adapter, or else a frozen one
    model, params = load_model(config, opened, layout)
    in_reward, held = counts_reference(config, objective)
    reference, frozen = choose_reference(config, model, layout) if held else (None, None)
    state = init_state(model, params, optimizer, policy_key, layout)

    # the critic
    shared = shares_base(config, config.critic)
    critic, critic_params = load_critic(config, config.critic, opened_critic, model, params, layout)
    critic_state = init_state(critic, critic_params, critic_optimizer, critic_key, layout)
    online.tell_memory({"policy": state, "critic": critic_state}, frozen, shared)

    # the parts of a step
    collect = online.make_collect(config, model, tokenizer, rewards, environments, prompts, layout)
    scorer_of = functools.partial(score_by, temperature=config.temperature)
    packer, critic_packer = (
        Packer(prompts.lengths, config.max_new_tokens, config.group_size, config.batch_size, each.num_minibatches,
               each.microbatch_tokens or config.microbatch_tokens, layout) for each in (config, config.critic))
    check_split(objective, packer.num_parts)
    credit = GAE(config.gamma, config.lam, config.lam if config.critic.lam is None else config.critic.lam,
                 config.algorithm.lam_alpha, config.beta if in_reward else 0.0, config.algorithm.kl,
                 config.algorithm.missing_end_penalty)
    prepare = prepare_rollouts(model, reference, frozen, layout, scorer_of, old=True)
    estimate = prepare_values(critic, layout)
    update = make_minibatch_updates(make_step(config, objective, model, optimizer, schedule, state), state)
    update_critic = make_minibatch_updates(make_critic_step(
        config, critic, critic_optimizer, critic_schedule, critic_state), critic_state)
    skip = make_skip(state)
    recorder = Recorder(run, config.rollouts.log_completions_every, SpreadMonitor(by_group=False),
                        config.rollouts.allow_failing_rewards)

    def step(state: Any, batches: PromptBatches, number: int) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
        # rollouts and rewards; what has none is trained on by nobody
        key = jax.random.fold_in(rollout_key, number)
        draw = draw_groups(batches.__next__, lambda some, _, advance: collect(
            state.variables(), some, key, number - 1, advance), max_tries=1)
        batch = to_batch(draw.trained, prompts.columns)
        batch["loss_mask"] *= ~np.isnan(batch["rewards"])[:, None]

        # log-probabilities under policy and reference, values
        scoring = time.perf_counter()
        policy, critic = state.replace(critic=None), state.critic
        packed, valued = packer.put(batch), critic_packer.put(batch)
        packed.apply(lambda micro: prepare(policy, micro))
        valued.apply(lambda micro: estimate(critic, micro))
        for name in ("old_logps", "ref_logps") if held else ("old_logps",):
            batch[name] = packed.column(name)
        batch["values"] = valued.column("values")

        # advantages for the policy, returns for the critic
        credited = credit(draw.trained, batch) | nll_columns(config, batch, batch["rewards"])
        packed.add(credited)
        valued.add({"returns": credited["returns"]})

        # updates
        updating = time.perf_counter()
        with jax.transfer_guard("disallow"):
            critic, critic_metrics, _ = update_critic(critic, valued.updates, config.critic.num_iterations,
                                                      valued.ahead)
            policy = with_params_of(policy, critic) if shared else policy
            if number > config.critic.warmup_steps:
                policy, metrics, _ = update(policy, packed.updates, config.num_iterations, packed.ahead)
            else:
                policy, metrics = skip(policy, critic_metrics)
            critic = with_params_of(critic, policy) if shared else critic
            state = jax.block_until_ready(policy.replace(critic=critic))
        seconds = draw.seconds | {"scoring": updating - scoring, "update": time.perf_counter() - updating}

        metrics |= {"skipped_updates": metrics["skipped_updates"] + critic_metrics["skipped_updates"]} | {
            f"critic/{name}": value for name, value in critic_metrics.items() if name in OF_CRITIC}
        metrics |= jax.tree.map(np.asarray, step_metrics(draw, seconds, prompts.num_dropped) | value_metrics(
            batch, credited["returns"]))
        return state, metrics, lambda: recorder.record(draw, number, credited["advantages"], batch["old_logps"])

    online.train_on_prompts(config, prompts, model, tokenizer, layout, state.replace(critic=critic_state), step,
                            collect, eval_key, tasks)


def counts_reference(config: Config, objective: Any) -> tuple[bool, bool]:
    """(whether the KL is in the reward; whether the reference is scored)."""
    from objectives.base import declared

    in_reward = config.beta > 0 and config.algorithm.kl_in == "reward"
    return in_reward, in_reward or "ref_logps" in declared(objective)


def make_step(config: Config, objective: Any, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """Of the policy: (state, micro-batches, ahead) -> (state, metrics, logps)"""
    from models.scoring import score_by
    from training.step import make_accumulated_step

    return make_accumulated_step(model.clone(training=True), objective, optimizer, schedule, state,
                                 functools.partial(score_by, temperature=config.temperature))


def make_critic_step(config: Config, critic: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """Of the critic: (state, micro-batches, ahead) -> (state, metrics, values)"""
    from models.heads import values_by
    from objectives.ppo import value_loss
    from training.step import make_accumulated_step

    return make_accumulated_step(critic.clone(training=True), functools.partial(
        value_loss, epsilon=config.critic.epsilon), optimizer, schedule, state, values_by)


def programs(config: Config, devices: Any, prompt_length: int) -> list[Any]:
    """What a step runs, over shapes, for prompts of so many tokens (scripts.plan)."""
    from cli.online_shapes import rollouts_of, sampling_programs, scoring_program, together, update_programs
    from cli.shapes import shaped, shaped_reference
    from models.scoring import score_by
    from objectives.ppo import configure_policy
    from rollouts.abstract import micro_batch_shapes
    from sharding.mesh import make_layout
    from training.critic import prepare_values
    from training.reference import prepare_rollouts
    from training.runs import open_config

    config, layout = with_kl(config), make_layout(config.mesh, devices)
    objective, critic = make_objective(config, configure_policy), config.critic
    shapes = shaped(config, open_config(config.model), layout, config.num_updates)
    headed = dataclasses.replace(open_config(critic.model or config.model), reward_head=True)
    of_critic = shaped(for_critic(config, critic), headed, layout, critic.num_updates)
    _, held = counts_reference(config, objective)
    reference, frozen = shaped_reference(config, shapes) if held else (None, None)

    rollouts, valued = (rollouts_of(config, layout, prompt_length, each.num_minibatches,
                                    each.microbatch_tokens or config.microbatch_tokens) for each in (config, critic))
    scored = ("old_logps",) + ("ref_logps",) * held
    micro = micro_batch_shapes(rollouts.shape, layout, (*scored, "advantages", "returns"), computed_columns(config))
    for_values = micro_batch_shapes(valued.shape, layout, ("values", "returns"))
    step = make_step(config, objective, *shapes[1:])
    critic_step = make_critic_step(config, *of_critic[1:])
    prepare = prepare_rollouts(shapes.model, reference, frozen, layout,
                               functools.partial(score_by, temperature=config.temperature), old=True)
    training = [
        *update_programs("policy", shapes, step, micro, rollouts, config.num_updates),
        *update_programs("critic", of_critic, critic_step, for_values, valued, critic.num_updates),
        scoring_program("scoring of a micro-batch", shapes, prepare.compiled, (shapes.state, frozen), micro, rollouts,
                        config.num_minibatches, len(scored)),
        scoring_program("values of a micro-batch", of_critic, prepare_values(of_critic.model, layout).compiled,
                        (of_critic.state,), for_values, valued, critic.num_minibatches)]
    sampling, engine = sampling_programs(config, shapes.model, layout, rollouts.longest)
    kept = of_critic.state.replace(params={}) if shares_base(config, critic) else of_critic.state
    return together(training, sampling, engine, (shapes.state, kept, frozen))


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    check_policy(config)
    check_critic(config.critic, config.batch_size, config.max_steps)
    check_fraction(config, "gamma", "lam")
    check_not_negative(config, "beta")
    if config.algorithm.kl_in == "reward" and config.algorithm.kl_weighted:
        raise InputError("--algorithm.kl-weighted: nothing is weighted in the reward; give --algorithm.kl-in loss")
    check_not_negative(config.algorithm, "lam_alpha", "missing_end_penalty", prefix="algorithm.")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
