"""Text from a model: one completion for each prompt."""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from cli import command
from cli.checks import check_file, check_positive, check_seed, compute_in, resolve_dtype
from cli.flags import SamplingFlags, SamplingMeshFlags, seed_field, temperature_field
from cli.renamed import GENERATE
from data.sources import DataSource
from errors import InputError, shown
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig

DESCRIPTION = """Sample completions.

  python -m scripts.generate --model smollm2-135m-instruct --prompt "What is the capital of France?"
  python -m scripts.generate --model runs/first --data rows.jsonl --output out.jsonl --temperature 0.7

Rows have prompt (a string is a user's message where the tokenizer has a chat template, unless it begins with a special
token), messages, or tokens, and perhaps tools and chat_template_kwargs for the template. Output rows are the row with
"completion", "completion_tokens", "completion_logps" and "finish_reason" (stop, length, or error), in the order of the
input, each written as soon as those before it are there.

Ended, by whatever, it goes on where it was when the same command is given again, and ends with the same file."""

BLOCK = 16
"""completions a slot that are answered by themselves (rollouts.generate.stream_blocks): of those that an output has,
some of the last so many are computed again when it is gone on with"""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """This model completes the prompts: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT
    adapter or run directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    prompt: str | None = None
    """This prompt is completed; or give --data."""
    data: tuple[DataSource, ...] = ()
    """The prompts of these sources are completed; or give --prompt."""
    output: str | None = None
    """The rows are written to this .jsonl file, with which the same command goes on; without it, completions are
    printed only."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"; a row's column chat_template_kwargs
    comes before them."""
    max_new_tokens: int = 128
    """A completion has this many tokens at the most."""
    temperature: float = temperature_field()
    """Tokens are drawn from softmax(logits / temperature); 0 takes the likeliest one."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = SamplingFlags()
    logit_bias: tuple[str, ...] = ()
    """TOKEN=NUMBER adds the number to the logits of the token of this id."""
    sampling_layout: Annotated[SamplingMeshFlags, tyro.conf.arg(name="sampling")] = SamplingMeshFlags()
    too_long: Literal["error", "drop"] = "error"
    """Prompts of --data that leave no room for --max-new-tokens in the model's context end the run, or are left out."""
    num_samples: int = 1
    """A prompt is completed this many times."""
    seed: int = seed_field()
    """The same seed gives the same completions."""
    num_slots: int = 16
    """This many completions are decoded at a time; one that ends makes room for the next."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here, on CPUs as measured at the first start."""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        from rollouts.sampling import effective_temperature

        greedy = effective_temperature(self.temperature) == 0
        cut = ("sampling.top_k", "sampling.top_p", "sampling.min_p")
        return (dict.fromkeys(cut, "at --temperature 0") if greedy else {}) | (
            {} if self.data else {"too_long": "without --data"})


