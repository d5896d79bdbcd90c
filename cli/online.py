"""The set-up that scripts of online training share: prompts, rewards, the sampler, and evaluation."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cli.columns import NOTHING, Needed
from cli.command import print_once, tell_dropped
from cli.experiment import Flags, check_output_dir, open_sources, resolve
from cli.flags import OnlineFlags, check_online_flags
from errors import InputError


def begin(flags: Flags, check: Callable[[Any], None]) -> Flags:
    """Checks the flags, by a script's own `check` too; the flags as resolve gives them.

    Raises InputError where several processes were started: each would write the one run directory.
    """
    from sharding.hosts import several_processes

    check_online_flags(flags)
    check(flags)
    if several_processes(flags.hosts, os.environ):
        raise InputError("online training runs in one process as yet, and several were started, which would all write "
                         f"{flags.output_dir}; start one, with all devices of one machine")
    if flags.sampling.truncates:
        print_once("note: top-k, top-p and min-p cut the distribution that is drawn from, and not the policy that is "
                   "trained; --importance-sampling-correction token_truncate weighs for it")
    return resolve(flags)


class Prompts(NamedTuple):
    """What a run trains on and is evaluated on."""

    sources: list[list[Any]]
    eval_prompts: list[Any]
    max_prompt_length: int
    """tokens of the longest prompt, rounded up"""
    num_dropped: int
    """training prompts that were left out as too long"""
    columns: tuple[str, ...]
    """numbers of their rows that the objective takes"""
    config: dict[str, Any]
    """what config.yaml holds"""


def open_prompts(flags: OnlineFlags, opened: Any, tokenizer: Any, renamed: Mapping[str, str],
                 needed: Needed = NOTHING) -> Prompts:
    """The prompts for an opened model. Raises InputError for bad ones, or where --output-dir holds another run."""
    from batch import buckets
    from data.encode import check_ends
    from data.prompts import read_prompts

    if tokenizer is None:
        raise InputError(f"model {flags.model!r} has no tokenizer, and rewards need text; put tokenizer.json into its "
                         f"folder")
    check_ends(tokenizer, opened.config.vocab_size)
    sources, eval_sources = open_sources(flags, tokenizer)
    config = check_output_dir(flags, sources, eval_sources, renamed=renamed)
    if flags.max_new_tokens > opened.config.max_length - 8:
        raise InputError(f"--max-new-tokens {flags.max_new_tokens} leaves no room for a prompt in the model's context "
                         f"of {opened.config.max_length}; lower it")
    max_length = (opened.config.max_length - flags.max_new_tokens) // 8 * 8  # what the longest is rounded up to
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
    longest_prompt = max(len(prompt.tokens) for source in (*prompts, eval_prompts) for prompt in source)
    return Prompts(prompts, eval_prompts, buckets(longest_prompt)[-1], num_dropped, columns, config)


def without_eval_prompts(sources: list[list[Any]], eval_prompts: list[Any]) -> list[list[Any]]:
    """The prompts that are no eval prompts, by their tokens: procedural tasks come upon the same problem twice. Raises
    InputError where none remains of a source."""
    eval_tokens = {tuple(prompt.tokens) for prompt in eval_prompts}
    remaining = [[prompt for prompt in source if tuple(prompt.tokens) not in eval_tokens] for source in sources]
    if not all(remaining):
        raise InputError("every prompt of a training source is held out, too; give other --eval-data")
    total, number = sum(map(len, sources)), sum(map(len, remaining))
    if number < total:
        print_once(f"{total - number} of {total} training prompts are held out, too, and are left out")
    return remaining


def open_rewards(flags: OnlineFlags, mesh: Any, tokenizer: Any) -> tuple[Any, ...]:
    """The rewards that --rewards names; one that renders prompts does so where the policy's `tokenizer` does. Raises
    InputError as load_rewards does."""
    from rewards.registry import load_rewards

    return load_rewards(flags.rewards, mesh=mesh, unsafe=flags.unsafe_code_without_sandbox,
                        chat=bool(tokenizer.chat_template))


def make_rollout(flags: OnlineFlags, model: Any, tokenizer: Any, rewards: Sequence[Any],
                 max_prompt_length: int, mesh: Any) -> Callable[..., Any]:
    """(variables, prompts, key, group_size, greedy) -> Rollouts, drawn and rewarded as the flags say."""
    from rollouts.engine import Engine, capacity_for
    from rollouts.generate import generate
    from rollouts.rollout import roll_out
    from rollouts.sampling import make_controls
    from rollouts.stops import make_ends

    controls = flags.sampling.controls(flags.temperature)
    ends = make_ends(tokenizer, flags.sampling.stop)

    @functools.cache
    def engine() -> Engine:  # whose memory is taken when it is needed
        num_slots = flags.rollouts.num_slots
        capacity = capacity_for(model, num_slots, max_prompt_length + flags.max_new_tokens)
        return Engine(model, num_slots, capacity, mesh=mesh, tensor=flags.rollouts.tensor)

    def rollout(variables: Any, prompts: Sequence[Any], key: Any, group_size: int, greedy: bool = False) -> Any:
        def sampler(tokens: Any, key: Any, group_size: int) -> Any:
            at_work = engine()
            at_work.load(variables)
            return generate(at_work, tokens, key, max_new_tokens=flags.max_new_tokens,
                            controls=make_controls(0.0) if greedy else controls, ends=ends, group_size=group_size)

        num_rows, rows_of_a_step = len(prompts) * group_size, flags.batch_size * flags.group_size
        timeout = flags.reward_timeout * max(1.0, num_rows / rows_of_a_step)
        return roll_out(prompts, sampler, tokenizer.decode, rewards, key, group_size, timeout)

    return rollout


def make_evaluation(flags: OnlineFlags, rollout: Callable[..., Any], prompts: Sequence[Any], key: Any) -> Any:
    """A function from a state to eval metrics: greedy, or means of several samples; None without prompts."""
    from rollouts.rollout import log_failures, rollout_metrics

    num_samples = flags.rollouts.num_eval_samples

    def evaluate(state: Any) -> dict[str, float]:
        rollouts = rollout(state.variables(), prompts, key, num_samples, greedy=num_samples == 1)
        log_failures(Path(flags.output_dir) / "eval_failures.jsonl", int(state.step), rollouts.failures)
        names = ("reward", "rewards/", "completions/")
        return {name: value for name, value in rollout_metrics(rollouts).items() if name.startswith(names)}

    return evaluate if prompts else None
