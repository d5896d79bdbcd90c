"""What every script of online training shares: flags, prompts, rewards, the sampler, and evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import InputError
from scripts import cli, experiment


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """How completions are drawn in training, besides --temperature."""

    top_k: int = 0
    """the likeliest tokens that are left to draw from; 0 for all"""
    top_p: float = 1.0
    """the likeliest tokens that together reach this probability are left"""
    min_p: float = 0.0
    """tokens at least this share as probable as the likeliest are left"""
    stop: tuple[str, ...] = ()
    """strings that end a completion, besides the model's end tokens"""
    slots: int = 64
    """completions decoded at a time; one that ends makes room for the next"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineFlags(experiment.RunFlags):
    """Of any run that trains on what its policy says."""

    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    rewards: str
    """NAME[=WEIGHT][,...], each perhaps with (key=value, ...)"""
    max_steps: int
    """steps, each a batch of rollouts and its updates"""
    group_size: int = 8
    """completions of a prompt"""
    max_new_tokens: int = 256
    """longest completion"""
    temperature: float = 1.0
    """of what is drawn, and of the policy that is trained"""
    eval_samples: int = 1
    """completions of a held-out prompt: 1 is greedy, more are drawn as in training and their rewards averaged"""
    show_every: int = 10
    """steps between completions that are shown; 0 for none"""
    reward_timeout: float = 60.0
    """seconds that each reward has for the completions of a step"""
    unsafe_code_without_sandbox: bool = False
    """run the completions' code where this machine cannot isolate it: it may do whatever you may do"""
    sampling: SamplingFlags = SamplingFlags()


MAY_DIFFER = experiment.MAY_DIFFER | {"show_every", "reward_timeout", "unsafe_code_without_sandbox"}


def check_flags(flags: OnlineFlags) -> None:
    """Raises InputError for numbers that make no sense."""
    from rollouts.sampling import make_controls

    experiment.check_flags(flags)
    cli.check_positive(flags, "max_steps", "group_size", "max_new_tokens", "temperature", "eval_samples",
                       "reward_timeout")
    cli.check_not_negative(flags, "show_every")
    if flags.sampling.top_k or flags.sampling.top_p < 1 or flags.sampling.min_p:
        cli.say("note: top-k, top-p and min-p cut the distribution that is drawn from, and not the policy that is "
                "trained; --correction token_truncate weighs for it")
    make_controls(flags.temperature, flags.sampling.top_k, flags.sampling.top_p, flags.sampling.min_p)
    if flags.sampling.slots < 1:
        raise InputError(f"--sampling.slots must be above 0, not {flags.sampling.slots}")


class Prompts(NamedTuple):
    """What a run asks, and what is held out."""

    sources: list[list[Any]]
    held_out: list[Any]
    width: int
    """tokens of the longest prompt, rounded up"""
    recorded: dict[str, Any]
    """what config.yaml is to hold"""


def open_prompts(flags: OnlineFlags, opened: Any, tokenizer: Any) -> Prompts:
    """The prompts for an opened model. Raises InputError for bad ones, or where --output-dir holds another run."""
    from data.batches import buckets
    from data.prompts import read_prompts
    from training.runs import check_free

    if tokenizer is None:
        raise InputError(f"model {flags.model!r} has no tokenizer, and rewards need text; put tokenizer.json into its "
                         f"folder")
    sources, held_out_sources = experiment.open_sources(flags)
    recorded = experiment.recorded(flags, sources, held_out_sources)
    check_free(Path(flags.output_dir), recorded, MAY_DIFFER)
    if flags.max_new_tokens > opened.config.max_length - 8:
        raise InputError(f"--max-new-tokens {flags.max_new_tokens} leaves no room for a prompt in the model's context "
                         f"of {opened.config.max_length}; lower it")
    room = (opened.config.max_length - flags.max_new_tokens) // 8 * 8  # what `width` rounds up to
    read = [[read_prompts(source, tokenizer, vocab_size=opened.config.vocab_size, max_length=room) for source in each]
            for each in (sources, held_out_sources)]
    held_out = [prompt for source in read[1] for prompt in source]
    asked = without(read[0], held_out)
    longest = max(len(prompt.tokens) for source in (*asked, held_out) for prompt in source)
    return Prompts(asked, held_out, buckets(longest)[-1], recorded)


def without(sources: list[list[Any]], held_out: list[Any]) -> list[list[Any]]:
    """The prompts that are not held out, by their tokens: procedural tasks come upon the same problem twice. Raises
    InputError where none is left of a source."""
    known = {tuple(prompt.tokens) for prompt in held_out}
    kept = [[prompt for prompt in source if tuple(prompt.tokens) not in known] for source in sources]
    if not all(kept):
        raise InputError("every prompt of a training source is held out, too; give other --eval-data")
    left_out = sum(map(len, sources)) - sum(map(len, kept))
    if left_out:
        cli.say(f"{left_out} of {sum(map(len, sources))} training prompts are held out, too, and are left out")
    return kept


def open_rewards(flags: OnlineFlags, mesh: Any) -> tuple[Any, ...]:
    """The rewards that --rewards names. Raises InputError as load_rewards does."""
    from rollouts.rewards.loading import load_rewards

    return load_rewards(flags.rewards, mesh=mesh, unsafe=flags.unsafe_code_without_sandbox)


def make_roll(flags: OnlineFlags, model: Any, tokenizer: Any, rewards: Sequence[Any],
              width: int) -> Callable[..., Any]:
    """(variables, prompts, key, group_size, greedy) -> Rollouts, as the flags have them drawn and rewarded."""
    from rollouts.rollout import roll_out
    from rollouts.sampler import generate, make_ends
    from rollouts.sampling import make_controls

    chosen = flags.sampling
    drawn = make_controls(flags.temperature, chosen.top_k, chosen.top_p, chosen.min_p)
    ends = make_ends(tokenizer, chosen.stop)

    def roll(variables: Any, prompts: Sequence[Any], key: Any, group_size: int, greedy: bool = False) -> Any:
        def sampler(tokens: Any, key: Any, group_size: int) -> Any:
            return generate(model, variables, tokens, key, max_new_tokens=flags.max_new_tokens,
                            controls=make_controls(0.0) if greedy else drawn, ends=ends, group_size=group_size,
                            slots=chosen.slots, longest=(width, flags.max_new_tokens))

        rows, usual = len(prompts) * group_size, flags.batch_size * flags.group_size
        timeout = flags.reward_timeout * max(1.0, rows / usual)
        return roll_out(prompts, sampler, tokenizer.decode, rewards, key, group_size, timeout)

    return roll


def make_evaluation(flags: OnlineFlags, roll: Callable[..., Any], prompts: Sequence[Any], key: Any) -> Any:
    """A function from a state to held-out metrics: greedy, or means of --eval-samples drawn; None without prompts."""
    from rollouts.rollout import log_failures, rollout_metrics

    def evaluate(state: Any) -> dict[str, float]:
        rolled = roll(state.variables(), prompts, key, flags.eval_samples, greedy=flags.eval_samples == 1)
        log_failures(Path(flags.output_dir) / "eval_failures.jsonl", int(state.step), rolled.failures)
        kept = ("reward", "rewards/", "completions/")
        return {name: value for name, value in rollout_metrics(rolled).items() if name.startswith(kept)}

    return evaluate if prompts else None
