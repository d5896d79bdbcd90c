"""Reward models: a scalar head on a language model, trained on pairs by Bradley-Terry; full or LoRA."""

import dataclasses
from typing import Any

from cli import command
from cli.checks import check_not_negative
from cli.flags import ModelFlags
from errors import InputError

DESCRIPTION = """Train a reward model from pairs of a better and a worse answer (chosen, rejected).

  python -m scripts.reward --model smollm2-135m-instruct --data pairs.jsonl --output-dir runs/reward --max-steps 200 \\
      --lora.rank 16
  python -m scripts.score --model runs/reward --data rows.jsonl --output rewards.jsonl

A pair's `margin`, where it has one, is how much better the chosen answer is. Stopped by Ctrl-C or SIGTERM,
it saves first; ended by whatever else, it goes on from its newest checkpoint when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelFlags):
    model: str
    """The reward model begins as this one: a language model or a reward model (embedded model, Hub id, preset, folder,
    .gguf file, run directory). Its head is trained under LoRA, too."""
    centering: float = 0.0
    """The term (r_chosen + r_rejected)^2, which holds rewards around 0, has this weight; 0.01 is usual."""
    objective: str = "objectives.reward_model:reward_model"
    """The loss is this function (scores, batch) -> Loss, as package.module:name, scores.rewards being [B]."""

    def unread(self) -> dict[str, str]:
        adamw = ("optimizer.b1", "optimizer.b2")  # of the head, which is no matrix of a layer
        return {name: reason for name, reason in super().unread().items() if name not in adamw}


def main(config: Config) -> None:
    import jax

    from cli.columns import needed_columns
    from cli.experiment import begin, load_model, open_optimizer, open_rows, train_on_rows, with_steps
    from cli.microbatches import with_microbatches
    from data.tokenizer import open_tokenizer
    from models.heads import score_rewards, with_reward_head
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.runs import open_model
    from training.state import init_state
    from training.step import check_split

    config = begin(config, check)
    objective = make_objective(config)
    check_split(objective, config.num_microbatches or 1)
    layout = make_layout(config.mesh)

    # the model, not read yet, and the pairs
    opened = open_model(config.model)
    rows = open_rows(config, opened, form="pair", needed=needed_columns(objective, scorer=score_rewards))
    config = with_microbatches(with_steps(config, rows.streams), opened.config, rows.streams, objective, layout,
                               group=2)
    optimizer, schedule = open_optimizer(config)
    placement = Placement(config.batch_size, config.num_microbatches, layout, group=2)

    # the weights, straight to their shards, and the head, which is trained under LoRA, too
    model, params = load_model(config, opened, layout)
    model_config, params = with_reward_head(model.config, params, layout)
    model = model.clone(config=model_config)

    # the experiment
    state = init_state(model, params, optimizer, jax.random.key(config.seed), layout)
    step = make_step(config, model, optimizer, schedule, state)
    evaluate = make_evaluation(model, objective, rows.eval_rows, placement, score_rewards)
    train_on_rows(config, rows.streams, rows.config, model, open_tokenizer(opened.tokenizer), placement, state,
                  step, evaluate, command="score --model {run} --data rows.jsonl --output scores.jsonl")


def make_objective(config: Config) -> Any:
    """The objective that the flags describe."""
    from data.specs import bind, load_function

    objective = load_function(config.objective)
    if config.centering:
        objective = bind(objective, f"--objective {config.objective} with --centering", centering=config.centering)
    return objective


def make_step(config: Config, model: Any, optimizer: Any, schedule: Any, state: Any) -> Any:
    """(state, batch) -> (state, metrics)"""
    from models.heads import score_rewards
    from training.step import make_train_step

    return make_train_step(model.clone(training=True), make_objective(config), optimizer, schedule, state,
                           score_rewards)


def programs(config: Config, devices: Any) -> list[Any]:
    """What a step runs, over shapes (scripts.plan)."""
    from cli.columns import needed_columns
    from cli.shapes import shaped, update_program
    from models.heads import score_rewards
    from sharding.mesh import make_layout
    from training.runs import open_config

    headed = dataclasses.replace(open_config(config.model), reward_head=True)
    shapes = shaped(config, headed, make_layout(config.mesh, devices))
    needed = needed_columns(make_objective(config), scorer=score_rewards)
    return [update_program(config, shapes, make_step(config, *shapes[1:]), group=2, columns=needed.required)]


def check(config: Config) -> None:
    """Raises InputError for numbers that make no sense."""
    check_not_negative(config, "centering")
    if config.evaluate.tasks:
        raise InputError("--evaluate.tasks: a reward model answers nothing that could be judged; leave it out, and "
                         "give pairs as --eval-data")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
