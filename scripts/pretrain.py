"""Pre-training: next-token prediction over text, from random weights or going on from a model."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from errors import InputError
from models.architecture import Architecture
from scripts import cli, experiment

DESCRIPTION = """Train a language model to predict the next token of every text.

  python -m scripts.train_tokenizer --data tfds:python_stdlib --vocab-size 4096 --output tokenizers/python
  python -m scripts.pretrain --config configs/pretrain.yaml
  python -m scripts.pretrain --model smollm2-135m-instruct --data domain/*.jsonl --output-dir runs/domain \\
      --max-steps 500

Without --model the weights are random and the sizes --architecture's; with it, training goes on from there (continual
pre-training). Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiment.TrainingFlags):
    model: str | None = None
    """model to go on from: embedded, Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    architecture: Architecture = Architecture()
    tokenizer: str | None = None
    """folder, .gguf or .model file (scripts.train_tokenizer makes one); the model's own by default"""
    max_steps: int | None = None
    """optimiser steps; or --max-tokens"""
    max_tokens: int | None = None
    """token budget: as many steps of batch_size * max_length tokens as fit; or --max-steps"""
    objective: str = "objectives.next_token:next_token"
    """package.module:name of a function (scores, batch, z_loss) -> Loss"""
    z_loss: float = 0.0
    """weight of (log Z)^2, which keeps logits from drifting; 1e-4 is usual"""
    packing: Literal["first-fit", "concat-then-split"] = "concat-then-split"
    """rows of --max-length: texts end to end, cut where a row is full (no padding), or whole texts only (first-fit)"""


def main(config: Config) -> None:
    import jax

    from data.batches import TrainingBatches
    from data.reading import read_all, scored_bytes, windows
    from models.architecture import make_config, num_params, random_params
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from objectives.next_token import next_token
    from sharding import hosts
    from sharding.mesh import make_mesh
    from sharding.placement import Placement
    from training.evaluation import language_model_metrics, make_evaluation
    from training.loop import train
    from training.optimizer import make_optimizer, make_schedule
    from training.runs import absolute_reference, check_free, open_policy, open_tokenizer, start
    from training.state import init_state
    from training.step import make_train_step
    from training.throughput import flops_per_token

    check(config)
    hosts.connect(config.hosts)
    reference = config.model and absolute_reference(config.model)
    config = dataclasses.replace(config, model=reference, dtype=cli.resolve_dtype(config.dtype))
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model's sizes, and the texts
    opened = open_policy(config.model) if config.model else None
    tokenizer_path = Path(config.tokenizer).expanduser() if config.tokenizer else opened.tokenizer
    tokenizer = open_tokenizer(tokenizer_path)
    if tokenizer is None and opened is None:
        raise InputError(f"--tokenizer {config.tokenizer}: holds no tokenizer; scripts.train_tokenizer makes one")
    model_config = opened.config if opened else make_config(config.architecture, tokenizer.vocab_size)
    context = model_config.max_length
    if tokenizer is not None and tokenizer.vocab_size > model_config.vocab_size:
        raise InputError(f"--tokenizer {config.tokenizer} has {tokenizer.vocab_size} tokens, the model only "
                         f"{model_config.vocab_size}; take the model's own")
    encoder = experiment.make_encoder(config, config.packing, tokenizer_path, model_config.vocab_size, context)
    sources, held_out_sources = experiment.open_sources(config)
    recorded = experiment.recorded(config, sources, held_out_sources)
    check_free(run, recorded, experiment.MAY_DIFFER)
    streams = experiment.make_streams(config, config.packing, sources, encoder, context)
    max_steps = config.max_steps or max(1, config.max_tokens // (config.batch_size * streams.length))
    schedule = make_schedule(config.optimizer, config.learning_rate, max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    whole = dataclasses.replace(encoder, max_length=None)
    held_out = windows(read_all(held_out_sources, whole)[0], streams.length)
    num_bytes = scored_bytes(held_out_sources, whole)
    placement = Placement(config.batch_size, config.num_microbatches, mesh)

    # the weights, made or read straight onto their shards
    compute = {"dtype": config.dtype, "remat": config.remat, "attention": config.attention}
    if opened:
        model_config, params = load_merged(opened, mesh, **compute)
    else:
        model_config = dataclasses.replace(model_config, **compute)
        params = random_params(model_config, jax.random.key(config.seed), mesh)

    # the experiment
    model = Transformer(model_config)
    state = init_state(model, params, optimizer, jax.random.key(config.seed), mesh)
    objective = cli.load_function(config.objective)
    objective = functools.partial(objective, z_loss=config.z_loss) if config.z_loss else objective
    train_step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state)
    loop = experiment.loop_config(config, max_steps, flops_per_token(model_config, streams.length))
    cli.say(f"{num_params(model_config) / 1e6:.1f} M parameters, {max_steps} steps of "
              f"{config.batch_size * streams.length:,} tokens")
    evaluation = make_evaluation(model, next_token, held_out, placement) if held_out else None
    start(run, recorded, model_config, tokenizer)
    rows = placement.local_rows()
    train(state, train_step, lambda position: TrainingBatches(streams, rows, config.workers, position), run, placement,
          loop, evaluation and (lambda state: language_model_metrics(evaluation(state), held_out, num_bytes)))
    cli.say(f"done: {run} (next: python -m scripts.generate --model {run} --prompt 'def ' --output out.jsonl)")


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    experiment.check_flags(config)
    if (config.max_steps is None) == (config.max_tokens is None):
        raise InputError("give either --max-steps or --max-tokens")
    cli.check_positive(config, "max_steps" if config.max_tokens is None else "max_tokens")
    cli.check_not_negative(config, "z_loss")
    if config.model is None and config.tokenizer is None:
        raise InputError("give --model to go on from a model, or --tokenizer (and --architecture) to begin with random "
                         "weights")
    if config.model is not None and config.architecture != Architecture():
        raise InputError("--model has sizes of its own; leave --architecture out, or --model for random weights")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
