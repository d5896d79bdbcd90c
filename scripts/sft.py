"""Supervised fine-tuning: full or LoRA, on chats, prompt-completion pairs, texts or token ids."""

import dataclasses
from typing import Any, Literal

from cli import command
from cli.flags import AnsweringFlags

DESCRIPTION = """Fine-tune a language model; the loss is on the assistant's (or completion's) tokens.

  python -m scripts.sft --model smollm2-135m-instruct --data chats.jsonl --output-dir runs/mine --max-steps 200 \\
      --batch-size 8 --learning-rate 2e-4 --lora.rank 16

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AnsweringFlags):
    objective: str = "objectives.sft:sft"
    """The loss is this function (scores, batch) -> Loss, as package.module:name."""
    packing: Literal["none", "first-fit", "concat-then-split"] = "none"
    """Several rows are put into one, each whole (first-fit) or cut where the row is full (concat-then-split);
    attention and positions stay each row's own."""


def main(config: Config) -> None:
    import jax

    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import begin, load_model, open_optimizer, open_rows, train_on_rows, with_steps
    from cli.microbatches import with_microbatches
    from data.specs import load_function
    from data.tokenizer import open_tokenizer
    from models.scoring import score
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.runs import open_policy
    from training.state import init_state

    config = begin(config)
    objective = load_function(config.objective)
    layout = make_layout(config.mesh)

    # the model, not read yet, and the rows
    opened = open_policy(config.model)
    rows = open_rows(config, opened, config.packing, needed=needed_columns(objective, scorer=score))
    config = with_microbatches(with_steps(config, rows.streams), opened.config, rows.streams, objective, layout)
    optimizer, schedule = open_optimizer(config)
    placement = Placement(config.batch_size, config.num_microbatches, layout)
    tokenizer = open_tokenizer(opened.tokenizer)
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)

    # the weights, straight to their shards
    model, params = load_model(config, opened, layout)

    # the experiment
    state = init_state(model, params, optimizer, jax.random.key(config.seed), layout)
    step = make_step(config, model, optimizer, schedule, state)
    evaluate = make_evaluation(model, objective, rows.eval_rows, placement)
    train_on_rows(config, rows.streams, rows.config, model, tokenizer, placement, state, step, evaluate, tasks)


def make_step(config: Config, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, batch) -> (state, metrics)"""
    from data.specs import load_function
    from training.step import make_train_step

    return make_train_step(model.clone(training=True), load_function(config.objective), optimizer, schedule, state)


def programs(config: Config, devices: Any) -> list[Any]:
    """What a step runs, over shapes (scripts.plan)."""
    from cli.columns import needed_columns
    from cli.shapes import shaped, update_program
    from data.specs import load_function
    from models.scoring import score
    from sharding.mesh import make_layout
    from training.runs import open_config

    shapes = shaped(config, open_config(config.model), make_layout(config.mesh, devices))
    needed = needed_columns(load_function(config.objective), scorer=score)
    return [update_program(config, shapes, make_step(config, *shapes[1:]), columns=needed.required)]


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
