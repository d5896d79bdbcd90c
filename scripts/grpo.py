"""Online reinforcement learning: GRPO and its relatives, with verifiable or learned rewards; full or LoRA."""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_positive
from cli.flags import OnlineFlags
from cli.renamed import GRPO
from errors import InputError
from models.lora import LoRAConfig
from objectives.grpo import Algorithm, PolicyLoss, Settings

DESCRIPTION = """Make a model better at what a reward function asks for.

  python -m scripts.grpo --model smollm2-135m-instruct --data "gym:chain_sum(min_terms=2,max_terms=2)" \\
      --rewards gym:chain_sum --output-dir runs/sums --max-steps 50 --batch-size 8 --group-size 8 \\
      --max-new-tokens 32 --lora.rank 16 --learning-rate 1e-4
  python -m scripts.grpo ... --data gsm8k.jsonl --rewards "math=1.0,math_format=0.2" --eval-data test.jsonl
  python -m scripts.grpo ... --data problems.jsonl --rewards my_rewards:short_and_right

A step: the policy answers --batch-size prompts --group-size times, rewards judge the answers, an answer's advantage is
how much better it is than others of its group, and the policy is updated. Rewards: math, math_strict, math_format,
format(pattern=...), length(target=...), overlong(max_length=..., cache=...), repetition, unit_tests and programs
(both also with _share; unit_tests(isolation=strict|shared|auto, packages=[numpy]), see docs/online.md), gym:TASK,
gym_exact:TASK, model:PATH_OR_ID, judge:URL, or package.module:function, with TRL's signature.

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmFlags(Algorithm):
    """What is changed rarely."""

    kl: str | None = None
    """The KL is estimated by k1, k2 or k3; by default by k3 in the loss, and by k1 in the reward, where only k1 has the
    gradient of the KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The KL of --beta counts in the loss or in the reward."""
    advantages: str = "group"
    """A reward is compared with mean and deviation of its group (group: GRPO), its mean (mean: Dr. GRPO), its mean and
    the deviation of the batch (batch), or the mean of the others (leave_one_out: RLOO); or a function of groups and
    their batch says, package.module:name (docs/new_objective.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PolicyLoss, OnlineFlags):
    num_minibatches: int = 1
    """The rows of a batch of rollouts are split into this many updates."""
    num_iterations: int = 1
    """A batch of rollouts is gone through this many times."""
    dynamic_sampling_tries: int = 1
    """Groups whose rewards are all equal are replaced by those of other prompts, in this many tries in all (DAPO); 1
    replaces none."""
    objective: str | None = None
    """The loss is this function (scores, batch) -> Loss, as package.module:name or package.module:name(key=value, ...),
    in place of objectives.grpo and its settings (docs/new_objective.md)."""
    algorithm: AlgorithmFlags = AlgorithmFlags()
    lora: LoRAConfig = LoRAConfig()

    def unread(self) -> dict[str, str]:
        replaced = loss_settings(self) if self.objective else ()
        return super().unread() | dict.fromkeys(replaced, "beside --objective, which takes its place")


COMPUTED = ("advantages", "old_logps", "ref_logps", "sampler_logps", "truncated")
"""columns that an objective is given besides the prompts' own numbers: docs/new_objective.md"""


