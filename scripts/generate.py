"""Text from a model: one completion for each prompt."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cli import command
from cli.checks import check_file, check_positive, check_seed, resolve_dtype
from cli.flags import SamplingFlags, seed_field, temperature_field
from cli.renamed import GENERATE
from data.sources import DataSource
from errors import InputError, shown
from sharding.hosts import HostsConfig
from sharding.mesh import MeshConfig

DESCRIPTION = """Sample completions.

  python -m scripts.generate --model smollm2-135m-instruct --prompt "What is the capital of France?"
  python -m scripts.generate --model runs/first --data rows.jsonl --output out.jsonl --temperature 0.7

Rows have prompt (a string is a user's message where the tokenizer has a chat template, unless it begins with a special
token), messages, or tokens, and perhaps tools and chat_template_kwargs for the template. Output rows are the row with
"completion", "completion_tokens", "completion_logps" and "finish_reason" (stop or length)."""


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
    """The rows are written to this .jsonl file; without it, completions are printed only."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"; a row's column chat_template_kwargs
    comes before them."""
    max_new_tokens: int = 128
    """A completion has this many tokens at the most."""
    temperature: float = temperature_field()
    """Tokens are drawn from softmax(logits / temperature); 0 takes the likeliest one."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = SamplingFlags()
    too_long: Literal["error", "drop"] = "error"
    """Prompts of --data that leave no room for --max-new-tokens in the model's context end the run, or are left out."""
    num_samples: int = 1
    """A prompt is completed this many times."""
    seed: int = seed_field()
    """The same seed gives the same completions."""
    num_slots: int = 16
    """This many completions are decoded at a time; one that ends makes room for the next."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here."""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        from rollouts.sampling import effective_temperature

        greedy = effective_temperature(self.temperature) == 0
        cut = ("sampling.top_k", "sampling.top_p", "sampling.min_p")
        return (dict.fromkeys(cut, "at --temperature 0") if greedy else {}) | (
            {} if self.data else {"too_long": "without --data"})


def main(config: Config) -> None:
    from sharding.hosts import barrier, is_main

    rows = complete(config)
    if is_main():
        write_completions(config, rows)
        print_completions(config, rows)
    barrier("generated")


def write_completions(config: Config, rows: list[dict[str, Any]]) -> None:
    """--output, where it is given."""
    from files import whole_lines

    if config.output:
        with whole_lines(Path(config.output)) as write:
            for row in rows:
                write(row)


def complete(config: Config) -> list[dict[str, Any]]:
    """The input rows with their completions."""
    import jax

    from data.encode import check_ends, encode_prompts
    from data.messages import parse_template_kwargs
    from data.sources import Concatenated, open_in_order, with_template_kwargs
    from data.tokenizer import open_tokenizer
    from rollouts.engine import Engine
    from rollouts.generate import generate
    from rollouts.stops import Ends, make_ends
    from sharding.hosts import connect
    from sharding.mesh import make_mesh
    from training.progress import counted
    from training.runs import open_policy

    check(config)
    controls = config.sampling.controls(config.temperature)
    connect(config.hosts)
    mesh = make_mesh(config.mesh)
    opened = open_policy(config.model)
    tokenizer = open_tokenizer(opened.tokenizer)
    sources = with_template_kwargs(open_in_order(config.data), config.chat_template_kwargs, tokenizer)
    kwargs = parse_template_kwargs(config.chat_template_kwargs)
    prompt = {"prompt": config.prompt} | ({"chat_template_kwargs": kwargs} if kwargs else {})
    source = Concatenated(sources) if config.data else [prompt]
    max_length = opened.config.max_length - config.max_new_tokens
    encoded = encode_prompts(source, tokenizer, vocab_size=opened.config.vocab_size, max_length=max_length,
                             drop_long=config.too_long == "drop")
    rows = [index for index, tokens in enumerate(encoded) if tokens is not None]
    prompts = [encoded[index] for index in rows]
    command.tell_dropped(len(rows), len(encoded), max_length)
    dtype = resolve_dtype(config.dtype)
    model, variables = opened.load(mesh, dtype=dtype, param_dtype=dtype)

    stop = config.sampling.stop
    if stop and tokenizer is None:
        raise InputError(f"--stop: model {config.model!r} has no tokenizer, so its tokens have no text")
    if tokenizer:
        check_ends(tokenizer, opened.config.vocab_size)
    ends = make_ends(tokenizer, stop) if tokenizer else Ends()
    with jax.set_mesh(mesh), counted(len(prompts) * config.num_samples, "generating") as advance:
        engine = Engine(model, min(config.num_slots, len(prompts) * config.num_samples), mesh=mesh)
        engine.load(variables)
        completions = generate(engine, prompts, jax.random.key(config.seed), max_new_tokens=config.max_new_tokens,
                               controls=controls, ends=ends, group_size=config.num_samples, advance=advance)
    columns = [{"completion": tokenizer.decode(each.tokens) if tokenizer else None, "completion_tokens": each.tokens,
             "completion_logps": each.logps, "finish_reason": each.finish_reason} for each in completions]
    return [source[rows[number // config.num_samples]] | row for number, row in enumerate(columns)]


def check(config: Config) -> None:
    """Raises InputError for flags that make no sense, alone or together."""
    check_positive(config, "max_new_tokens", "num_slots", "num_samples")
    check_seed(config.seed)
    if (config.prompt is None) == (not config.data):
        raise InputError("give either --prompt TEXT or --data rows.jsonl")
    if config.prompt == "":
        raise InputError("--prompt is empty; give some text")
    if config.output:
        check_file(config.output)


def print_completions(config: Config, rows: list[dict[str, Any]]) -> None:
    """The completion of --prompt, or where those of --data are."""
    if config.prompt is not None:
        print("\n---\n".join(row["completion"] for row in rows))
    elif config.output:
        print(f"{len(rows)} completions: {config.output}")
    else:
        for row in rows:
            text = shown(row["completion_tokens"]) if row["completion"] is None else row["completion"]
            print(text, end="\n---\n")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, GENERATE)
