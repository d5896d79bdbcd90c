"""The set-up that scripts of online training share: prompts, rewards, the engine, and evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cli import banner
from cli.columns import NOTHING, Needed
from cli.command import print_once, tell_dropped
from cli.experiment import Flags, check_output_dir, open_sources, resolve
from cli.flags import OnlineFlags, check_online_flags
from cli.resume import check_place, split_of
from errors import InputError


def begin(flags: Flags, check: Callable[[Any], None]) -> Flags:
    """Checks the flags, by a script's own `check` too, and connects the processes; the flags as resolve gives them."""
    from sharding.hosts import connect

    check_online_flags(flags)
    check(flags)
    connect(flags.hosts)
    check_place(flags)
    if flags.sampling.note:
        print_once(flags.sampling.note)
    return resolve(flags)


class Prompts(NamedTuple):
    """What a run trains on and is evaluated on."""

    sources: list[list[Any]]
    eval_prompts: list[Any]
    lengths: list[int]
    """tokens of each training prompt, as far as they are known"""
    max_length: int
    """tokens of the longest of all"""
    num_dropped: int
    """training prompts that were left out as too long"""
    columns: tuple[str, ...]
    """numbers of their rows that the objective takes"""
    config: dict[str, Any]
    """what config.yaml holds"""

    def for_rewards(self) -> list[list[str]]:
        """Names of the columns that rows have beside the prompt, any of them; of those that are held out, apart."""
        training = [prompt for source in self.sources for prompt in source]
        return [list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
                for prompts in (training, self.eval_prompts) if prompts]


def open_prompts(flags: OnlineFlags, opened: Any, tokenizer: Any, renamed: Mapping[str, str],
                 needed: Needed = NOTHING) -> Prompts:
    """The prompts for an opened model. Raises InputError for bad ones, or where --output-dir holds another run."""
    from data.encode import check_ends
    from data.prompts import read_prompts

    check_ends(tokenizer, opened.config.vocab_size)
    sources, eval_sources = open_sources(flags, tokenizer)
    config = check_output_dir(flags, sources, eval_sources, renamed=renamed)
    if flags.max_new_tokens > opened.config.max_length - 8:
        raise InputError(f"--max-new-tokens {flags.max_new_tokens} leaves no room for a prompt in the model's context "
                         f"of {opened.config.max_length}; lower it")
    max_length = (opened.config.max_length - flags.max_new_tokens) // 8 * 8  # what the longest is rounded up to
    if flags.environment.make:
        _check_environment(flags, tokenizer, max_length)
    columns = needed.found(sources)["columns"]
    prompts, eval_prompts = (
        [read_prompts(source, tokenizer, vocab_size=opened.config.vocab_size, max_length=max_length,
                      drop_long=flags.too_long == "drop", numbers=numbers) for source in each]
        for each, numbers in ((sources, columns), (eval_sources, ())))
    for read, source in zip((*prompts, *eval_prompts), (*sources, *eval_sources)):
        tell_dropped(len(read), len(source), max_length)
    num_dropped = sum(map(len, sources)) - sum(map(len, prompts))
    eval_prompts = [prompt for source in eval_prompts for prompt in source]
    prompts = without_eval_prompts(prompts, eval_prompts)
    lengths = [len(prompt.tokens) for source in prompts for prompt in source]
    if flags.environment.make:
        lengths = [flags.environment.max_prompt_length]
    max_length = max([*lengths, *(len(prompt.tokens) for prompt in eval_prompts)])
    return Prompts(prompts, eval_prompts, lengths, max_length, num_dropped, columns, config)


def _check_environment(flags: OnlineFlags, tokenizer: Any, max_length: int) -> None:
    """Raises InputError where no conversation can be held."""
    if not tokenizer.chat_template:
        raise InputError(f"--environment.make: model {flags.model!r} has no chat template, and conversations need one; "
                         f"put chat_template.jinja into its folder, or take a model that has one")
    if flags.environment.max_prompt_length > max_length:
        raise InputError(f"--environment.max-prompt-length {flags.environment.max_prompt_length} and --max-new-tokens "
                         f"{flags.max_new_tokens} are more than the model's context; with these, an opening has at "
                         f"most {max_length} tokens")