def main(config: Config) -> None:
    import jax
    import numpy as np

    from cli import online
    from cli.columns import needed_columns
    from cli.evaluation import make_benchmarks, open_benchmarks
    from cli.experiment import choose_reference, load_model, loop_config, open_optimizer, print_done
    from data.prompts import PromptBatches
    from models.scoring import score, score_by
    from objectives.base import declared
    from rollouts.console import FailureLog, log_completions
    from rollouts.credit import make_credit, with_kl_in_reward
    from rollouts.drawing import Draw, draw_groups
    from rollouts.episodes import to_batch
    from rollouts.metrics import SpreadMonitor, rollout_metrics, time_shares
    from rollouts.online import train_online
    from rollouts.packing import gather, num_parts, pack_minibatches, plan_shapes, put, unused
    from rollouts.samples import write_samples
    from sharding.hosts import is_main
    from sharding.mesh import make_mesh
    from sharding.rules import RULES, ways
    from training.reference import prepare_rollouts
    from training.runs import start
    from training.state import init_state
    from training.step import check_split, make_accumulated_step, make_minibatch_updates

    config = with_kl(online.begin(config, check))
    objective, credit = make_objective(config), make_credit(config.algorithm.advantages)
    num_updates = config.num_minibatches * config.num_iterations
    tell_unclipped(config, num_updates)
    optimizer, schedule = open_optimizer(config, num_updates)
    mesh, run = make_mesh(config.mesh), Path(config.output_dir)
    policy_key, rollout_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    # prompts and rewards, for a model that is not read yet
    opened, tokenizer = online.open_tokenized(config.model)
    needed = needed_columns(objective, COMPUTED, scorer=score)
    environments = online.open_environments(config)
    prompts = online.open_prompts(config, opened, tokenizer, GRPO, needed)
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, mesh)
    prompts = online.without_questions(prompts, tasks)
    rewards = online.open_rewards(config, mesh, tokenizer, prompts)

    # the policy; the reference, if it counts, is the same model without its adapter, or else a frozen one
    model, params = load_model(config, opened, mesh)
    in_reward = config.algorithm.kl_in == "reward"
    on_host = {*declared(credit)} | ({"old_logps", "ref_logps"} if in_reward else set())
    wanted = on_host | {*declared(objective)}
    old, held = num_updates > 1 or "old_logps" in wanted, "ref_logps" in wanted
    reference, frozen = choose_reference(config, model, mesh) if held else (None, None)
    state = init_state(model, params, optimizer, policy_key, mesh)

    # the parts of a step
    collect = online.make_collect(config, model, tokenizer, rewards, environments, prompts, mesh)
    scorer_of = functools.partial(score_by, temperature=config.temperature)
    shapes = plan_shapes(prompts.lengths, config.max_new_tokens, config.group_size,
                         config.batch_size // config.num_minibatches, config.microbatch_tokens,
                         ways(RULES["batch"], mesh))
    check_split(objective, num_parts(shapes, config.group_size, config.batch_size // config.num_minibatches))
    prepare = prepare_rollouts(model, reference, frozen, mesh, scorer_of, old)
    update = make_minibatch_updates(make_accumulated_step(
        model.clone(training=True), objective, optimizer, schedule, state, scorer_of), state)
    monitor, failures, compiled = SpreadMonitor(), FailureLog(run / "failures.jsonl"), set()

    def step(state: Any, batches: PromptBatches, number: int) -> tuple[Any, dict[str, Any], Callable[[], None]]:
        # rollouts and rewards
        key = jax.random.fold_in(rollout_key, number)
        draw = draw_groups(batches.__next__, lambda some, again, advance: collect(
            state.variables(), some, jax.random.fold_in(key, again), number - 1, advance),
            config.dynamic_sampling_tries)

        # log-probabilities under policy and reference
        scoring = time.perf_counter()
        batch = to_batch(draw.trained, prompts.columns)
        parts = pack_minibatches(batch, config.num_minibatches, config.group_size, shapes)
        parts.append([] if compiled else unused(shapes, parts))  # nothing is compiled after the first step
        compiled.update(shapes)
        minibatches = [[prepare(state, put(batch, part, mesh)) for part in each] for each in parts]
        for name in on_host:
            batch[name] = gather([[micro.columns[name] for micro in each] for each in minibatches], parts, batch)

        # advantages
        if in_reward:
            batch["rewards"] = with_kl_in_reward(batch, config.beta, config.algorithm.kl)
        credited = credit(draw.trained, batch) | {"prompt_length": batch["prompt_length"]}
        minibatches = [[micro._replace(columns=micro.columns | put(credited, part, mesh).columns)
                        for micro, part in zip(*each)] for each in zip(minibatches, parts)]

        # updates
        updating = time.perf_counter()
        with jax.transfer_guard("disallow"):
            *updated, ahead = minibatches
            state, metrics, logps = jax.block_until_ready(update(state, updated, config.num_iterations, ahead))
        seconds = draw.seconds | {"scoring": updating - scoring, "update": time.perf_counter() - updating}

        host_metrics = rollout_metrics(draw.groups, draw.seconds["rollout"]) | time_shares(seconds) | {
            "rows_dropped": prompts.num_dropped}
        metrics |= {name: np.float64(value) for name, value in host_metrics.items()}
        return state, metrics, lambda: record(draw, number, credited["advantages"], gather(logps, parts[:-1], batch))

    def record(draw: Draw, number: int, advantages: np.ndarray, policy_logps: np.ndarray) -> None:
        if not is_main():
            return
        write_samples(run, number, draw.groups, draw.trained, advantages, policy_logps)
        failures.update(number, draw.groups)
        monitor.update(draw.groups, number)
        if config.rollouts.log_completions_every and (number - 1) % config.rollouts.log_completions_every == 0:
            log_completions(draw.groups, number, count=3)

    def open_batches(position: Any) -> PromptBatches:
        weights = [each.weight for each in config.data]
        return PromptBatches(prompts.sources, weights, config.batch_size, config.seed, position)

    evaluate = online.make_evaluation(config, collect, prompts.eval_prompts, eval_key)
    start(run, prompts.config, model.config, tokenizer)
    benchmarks = make_benchmarks(config, tasks, model, tokenizer, mesh, collect.engine)
    train_online(state, step, open_batches, run, mesh, loop_config(config, flops_per_token=0.0), evaluate, benchmarks)
    print_done(run)


def tell_unclipped(config: Config, num_updates: int) -> None:
    """A line where bounds were given that clip nothing."""
    bounds = (config.epsilon_low, config.epsilon_high, config.algorithm.delta)
    if num_updates == 1 and bounds != (Config.epsilon_low, Config.epsilon_high, AlgorithmFlags.delta):
        command.print_once("note: with one update a batch the policy is the old one, all ratios are 1, and no epsilon "
                           "or delta clips any; --num-minibatches or --num-iterations make more updates")


def with_kl(config: Config) -> Config:
    """The flags with --algorithm.kl's default made concrete."""
    kl = config.algorithm.kl or {"loss": "k3", "reward": "k1"}[config.algorithm.kl_in]
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, kl=kl))


