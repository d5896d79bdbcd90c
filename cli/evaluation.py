"""--evaluate.*: a training run's model judged by benchmarks, before, while and after it trains."""

import dataclasses
from collections.abc import Sequence
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
    num_samples: int | None = None
    """A question is answered this many times, drawn as the task says or else at temperature 1; by default as often as
    the task says, mostly once and greedily."""
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
        """The file of each task that has one of its own. Raises InputError where there is none."""
        from evals.tasks import parse_task_data

        return parse_task_data(self.task_data, "--evaluate.task-data")


def check_evaluation(flags: EvaluateFlags) -> None:
    """Raises InputError for numbers that make no sense, and for tasks that there are not."""
    if not flags.tasks:
        return
    from evals.during import parse_when
    from evals.graded import check_graded, is_graded
    from evals.tasks import parse_task_data

    parse_when(" ".join(flags.at))
    for name in ("limit", "num_samples", "max_new_tokens"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise InputError(f"--evaluate.{name.replace('_', '-')} {getattr(flags, name)}: give 1 or more")
    parse_task_data(flags.task_data, "--evaluate.task-data")
    for name in filter(is_graded, flags.names):
        check_graded(name)


def open_benchmarks(flags: Any, tokenizer: Any, vocab_size: int, layout: Any) -> list[Any]:
    """The tasks, their questions read, before weights are; none without --evaluate.tasks and --sample-prompts. Raises
    InputError for those that cannot be had, and for a model that answers nothing."""
    own, count = flags.evaluate, getattr(flags, "sample_prompts", 0)
    if not own.tasks and not count:
        return []
    from data.messages import parse_template_kwargs
    from evals.held_out import open_held_out
    from evals.tasks import How, open_tasks

    if tokenizer is None:
        raise InputError(f"{'--evaluate.tasks' if own.tasks else '--sample-prompts'}: the model has no tokenizer, so "
                         f"it answers nothing that could be judged; put tokenizer.json into its folder")
    how = How(limit=own.limit, num_samples=own.num_samples, seed=flags.seed, max_new_tokens=own.max_new_tokens,
              template_kwargs=parse_template_kwargs(flags.chat_template_kwargs), task_data=own.data,
              unsafe=getattr(flags, "unsafe_code_without_sandbox", False), dtype=flags.dtype)
    held_out = [open_held_out(flags.eval_data, count, tokenizer, vocab_size, how.template_kwargs)] if count else []
    return open_tasks(own.names, tokenizer, how, vocab_size, layout) + held_out


def make_benchmarks(flags: Any, tasks: Sequence[Any], model: Any, tokenizer: Any, layout: Any,
                    engine: Any = None) -> Any:
    """What training.keeping asks, by a run's flags: None without tasks. `engine`: the run's own, if it has one."""
    if not tasks:
        return None
    from evals.cache import Cache
    from evals.during import Benchmarks, parse_when
    from evals.subject import Subject

    subject = Subject(model, tokenizer, layout, engine)

    def judge(variables: Any, step: int, folder: Path) -> dict[str, Any]:
        subject.cache = Cache(folder / "responses.jsonl")  # with which an evaluation that was ended goes on
        subject.load(variables, step)
        found = {name: samples for task in tasks for name, samples in task.run(subject).items()}
        subject.release()
        return found

    config = {"model": getattr(flags, "model", None), "output_dir": flags.output_dir} | dataclasses.asdict(
        flags.evaluate)
    return Benchmarks(Path(flags.output_dir), parse_when(" ".join(flags.evaluate.at)), flags.max_steps, judge, config)
