"""Supervised fine-tuning: full or LoRA, on chats, prompt-completion pairs, texts or token ids."""

import dataclasses
from pathlib import Path
from typing import Literal

from models.lora import LoRAConfig
from scripts import cli, experiment

DESCRIPTION = """Fine-tune a language model; the loss is on the assistant's (or completion's) tokens.

  python -m scripts.sft --model smollm2-135m-instruct --data chats.jsonl --output-dir runs/first --max-steps 100 \\
      --lora.rank 16 --learning-rate 2e-4

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiment.TrainingFlags):
    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    max_steps: int
    """optimiser steps"""
    objective: str = "objectives.sft:sft"
    """package.module:name of a function (scores, batch) -> Loss"""
    packing: Literal["none", "first-fit", "concat-then-split"] = "none"
    """put several rows into one, each whole (first-fit) or cut where the row is full (concat-then-split); attention
    and positions stay each row's own"""
    lora: LoRAConfig = LoRAConfig()


def main(config: Config) -> None:
    import jax

    from data.batches import TrainingBatches
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from sharding import hosts
    from sharding.mesh import make_mesh
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.loop import train
    from training.optimizer import make_optimizer, make_schedule
    from training.runs import absolute_reference, open_policy, open_tokenizer, start
    from training.state import init_state
    from training.step import make_train_step
    from training.throughput import flops_per_token

    experiment.check_flags(config)
    cli.check_positive(config, "max_steps")
    hosts.connect(config.hosts)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype))
    objective = cli.load_function(config.objective)
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model, not read yet, and the rows
    opened = open_policy(config.model)
    data = experiment.open_rows(config, opened, config.packing)
    placement = Placement(config.batch_size, config.num_microbatches, mesh)

    # the weights, straight to their shards
    lora = config.lora if config.lora.rank else None
    model_config, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat, attention=config.attention,
                                       param_dtype=config.dtype if lora else "float32")

    # the experiment
    model = Transformer(model_config, lora)
    state = init_state(model, params, optimizer, jax.random.key(config.seed), mesh)
    train_step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state)
    evaluate = make_evaluation(model, objective, data.held_out, placement) if data.held_out else None
    loop = experiment.loop_config(config, config.max_steps,
                                  flops_per_token(model_config, data.streams.length, lora))
    start(run, data.recorded, model_config, open_tokenizer(opened.tokenizer))
    rows = placement.local_rows()
    train(state, train_step, lambda position: TrainingBatches(data.streams, rows, config.workers, position), run,
          placement, loop, evaluate)
    cli.say(f"done: {run} (next: python -m scripts.generate --model {run} --prompt '...' --output out.jsonl)")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