def loss_settings(config: Config) -> dict[str, Any]:
    """The settings of objectives.grpo by their flags, algorithm.NAME or NAME; not those of a KL that is in the reward.
    """
    groups = {field.name: "algorithm." for field in dataclasses.fields(Algorithm)}
    elsewhere = ("beta", "kl") if config.algorithm.kl_in == "reward" else ()
    flags = [groups.get(field.name, "") + field.name for field in dataclasses.fields(Settings)
             if field.name not in elsewhere]
    return {flag: operator.attrgetter(flag)(config) for flag in flags}


def make_objective(config: Config) -> Any:
    """The objective that the flags describe. Raises InputError where they describe none."""
    from data.specs import load_function
    from objectives.grpo import configure

    settings = {flag.rpartition(".")[2]: value for flag, value in loss_settings(with_kl(config)).items()}
    try:
        objective = configure(**settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    return load_function(config.objective) if config.objective else objective


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    check_positive(config, "num_minibatches", "num_iterations", "dynamic_sampling_tries")
    if config.group_size < 2:
        raise InputError(f"--group-size {config.group_size}: an answer is compared with others of its group; "
                         f"give 2 or more")
    if config.algorithm.kl_in == "reward" and (not config.beta > 0 or config.algorithm.kl_weighted):
        raise InputError("--algorithm.kl-in reward needs a --beta above 0, and takes no --algorithm.kl-weighted: "
                         "nothing there is weighted")
    if config.batch_size % config.num_minibatches:
        raise InputError(f"--batch-size {config.batch_size} prompts do not divide into --num-minibatches "
                         f"{config.num_minibatches}; change one of them")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, GRPO)
