"""KTO: answers that are good or bad by themselves, without pairs; full or LoRA."""

import dataclasses
import functools
from pathlib import Path

from models.lora import LoRAConfig
from scripts import cli, experiment

DESCRIPTION = """Change how a model answers, by answers that are labelled good or bad (no pairs).

  python -m scripts.kto --model smollm2-135m-instruct --data labelled.jsonl --output-dir runs/kto --max-steps 100 \\
      --lora.rank 16 --learning-rate 1e-4

Rows have prompt and completion (or messages, or tokens) and a label, true or false. The reference point z is estimated
over the whole batch, from each row's prompt with another row's answer, so batches should not be tiny.

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiment.TrainingFlags):
    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    max_steps: int
    """optimiser steps"""
    reference: str | None = None
    """the policy that beta holds to, as for --model; by default the model itself, as it was"""
    beta: float = 0.1
    """how strongly the policy is held to the reference"""
    desirable_weight: float = 1.0
    """weight of answers labelled true; times their number it should be 1 to 4/3 of the others' (KTO, section 4.2)"""
    undesirable_weight: float = 1.0
    """weight of answers labelled false"""
    objective: str = "objectives.kto:kto"
    """package.module:name of a function (scores, batch) -> Loss that takes beta and the two weights"""
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
    from training.reference import open_reference, prepare_labelled
    from training.runs import absolute_reference, open_policy, open_tokenizer, start
    from training.state import init_state
    from training.step import make_train_step
    from training.throughput import flops_per_token

    experiment.check_flags(config)
    cli.check_positive(config, "max_steps", "beta", "desirable_weight", "undesirable_weight")
    hosts.connect(config.hosts)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype),
                                 reference=config.reference and absolute_reference(config.reference))
    objective = functools.partial(cli.load_function(config.objective), beta=config.beta,
                                  desirable_weight=config.desirable_weight,
                                  undesirable_weight=config.undesirable_weight)
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model, not read yet, and the rows, each followed by its prompt with another row's answer
    opened = open_policy(config.model)
    data = experiment.open_rows(config, opened, form="labelled")
    placement = Placement(config.batch_size, config.num_microbatches, mesh, group=2)

    # the weights, straight to their shards; the reference is the model without its adapter, or else a frozen one
    lora = config.lora if config.lora.rank else None
    model_config, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat, attention=config.attention,
                                       param_dtype=config.dtype if lora else "float32")
    model = Transformer(model_config, lora)
    reference, frozen = model, None
    if config.reference or not lora:
        reference, frozen = open_reference(config.reference or config.model, model_config, mesh)

    # the experiment
    state = init_state(model, params, optimizer, jax.random.key(config.seed), mesh)
    step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state)
    prepare = prepare_labelled(model, reference, frozen, mesh)
    evaluate = make_evaluation(model, objective, data.held_out, placement, prepare=prepare) if data.held_out else None
    loop = experiment.loop_config(config, config.max_steps, flops_per_token(model_config, data.streams.length, lora))
    start(run, data.recorded, model_config, open_tokenizer(opened.tokenizer))
    rows = placement.local_rows()
    train(state, lambda state, batch: step(state, prepare(state, batch)),
          lambda position: TrainingBatches(data.streams, rows, config.workers, position), run, placement, loop,
          evaluate)
    cli.say(f"done: {run} (next: python -m scripts.generate --model {run} --prompt '...' --output out.jsonl)")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
