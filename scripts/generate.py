"""Text from a model: one completion for each prompt."""

import dataclasses
from typing import Any, Literal

from data.sources import DataSource
from errors import InputError
from scripts import cli
from sharding.mesh import MeshConfig

DESCRIPTION = """Sample completions.

  python -m scripts.generate --model smollm2-135m-instruct --prompt "What is the capital of France?"
  python -m scripts.generate --model runs/first --data rows.jsonl --output out.jsonl --temperature 0.7

Rows have prompt (a string is a user's message where the tokenizer has a chat template), messages, or tokens. Output
rows are the row with "completion", "completion_tokens", "completion_logps" and "finish_reason" (stop or length)."""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    prompt: str | None = None
    """one prompt; or --data"""
    data: tuple[DataSource, ...] = ()
    """sources of prompts; or --prompt"""
    output: str | None = None
    """.jsonl file to write; without it, completions are shown only"""
    max_new_tokens: int = 128
    """longest completion"""
    temperature: float = 1.0
    """of softmax(logits / temperature); 0 takes the likeliest token"""
    top_k: int = 0
    """the likeliest tokens that are left to draw from; 0 for all"""
    top_p: float = 1.0
    """the likeliest tokens that together reach this probability are left"""
    min_p: float = 0.0
    """tokens at least this share as probable as the likeliest are left"""
    stop: tuple[str, ...] = ()
    """strings that end a completion, besides the model's end tokens"""
    num_samples: int = 1
    """completions of each prompt"""
    seed: int = 0
    """the same seed gives the same completions"""
    batch_size: int = 16
    """completions decoded at a time; one that ends makes room for the next"""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """of matmuls; auto is what is fastest here"""
    mesh: MeshConfig = MeshConfig()


def main(config: Config) -> None:
    rows = complete(config)
    if config.output:
        with cli.output_lines(config.output) as write:
            for row in rows:
                write(row)
    show(config, rows)


def complete(config: Config) -> list[dict[str, Any]]:
    """The input rows with their completions."""
    import jax

    from data.encode import encode_prompts
    from data.sources import Concatenated, open_source
    from rollouts.sampler import Ends, generate, make_ends
    from rollouts.sampling import make_controls
    from sharding.mesh import make_mesh
    from training.progress import counted
    from training.runs import open_policy, open_tokenizer

    cli.check_positive(config, "max_new_tokens", "batch_size", "num_samples")
    cli.check_seed(config.seed)
    check(config)
    controls = make_controls(config.temperature, config.top_k, config.top_p, config.min_p)
    mesh = make_mesh(config.mesh)
    opened = open_policy(config.model)
    tokenizer = open_tokenizer(opened.tokenizer)
    source = Concatenated([open_source(each) for each in config.data]) if config.data else [{"prompt": config.prompt}]
    prompts = encode_prompts(source, tokenizer, vocab_size=opened.config.vocab_size,
                             max_length=opened.config.max_length - config.max_new_tokens)
    dtype = cli.resolve_dtype(config.dtype)
    model, variables = opened.load(mesh, dtype=dtype, param_dtype=dtype)

    if config.stop and tokenizer is None:
        raise InputError(f"--stop: model {config.model!r} has no tokenizer, so its tokens have no text")
    ends = make_ends(tokenizer, config.stop) if tokenizer else Ends()
    with jax.set_mesh(mesh), counted(len(prompts) * config.num_samples, "generating") as advance:
        completions = generate(model, variables, prompts, jax.random.key(config.seed),
                               max_new_tokens=config.max_new_tokens, controls=controls, ends=ends,
                               group_size=config.num_samples, slots=config.batch_size, advance=advance)
    done = [{"completion": tokenizer.decode(each.tokens) if tokenizer else None, "completion_tokens": each.tokens,
             "completion_logps": each.logps, "finish_reason": each.finish_reason} for each in completions]
    return [source[number // config.num_samples] | row for number, row in enumerate(done)]


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    if (config.prompt is None) == (not config.data):
        raise InputError("give either --prompt TEXT or --data rows.jsonl")
    if config.prompt == "":
        raise InputError("--prompt is empty; give some text")
    if config.output:
        cli.check_output(config.output)


def show(config: Config, rows: list[dict[str, Any]]) -> None:
    """The completion of --prompt, or where those of --data are."""
    if config.prompt is not None:
        print("\n---\n".join(row["completion"] for row in rows))
    elif config.output:
        print(f"{len(rows)} completions: {config.output}")
    else:
        for row in rows:
            print(row["completion"], end="\n---\n")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