def open_tokenized(model: str) -> tuple[Any, Any]:
    """(the model, its weights not read yet; its tokenizer). Raises InputError for one without."""
    from data.tokenizer import open_tokenizer
    from training.runs import open_policy

    opened = open_policy(model)
    tokenizer = open_tokenizer(opened.tokenizer)
    if tokenizer is None:
        raise InputError(f"model {model!r} has no tokenizer, and rewards need text; put tokenizer.json into its folder")
    return opened, tokenizer


def open_environments(flags: OnlineFlags) -> Any:
    """What makes environments, and their limits; None without --environment.make. Raises InputError where that names no
    function."""
    from data.specs import load_function
    from rollouts.environments import Environments

    if not flags.environment.make:
        return None
    return Environments(load_function(flags.environment.make), flags.environment.max_turns,
                        flags.environment.max_prompt_length, flags.environment.timeout)


def without_eval_prompts(sources: list[list[Any]], eval_prompts: list[Any]) -> list[list[Any]]:
    """The prompts that are no eval prompts, by their tokens: procedural tasks come upon the same problem twice. Raises
    InputError where none remains of a source."""
    eval_tokens = {tuple(prompt.tokens) for prompt in eval_prompts}
    remaining = [[prompt for prompt in source if tuple(prompt.tokens) not in eval_tokens] for source in sources]
    if not all(remaining):
        raise InputError("every prompt of a training source is held out, too; give other --eval-data or "
                         "--evaluate.tasks")
    total, number = sum(map(len, sources)), sum(map(len, remaining))
    if number < total:
        print_once(f"{total - number} of {total} training prompts are held out, too, and are left out")
    return remaining


def without_questions(prompts: Prompts, tasks: Sequence[Any]) -> Prompts:
    """The prompts without those that --evaluate.tasks ask. Raises InputError where none remains of a source."""
    questions = [prompt for task in tasks for prompt in task.prompts]
    return prompts._replace(sources=without_eval_prompts(prompts.sources, questions)) if questions else prompts


def open_rewards(flags: OnlineFlags, layout: Any, tokenizer: Any, prompts: Prompts) -> tuple[Any, ...]:
    """The rewards that --rewards names; one that renders prompts does so where the policy's `tokenizer` does. Raises
    InputError as load_rewards does, and where one cannot do with the columns of the prompts."""
    from rewards.registry import load_rewards
    from rewards.scoring import check_columns

    rewards = load_rewards(flags.rewards, layout=layout, unsafe=flags.unsafe_code_without_sandbox,
                           chat=bool(tokenizer.chat_template), dtype=flags.dtype)
    for names in prompts.for_rewards():
        check_columns(rewards, names)
    return rewards


def make_collect(flags: OnlineFlags, model: Any, tokenizer: Any, rewards: Sequence[Any], environments: Any,
                 prompts: Prompts, layout: Any) -> Callable[..., Any]:
    """(variables, prompts, key, version, advance, group_size, greedy) -> groups, drawn and graded as the flags say."""
    from rollouts.collecting import Collector
    from rollouts.engine import make_engine
    from rollouts.sampling import make_controls
    from rollouts.stops import make_ends

    longest = prompts.max_length + flags.max_new_tokens
    engine = make_engine(model, flags.rollouts.num_slots, longest, layout, flags.sampling.mesh)
    print_once(engine.describe())
    collector = Collector(engine, tokenizer, rewards, flags.max_new_tokens, make_ends(tokenizer, flags.sampling.stop),
                          flags.reward_timeout, environments, sorted({*sum(prompts.for_rewards(), [])}))
    sampled, likeliest = flags.sampling.controls(flags.temperature), make_controls(0.0)

    @functools.cache
    def warm_up() -> None:
        engine.warm_up(longest)

    def collect(variables: Any, some: Sequence[Any], key: Any, version: int,
                advance: Callable[[int], None] = lambda count: None, group_size: int = flags.group_size,
                greedy: bool = False) -> Iterator[Any]:
        engine.load(variables, version)
        warm_up()
        steps = max(1.0, len(some) * group_size / (flags.batch_size * flags.group_size))
        timed = dataclasses.replace(collector, reward_timeout=flags.reward_timeout * steps)
        return timed.collect(some, key, group_size, likeliest if greedy else sampled, advance)

    collect.engine = engine  # others decode with it, too: cli.evaluation
    return collect


