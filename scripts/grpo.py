"""Online reinforcement learning: GRPO and its relatives, with verifiable or learned rewards; full or LoRA."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from errors import InputError
from models.lora import LoRAConfig
from objectives.grpo import Settings
from scripts import cli, experiment, online

DESCRIPTION = """Make a model better at what a reward function asks for.

  python -m scripts.grpo --model smollm2-135m-instruct --data "gym:chain_sum(min_terms=2,max_terms=2)" \\
      --rewards gym:chain_sum --output-dir runs/sums --max-steps 50 --batch-size 8 --group-size 8 \\
      --max-new-tokens 32 --lora.rank 16 --learning-rate 1e-4
  python -m scripts.grpo ... --data gsm8k.jsonl --rewards "math=1.0,math_format=0.2" --eval-data test.jsonl
  python -m scripts.grpo ... --data problems.jsonl --rewards my_rewards:short_and_right

A step: the policy answers --batch-size prompts --group-size times, rewards judge the answers, an answer's advantage is
how much better it is than others of its group, and the policy is updated. Rewards: math, math_strict, math_format,
format(pattern=...), length(target=...), overlong(max_length=..., cache=...), repetition, unit_tests, unit_tests_share,
gym:TASK, gym_exact:TASK, model:PATH_OR_ID, judge:URL, or package.module:function, with TRL's signature.

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(online.OnlineFlags, Settings):
    kl_in: Literal["loss", "reward"] = "loss"
    """where --beta's KL counts"""
    advantages: Literal["group", "mean", "batch", "leave_one_out"] = "group"
    """what a reward is compared with: mean and deviation of its group (GRPO), its mean (Dr. GRPO), its mean and the
    deviation of the batch, the mean of the others (RLOO)"""
    num_minibatches: int = 1
    """updates that the rows of a batch of rollouts are split into"""
    num_epochs: int = 1
    """times that a batch of rollouts is gone through"""
    max_draws: int = 1
    """above 1, groups whose rewards are all equal are replaced, by up to so many draws in all (DAPO)"""
    objective: str | None = None
    """package.module:name, or package.module:name(key=value, ...), of a function (scores, batch) -> Loss, in place of
    objectives.grpo and its settings; docs/new_objective.md"""
    lora: LoRAConfig = LoRAConfig()


