"""Reward models: a scalar head on a language model, trained on pairs by Bradley-Terry; full or LoRA."""

import dataclasses
import functools
from pathlib import Path

from models.lora import LoRAConfig
from scripts import cli, experiment

DESCRIPTION = """Train a reward model from pairs of a better and a worse answer (chosen, rejected).

  python -m scripts.reward --model smollm2-135m-instruct --data pairs.jsonl --output-dir runs/reward --max-steps 200 \\
      --lora.rank 16 --learning-rate 1e-4
  python -m scripts.score --model runs/reward --data rows.jsonl --output scores.jsonl

A pair's `margin`, where it has one, is how much better the chosen answer is. Stopped, by whatever, it goes on where it
was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiment.TrainingFlags):
    model: str
    """what the reward model begins as: a language model, or a reward model (embedded model, Hub id, preset, folder,
    .gguf file, run directory)"""
    max_steps: int
    """optimiser steps"""
    centering: float = 0.0
    """weight of (r_chosen + r_rejected)^2, which holds rewards around 0; 0.01 is usual"""
    objective: str = "objectives.reward_model:reward_model"
    """package.module:name of a function (scores, batch) -> Loss, scores.rewards being [B]"""
    lora: LoRAConfig = LoRAConfig()
    """the head is trained in any case"""


def main(config: Config) -> None:
    import jax

    from data.batches import TrainingBatches
    from models.heads import score_rewards, with_reward_head
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from sharding import hosts
    from sharding.mesh import make_mesh
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.loop import train
    from training.optimizer import make_optimizer, make_schedule
    from training.runs import absolute_reference, open_model, open_tokenizer, start
    from training.state import init_state
    from training.step import check_split, make_train_step
    from training.throughput import flops_per_token

    experiment.check_flags(config)
    cli.check_positive(config, "max_steps")
    cli.check_not_negative(config, "centering")
    hosts.connect(config.hosts)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype))
    objective = cli.load_function(config.objective)
    objective = functools.partial(objective, centering=config.centering) if config.centering else objective
    check_split(objective, config.num_microbatches)
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model, not read yet, and the pairs
    opened = open_model(config.model)
    data = experiment.open_rows(config, opened, form="pair")
    placement = Placement(config.batch_size, config.num_microbatches, mesh, group=2)

    # the weights, straight to their shards, and the head
    lora = config.lora if config.lora.rank else None
    language_model, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat,
                                         attention=config.attention, param_dtype=config.dtype if lora else "float32")
    model_config, params = with_reward_head(language_model, params, mesh)

    # the experiment
    model = Transformer(model_config, lora)
    state = init_state(model, params, optimizer, jax.random.key(config.seed), mesh)
    step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state, score_rewards)
    evaluate = make_evaluation(model, objective, data.held_out, placement, score_rewards) if data.held_out else None
    loop = experiment.loop_config(config, config.max_steps, flops_per_token(model_config, data.streams.length, lora))
    start(run, data.recorded, model_config, open_tokenizer(opened.tokenizer))
    rows = placement.local_rows()
    train(state, step, lambda position: TrainingBatches(data.streams, rows, config.workers, position), run, placement,
          loop, evaluate)
    cli.say(f"done: {run} (next: python -m scripts.score --model {run} --data rows.jsonl --output scores.jsonl)")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)
