"""Pre-training: next-token prediction over text, from random weights or going on from a model."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_not_negative
from cli.flags import TrainingFlags
from errors import InputError
from models.settings import Architecture

DESCRIPTION = """Train a language model to predict the next token of every text.

  python -m scripts.train_tokenizer --data tfds:python_stdlib --vocab-size 4096 --output tokenizers/python
  python -m scripts.pretrain --config configs/pretrain.yaml
  python -m scripts.pretrain --model smollm2-135m-instruct --data domain/*.jsonl --output-dir runs/domain \\
      --max-steps 500

Without --model the weights are random and the sizes --architecture's; with it, training goes on from there (continual
pre-training). Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest
checkpoint when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingFlags):
    model: str | None = None
    """Training goes on from this model: embedded, Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best and RUN@STEP are one of its checkpoints)."""
    architecture: Architecture = Architecture()
    tokenizer: str | None = None
    """Texts are tokenised by this folder, .gguf or .model file (scripts.train_tokenizer makes one); by default by the
    model's own."""
    max_tokens: int | None = dataclasses.field(default=None, metadata={"largest": 2**63 - 1})
    """The run takes as many steps of batch_size * max_length tokens as fit into this many; give one of the three."""
    objective: str = "objectives.next_token:next_token"
    """The loss is this function (scores, batch, z_loss) -> Loss, as package.module:name."""
    z_loss: float = 0.0
    """The term (log Z)^2, which keeps logits from drifting, has this weight; 1e-4 is usual."""
    packing: Literal["first-fit", "concat-then-split"] = "concat-then-split"
    """Rows of --max-length are made of texts end to end, cut where a row is full (no padding), or of whole texts only
    (first-fit)."""


def main(config: Config) -> None:
    import jax

    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import (
        begin,
        check_output_dir,
        make_encoder,
        make_streams,
        open_optimizer,
        open_sources,
        train_on_rows,
        with_steps,
    )
    from cli.microbatches import with_microbatches
    from data.reading import read_all, scored_bytes, windows
    from data.specs import load_function
    from data.tokenizer import open_tokenizer
    from models.architecture import make_config, random_params
    from models.pretrained import load_merged
    from models.scoring import score
    from models.transformer import Transformer
    from objectives.next_token import next_token
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.evaluation import language_model_metrics, make_evaluation
    from training.runs import open_policy
    from training.state import init_state

    config = begin(config, check)
    layout = make_layout(config.mesh)

    # the model's sizes, and the texts
    opened = open_policy(config.model) if config.model else None
    tokenizer_path = Path(config.tokenizer).expanduser() if config.tokenizer else opened.tokenizer
    tokenizer = open_tokenizer(tokenizer_path)
    if tokenizer is None and opened is None:
        raise InputError(f"--tokenizer {config.tokenizer}: holds no tokenizer; scripts.train_tokenizer makes one")
    model_config = opened.config if opened else make_config(config.architecture, tokenizer.vocab_size)
    context = model_config.max_length
    sources, eval_sources = open_sources(config, tokenizer)
    objective = load_function(config.objective)
    columns = needed_columns(objective, scorer=score).found(sources)
    encoder = make_encoder(config, config.packing, tokenizer_path, model_config.vocab_size, context, columns=columns)
    run_config = check_output_dir(config, sources, eval_sources)
    streams = make_streams(config, config.packing, sources, encoder, context)
    config = with_microbatches(with_steps(config, streams), model_config, streams, objective, layout)
    optimizer, schedule = open_optimizer(config, tokens_per_step=config.batch_size * streams.length)
    eval_encoder = dataclasses.replace(encoder, max_length=None, columns=(), absent=())
    eval_rows = windows(read_all(eval_sources, eval_encoder)[0], streams.length)
    num_bytes = scored_bytes(eval_sources, eval_encoder)
    placement = Placement(config.batch_size, config.num_microbatches, layout)
    tasks = open_benchmarks(config, tokenizer, model_config.vocab_size, layout)

    # the weights, made or read straight onto their shards
    compute = {"dtype": config.dtype, "remat": config.remat, "attention": config.attention}
    if opened:
        model_config, params = load_merged(opened, layout, **compute)
    else:
        model_config = dataclasses.replace(model_config, **compute)
        params = random_params(model_config, jax.random.key(config.seed), layout)

    # the experiment
    model = Transformer(model_config, layout=layout)
    state = init_state(model, params, optimizer, jax.random.key(config.seed), layout)
    step = make_step(config, model, optimizer, schedule, state)
    evaluation = make_evaluation(model, next_token, eval_rows, placement)
    evaluate = evaluation and (lambda state: language_model_metrics(evaluation(state), eval_rows, num_bytes))
    train_on_rows(config, streams, run_config, model, tokenizer, placement, state, step, evaluate, tasks,
                  command="generate --model {run} --prompt 'def ' --output out.jsonl")


def make_step(config: Config, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, batch) -> (state, metrics)"""
    from data.specs import bind, load_function
    from training.step import make_train_step

    objective = load_function(config.objective)
    if config.z_loss:
        objective = bind(objective, f"--objective {config.objective} with --z-loss", z_loss=config.z_loss)
    return make_train_step(model.clone(training=True), objective, optimizer, schedule, state)


def programs(config: Config, devices: Any) -> list[Any]:
    """What a step runs, over shapes (scripts.plan)."""
    from cli.columns import needed_columns
    from cli.shapes import architecture_of, shaped, update_program
    from data.specs import load_function
    from models.scoring import score
    from sharding.mesh import make_layout
    from training.runs import open_config

    opened = open_config(config.model) if config.model else architecture_of(config)
    shapes = shaped(config, opened, make_layout(config.mesh, devices))
    needed = needed_columns(load_function(config.objective), scorer=score)
    return [update_program(config, shapes, make_step(config, *shapes[1:]), columns=needed.required)]


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    check_not_negative(config, "z_loss")
    if config.model is None and config.tokenizer is None:
        raise InputError("give --model to go on from a model, or --tokenizer (and --architecture) to begin with random "
                         "weights")
    if config.model is not None and config.architecture != Architecture():
        raise InputError("--model has sizes of its own; leave --architecture out, or --model for random weights")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