def main(config: Config) -> None:
    import jax
    import numpy as np

    from data.prompts import PromptBatches
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from objectives.advantages import ADVANTAGES
    from objectives.grpo import configure
    from rollouts.rollout import Watch, keep, log_failures, rollout_metrics, show, to_batch
    from sharding.mesh import make_mesh
    from sharding.placement import Placement
    from training.loop import train
    from training.online import draw_groups, make_scorer, penalise, put_minibatches, time_shares
    from training.optimizer import make_optimizer, make_schedule
    from training.reference import open_reference, prepare_rollouts
    from training.runs import absolute_reference, open_policy, open_tokenizer, start
    from training.state import init_state
    from training.step import make_train_step, make_updates

    check(config)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype))
    num_updates = config.num_minibatches * config.num_epochs
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps * num_updates)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh, run = make_mesh(config.mesh), Path(config.output_dir)
    policy_key, rollout_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    # the model, not read yet; prompts and rewards
    opened = open_policy(config.model)
    tokenizer = open_tokenizer(opened.tokenizer)
    prompts = online.open_prompts(config, opened, tokenizer)
    rewards = online.open_rewards(config, mesh)

    # the weights, straight to their shards
    lora = config.lora if config.lora.rank else None
    model_config, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat, attention=config.attention,
                                       param_dtype=config.dtype if lora else "float32")

    # the policy; the reference, if it counts, is the same model without its adapter, or else a frozen one
    model = Transformer(model_config, lora)
    reference, frozen = (model if config.beta else None), None
    if config.beta and not lora:
        reference, frozen = open_reference(config.model, model_config, mesh)
    state = init_state(model, params, optimizer, policy_key, mesh)

    # the parts of a step
    in_reward = config.beta > 0 and config.kl_in == "reward"
    objective = cli.load_function(config.objective) if config.objective else configure(
        **settings(config, beta=0.0 if in_reward else config.beta))
    placement = Placement(config.batch_size // config.num_minibatches, config.num_microbatches, mesh, config.group_size)

    def put(columns: dict[str, Any]) -> dict[str, jax.Array]:
        return put_minibatches(columns, placement, config.num_minibatches)

    scorer = make_scorer(config.group_size, prompts.width, config.temperature)
    roll = online.make_roll(config, model, tokenizer, rewards, prompts.width)
    prepare = prepare_rollouts(model, reference, frozen, mesh, scorer, old=num_updates > 1 or in_reward)
    update = make_updates(
        make_train_step(model.clone(training=True), objective, optimizer, schedule, state, scorer),
        state, config.num_minibatches, config.num_epochs)
    batches, watch = None, Watch()

    def open_batches(position: Any) -> PromptBatches:
        nonlocal batches
        weights = [each.weight for each in config.data]
        batches = PromptBatches(prompts.sources, weights, config.batch_size, config.seed, position)
        return batches

    @jax.transfer_guard("allow")
    def step(state: Any, asked: Any) -> tuple[Any, dict[str, Any]]:
        number = int(state.step) + 1
        key = jax.random.fold_in(rollout_key, number)

        # rollouts and rewards
        drawn, used = draw_groups(asked, lambda: next(batches), lambda some, draw: roll(
            state.variables(), some, jax.random.fold_in(key, draw), config.group_size), config.max_draws)
        rolled = drawn.take(used)

        # what policy and reference say of them
        began = time.perf_counter()
        batch = put(to_batch(rolled, prompts.width, config.max_new_tokens))
        batch = jax.block_until_ready(prepare(state, batch))
        scored = time.perf_counter()

        # advantages, and what a person may want to see
        totals = rolled.rewards
        if in_reward:
            totals = penalise(totals, batch, config.num_minibatches, config.beta, config.kl)
        with jax.enable_x64(True):  # equal rewards have advantages of 0, not of what float32 rounds to
            advantages = np.asarray(ADVANTAGES[config.advantages](totals), np.float32)
        said = np.full(drawn.rewards.shape, np.nan)
        said[used] = advantages
        keep(run / "samples" / f"step-{number:06d}.parquet", drawn, said)
        log_failures(run / "failures.jsonl", number, drawn.failures)
        watch.look(drawn, number)
        if config.show_every and (number - 1) % config.show_every == 0:
            show(drawn, number, count=3)

        # updates
        kept = time.perf_counter()
        batch |= put({"advantages": advantages.ravel()})
        with jax.transfer_guard("disallow"):
            state, metrics = jax.block_until_ready(update(state, batch))
        seconds = drawn.seconds | {"scoring": scored - began, "update": time.perf_counter() - kept}
        more = rollout_metrics(drawn) | time_shares(seconds)
        return state, metrics | {name: np.float64(value) for name, value in more.items()}

    evaluate = online.make_evaluation(config, roll, prompts.held_out, eval_key)
    loop = dataclasses.replace(experiment.loop_config(config, config.max_steps, flops_per_token=0.0), waits=True)
    start(run, prompts.recorded, model_config, tokenizer)
    train(state, step, open_batches, run, Placement(1, 1, mesh), loop, evaluate, put=lambda asked, rows: asked)
    cli.say(f"done: {run} (next: python -m scripts.generate --model {run} --prompt '...' --output out.jsonl)")


def settings(config: Config, **other: Any) -> dict[str, Any]:
    """What of the flags the objective takes."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Settings)} | other


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    online.check_flags(config)
    cli.check_positive(config, "num_minibatches", "num_epochs", "max_draws")
    if config.group_size < 2:
        raise InputError(f"--group-size {config.group_size}: an answer is compared with others of its group; "
                         f"give 2 or more")
    if config.kl_in == "reward" and (config.beta == 0 or config.kl_weighted):
        raise InputError("--kl-in reward needs a --beta above 0, and takes no --kl-weighted: nothing there is weighted")
    parts = config.num_minibatches * config.num_microbatches
    if config.batch_size % parts:
        raise InputError(f"--batch-size {config.batch_size} prompts do not divide into {parts} parts "
                         f"(--num-minibatches times --num-microbatches); change one of them")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