class Work(NamedTuple):
    """What is to be completed."""

    source: Any
    rows: list[int]
    """of the source, those that fit"""
    prompts: list[list[int]]
    """of these rows"""
    ends: Any
    tokenizer: Any

    def row(self, number: int, completion: Any, num_samples: int) -> dict[str, Any]:
        """The row of completion `number`, with the completion."""
        text = self.tokenizer.decode(completion.tokens) if self.tokenizer else None
        return self.source[self.rows[number // num_samples]] | {
            "completion": text, "completion_tokens": completion.tokens, "completion_logps": completion.logps,
            "finish_reason": completion.finish_reason}


def main(config: Config) -> None:
    from cli.output import check_same
    from sharding.exchange import broadcast
    from sharding.hosts import barrier, connect, is_main, warn
    from sharding.mesh import make_layout
    from training.checksums import checksums
    from training.progress import counted
    from training.runs import open_policy

    check(config)
    connect(config.hosts)
    layout = make_layout(config.mesh)
    config = dataclasses.replace(config, dtype=compute_in(resolve_dtype(config.dtype)))
    opened = open_policy(config.model)
    work = open_work(config, opened)
    command_so_far = describe(config, work)
    if config.output and is_main():
        check_same(Path(config.output), command_so_far)
    broadcast(None)  # no process goes on where the output is refused

    model, variables = opened.load(layout, dtype=config.dtype, param_dtype=config.dtype)
    total = len(work.prompts) * config.num_samples
    command_now = command_so_far | {"weights": digest(checksums(variables))}
    failed = 0
    with writer(config, command_now) as (first, write), counted(total, "generating") as advance:
        advance(first)
        engine = open_engine(config, work, model, layout)
        engine.load(variables)
        command.print_once(engine.describe(), sys.stderr)
        for number, completion in enumerate(complete(config, work, engine, first), first):
            write(number, work.row(number, completion, config.num_samples))
            advance(1)
            failed += completion.finish_reason == "error"
    if failed:
        warn(f"{failed} completions are cut short where the model's numbers are not finite (finish_reason error); look "
             f"at its weights")
    if config.output:
        command.print_once(f"{total} completions: {config.output}")
    barrier("generated")


def open_engine(config: Config, work: Work, model: Any, layout: Any) -> Any:
    """With no more slots than there are completions."""
    from rollouts.engine import make_engine

    num_slots = min(config.num_slots, len(work.prompts) * config.num_samples)
    longest = max(map(len, work.prompts)) + config.max_new_tokens
    return make_engine(model, num_slots, longest, layout, config.sampling_layout.mesh)


def complete(config: Config, work: Work, engine: Any, first: int) -> Iterator[Any]:
    """Completions number `first` and on, in order."""
    import jax

    from rollouts.engine import Request
    from rollouts.generate import stream_blocks
    from rollouts.requests import fold_keys

    controls, key = config.sampling.controls(config.temperature), jax.random.key(config.seed)
    bias = parse_bias(config.logit_bias)

    def make_requests(numbers: range) -> list[Any]:
        return [Request(work.prompts[number // config.num_samples], config.max_new_tokens, each, controls, work.ends,
                        bias) for number, each in zip(numbers, fold_keys(key, numbers), strict=True)]

    return stream_blocks(engine, make_requests, len(work.prompts) * config.num_samples, first,
                         BLOCK * config.num_slots)


def open_work(config: Config, opened: Any) -> Work:
    """The prompts for an opened model. Raises InputError for bad ones."""
    from data.encode import encode_prompts
    from data.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(opened.tokenizer)
    ends = open_ends(config, tokenizer, opened.config.vocab_size)
    source = open_prompts(config, tokenizer)
    max_length = opened.config.max_length - config.max_new_tokens
    encoded = encode_prompts(source, tokenizer, vocab_size=opened.config.vocab_size, max_length=max_length,
                             drop_long=config.too_long == "drop")
    rows = [index for index, tokens in enumerate(encoded) if tokens is not None]
    command.tell_dropped(len(rows), len(encoded), max_length)
    return Work(source, rows, [encoded[index] for index in rows], ends, tokenizer)


def open_ends(config: Config, tokenizer: Any, vocab_size: int) -> Any:
    """What ends a completion. Raises InputError for --stop without a tokenizer, and for end tokens beyond the model's
    embedding."""
    from data.encode import check_ends
    from rollouts.stops import Ends, make_ends

    stop = config.sampling.stop
    if stop and tokenizer is None:
        raise InputError(f"--stop: model {config.model!r} has no tokenizer, so its tokens have no text")
    if tokenizer is None:
        return Ends()
    check_ends(tokenizer, vocab_size)
    return make_ends(tokenizer, stop)


def open_prompts(config: Config, tokenizer: Any) -> Any:
    """The rows of --data one after the other, or --prompt as the only one, with --chat-template-kwargs."""
    from data.messages import parse_template_kwargs
    from data.sources import Concatenated, open_in_order, with_template_kwargs

    sources = with_template_kwargs(open_in_order(config.data), config.chat_template_kwargs, tokenizer)
    kwargs = parse_template_kwargs(config.chat_template_kwargs)
    prompt = {"prompt": config.prompt} | ({"chat_template_kwargs": kwargs} if kwargs else {})
    return Concatenated(sources) if config.data else [prompt]


def describe(config: Config, work: Work) -> dict[str, Any]:
    """What an output is known again by: all flags but where it runs and goes, by the rows, not by where they lie."""
    from training.runs import absolute_reference, flatten

    flags = dataclasses.asdict(config) | {"model": absolute_reference(config.model)}
    rows = ([work.source[index], tokens] for index, tokens in zip(work.rows, work.prompts, strict=True))
    return flatten({name: value for name, value in flags.items() if name not in ("output", "hosts", "data")}) | {
        "rows": digest(*rows)}


def digest(*values: Any) -> str:
    """SHA-256 of values as JSON."""
    found = hashlib.sha256()
    for value in values:
        found.update(f"{json.dumps(value, default=str)}\n".encode())
    return found.hexdigest()


@contextlib.contextmanager
def writer(config: Config, command_now: dict[str, Any]) -> Iterator[tuple[int, Callable[[int, dict[str, Any]], None]]]:
    """(rows that the output has, what takes the number and row of the next one). One process writes and prints."""
    from cli.output import growing_rows
    from sharding.exchange import broadcast
    from sharding.hosts import is_main

    with contextlib.ExitStack() as stack:
        first, append = 0, None
        if config.output and is_main():
            first, append = stack.enter_context(growing_rows(Path(config.output), command_now))

        def write(number: int, row: dict[str, Any]) -> None:
            if append:
                append(row)
            if is_main() and (config.prompt is not None or not config.output):
                print_completion(config, number, row)

        yield broadcast(first), write


def print_completion(config: Config, number: int, row: dict[str, Any]) -> None:
    """With a line after each one of --data, and between those of --prompt."""
    text = shown(row["completion_tokens"]) if row["completion"] is None else row["completion"]
    between = config.prompt is not None
    print("---\n" * (between and number > 0) + text + "\n---" * (not between), flush=True)


def parse_bias(texts: Sequence[str]) -> dict[int, float]:
    """{5: -2.5} of ("5=-2.5",). Raises InputError for another form; the engine knows which tokens there are."""
    bias = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias {text}: the form is TOKEN=NUMBER, as in 11=-2.5") from None
    return bias


def check(config: Config) -> None:
    """Raises InputError for flags that make no sense, alone or together."""
    check_positive(config, "max_new_tokens", "num_slots", "num_samples")
    check_seed(config.seed)
    config.sampling.controls(config.temperature)
    parse_bias(config.logit_bias)
    if (config.prompt is None) == (not config.data):
        raise InputError("give either --prompt TEXT or --data rows.jsonl")
    if config.prompt == "":
        raise InputError("--prompt is empty; give some text")
    if config.output:
        check_file(config.output)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, GENERATE)
