"""--evaluate.*: a training run's model judged by benchmarks, before, while and after it trains."""

import dataclasses
from pathlib import Path
from typing import Any

from errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """How the model is judged while it trains."""

    tasks: tuple[str, ...] = ()
    """The model is judged by these: tasks of lm-evaluation-harness (gsm8k, ifeval, ...), math:FILE, code:FILE,
    gym:TASK(...), or REWARDS:FILE (docs/evaluation.md); evals/ in the run directory has every answer."""
    at: tuple[str, ...] = ("before", "after")
    """It is judged before the first step, after the last, and every N steps: before,after,every 100."""
    limit: int | None = None
    """Each task is its first so many questions; by default all of them."""
    num_samples: int = 1
    """A question is answered this many times: 1 is the likeliest answer, more are drawn, as the task says or else at
    temperature 1."""
    max_new_tokens: int | None = None
    """An answer has this many tokens at the most; by default as many as the task says."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE takes a task's questions from this file, not from the Hub."""

    def unread(self) -> dict[str, str]:
        names = ("at", "limit", "num_samples", "max_new_tokens", "task_data")
        return {} if self.tasks else dict.fromkeys(names, "without --evaluate.tasks")

    @property
    def names(self) -> list[str]:
        """The tasks; several in one word have commas in between."""
        from data.specs import split_outside

        return [name.strip() for text in self.tasks for name in split_outside(text, ",")]

    @property
    def data(self) -> dict[str, str]:
        """The file of each task that has one of its own."""
        return dict(text.split("=", 1) for text in self.task_data)


def check_evaluation(flags: EvaluateFlags) -> None:
    """Raises InputError for numbers that make no sense, and for tasks that there are not."""
    if not flags.tasks:
        return
    from evals.during import parse_when
    from evals.graded import check_graded, is_graded

    parse_when(" ".join(flags.at))
    for name in ("limit", "num_samples", "max_new_tokens"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise InputError(f"--evaluate.{name.replace('_', '-')} {getattr(flags, name)}: give 1 or more")
    wrong = next((text for text in flags.task_data if not all(text.partition("="))), None)
    if wrong is not None:
        raise InputError(f"--evaluate.task-data {wrong}: give NAME=FILE, a task and the file of its questions")
    for name in filter(is_graded, flags.names):
        check_graded(name)


def make_benchmarks(flags: Any, model: Any, tokenizer: Any, mesh: Any, engine: Any = None,
                    unsafe: bool = False) -> Any:
    """What training.keeping asks of an evaluation, by a run's flags: None without --evaluate.tasks. Tasks are opened
    now, so that nothing is wrong with them once there is something to judge. `engine`: the run's own, if it has one.
    """
    own = flags.evaluate
    if not own.tasks:
        return None
    from evals.during import Benchmarks, parse_when
    from evals.graded import is_graded, open_graded, run_graded
    from evals.subject import Subject

    if tokenizer is None or model.config.reward_head:
        raise InputError("--evaluate.tasks: a reward model, or one without a tokenizer, gives no answers that could be "
                         "judged; leave it out")
    opened = [open_graded(name, tokenizer, model.config.vocab_size, limit=own.limit, mesh=mesh, unsafe=unsafe)
              for name in own.names if is_graded(name)]
    of_harness = [name for name in own.names if not is_graded(name)]
    how = {"num_samples": own.num_samples, "seed": flags.seed, "max_new_tokens": own.max_new_tokens}
    subject = Subject(model, tokenizer, mesh, engine=engine)

    def judge(variables: Any, step: int) -> dict[str, Any]:
        subject.load(variables, step)
        found = {task.name: run_graded(task, subject, **how) for task in opened}
        if of_harness:
            from evals.tasks import evaluate

            found |= evaluate(subject, of_harness, limit=own.limit, task_data=own.data, **how)
        subject.release()
        return found

    config = {"model": getattr(flags, "model", None), "output_dir": flags.output_dir} | dataclasses.asdict(own)
    return Benchmarks(Path(flags.output_dir), parse_when(" ".join(own.at)), flags.max_steps, judge, config)