def tell_memory(states: Mapping[str, Any], reference: Any, shared: bool) -> None:
    """A line with what the fullest device holds through a step, activations, the sampler's copy and cache not counted:
    weights, optimiser state and float32 gradients of each of the train states, and a frozen reference. With `shared`
    the weights of all states are those of the first."""
    import jax
    import jax.numpy as jnp

    from rollouts.memory import bytes_of_device

    def gradients(state: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding),
                            state.trainable)

    first, sizes = next(iter(states)), {}
    for name, state in states.items():
        weights = () if shared and name != first else state.params
        sizes[name] = bytes_of_device((weights, state.lora, state.opt_state, gradients(state)))
    sizes["reference"] = bytes_of_device(reference)
    parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items())
    print_once(f"memory before activations: {sum(sizes.values()) / 2**20:,.1f} MiB a device ({parts}"
               f"{'; one base for all' if shared else ''})")


def make_evaluation(flags: OnlineFlags, collect: Callable[..., Any], prompts: Sequence[Any], key: Any) -> Any:
    """A function from a state to eval metrics: greedy, or means of several samples; None without prompts."""
    import numpy as np

    from rollouts.console import FailureLog
    from rollouts.drawing import collect_all
    from rollouts.metrics import rollout_metrics
    from rollouts.samples import write_samples
    from sharding.hosts import is_main

    num_samples, run = flags.rollouts.num_eval_samples, Path(flags.output_dir)
    failures = FailureLog(run / "eval_failures.jsonl")

    def evaluate(state: Any) -> dict[str, float]:
        step = int(state.step)
        groups, seconds = collect_all(prompts, lambda some, number, advance: collect(
            state.variables(), some, key, step, advance, num_samples, num_samples == 1))
        if is_main():
            failures.update(step, groups)
            write_samples(run / "eval", step, groups, [], np.zeros(0), None)
        names = ("reward", "rewards/", "completions/")
        metrics = rollout_metrics(groups, seconds["rollout"])
        return {name: value for name, value in metrics.items() if name.startswith(names)}

    return evaluate if prompts else None


def train_on_prompts(flags: OnlineFlags, prompts: Prompts, model: Any, tokenizer: Any, layout: Any, state: Any,
                     step: Any, collect: Callable[..., Any], key: Any, tasks: Sequence[Any]) -> None:
    """The last part of a script of online training: a run directory, its loop, and evaluation with `key`, by the tasks
    of --evaluate.tasks, too. `step` is rollouts.online.Step."""
    from cli.evaluation import make_benchmarks
    from cli.experiment import loop_config, print_done
    from data.prompts import PromptBatches
    from rollouts.online import train_online
    from training.holding import held
    from training.runs import start

    def open_batches(position: Any) -> PromptBatches:
        weights = [each.weight for each in flags.data]
        return PromptBatches(prompts.sources, weights, flags.batch_size, flags.seed, position)

    run = Path(flags.output_dir)
    evaluate = make_evaluation(flags, collect, prompts.eval_prompts, key)
    benchmarks = make_benchmarks(flags, tasks, model, tokenizer, layout, collect.engine)
    loop = loop_config(flags)
    about = banner.of_prompts(flags, prompts, model, layout, state)
    with held(run):
        start(run, prompts.config | split_of(flags), model.config, tokenizer, about)
        banner.tell_banner(about)
        train_online(state, step, open_batches, run, loop, evaluate, benchmarks)
    print_done(flags)
