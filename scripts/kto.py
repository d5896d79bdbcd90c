"""KTO: answers that are good or bad by themselves, without pairs; full or LoRA."""

import dataclasses

from cli import command
from cli.checks import check_positive
from cli.flags import AnsweringFlags, ReferenceFlags

DESCRIPTION = """Change how a model answers, by answers that are labelled good or bad (no pairs).

  python -m scripts.kto --model smollm2-135m-instruct --data labelled.jsonl --output-dir runs/kto --max-steps 200 \\
      --lora.rank 16

Rows have prompt and completion (or messages, or tokens) and a label, true or false. The reference point z is estimated
over the whole batch, from each row's prompt with another row's answer, so batches should not be tiny.

Stopped by Ctrl-C or SIGTERM, it saves first; ended by whatever else, it goes on from its newest checkpoint when the
same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ReferenceFlags, AnsweringFlags):
    desirable_weight: float = 1.0
    """Answers labelled true have this weight; times their number it should be 1 to 4/3 of the others' (KTO, section
    4.2)."""
    undesirable_weight: float = 1.0
    """Answers labelled false have this weight."""
    objective: str = "objectives.kto:kto"
    """The loss is this function (scores, batch) -> Loss, as package.module:name, that takes beta and the two
    weights."""


def main(config: Config) -> None:
    import jax

    from cli.columns import needed_columns
    from cli.evaluation import open_benchmarks
    from cli.experiment import begin, choose_reference, load_model, open_optimizer, open_rows, train_on_rows, with_steps
    from cli.microbatches import with_microbatches
    from cli.readers import longest_row_of, open_reference_of
    from data.specs import bind, load_function
    from data.tokenizer import open_tokenizer
    from models.scoring import score
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.reference import prepare_labelled
    from training.runs import open_policy
    from training.state import init_state
    from training.step import make_train_step

    config = begin(config, check)
    objective = bind(load_function(config.objective), f"--objective {config.objective}", beta=config.beta,
                     desirable_weight=config.desirable_weight, undesirable_weight=config.undesirable_weight)
    layout = make_layout(config.mesh)

    # the model, not read yet, and the rows, each followed by its prompt with another row's answer
    opened = open_policy(config.model)
    needed = needed_columns(objective, ("ref_logps", "kto_z"), scorer=score)
    rows = open_rows(config, opened, form="labelled", needed=needed)
    config = with_microbatches(with_steps(config, rows.streams), opened.config, rows.streams, objective, layout,
                               group=2)
    optimizer, schedule = open_optimizer(config)
    placement = Placement(config.batch_size, config.num_microbatches, layout, group=2)
    tokenizer = open_tokenizer(opened.tokenizer)
    opened_reference = open_reference_of(config, opened, tokenizer, *longest_row_of(rows))
    tasks = open_benchmarks(config, tokenizer, opened.config.vocab_size, layout)

    # the weights, straight to their shards; the reference is the model without its adapter, or else a frozen one
    model, params = load_model(config, opened, layout)
    reference, frozen = choose_reference(config, model, layout, opened_reference)

    # the experiment
    state = init_state(model, params, optimizer, jax.random.key(config.seed), layout)
    step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state)
    prepare = prepare_labelled(model, reference, frozen, layout)
    evaluate = make_evaluation(model, objective, rows.eval_rows, placement, prepare=prepare)
    train_on_rows(config, rows.streams, rows.config, model, tokenizer, placement, state,
                  lambda state, batch: step(state, prepare(state, batch)), evaluate, tasks)


def check(config: Config) -> None:
    """Raises InputError for numbers that make no sense."""
    check_positive(config, "beta", "desirable_weight", "undesirable_weight")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
