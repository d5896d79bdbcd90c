"""Two models on the same questions, compared in pairs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from errors import InputError
from evals.figures import Figure, figures_of, with_value
from evals.samples import Sample
from evals.statistics import Difference, Questions, by_question, difference


class Compared(NamedTuple):
    """A metric of a task under two models."""

    before: Figure
    after: Figure
    difference: Difference
    """over the questions that both have values of"""


def compare(before: Mapping[str, Sequence[Sample]], after: Mapping[str, Sequence[Sample]],
            names: tuple[str, str] = ("the baseline", "this evaluation")) -> list[Compared]:
    """Every metric of every task that both have. Raises InputError where they have no task in common, and where a
    task's questions or prompts are not the same."""
    tasks = [task for task in after if task in before]
    if not tasks:
        raise InputError(f"{names[0]} has none of the tasks of {names[1]} ({', '.join(after)}), but "
                         f"{', '.join(before) or 'none'}; evaluate both on the same --tasks")
    for task in tasks:
        check_same(task, before[task], after[task], names)
    return [each for task in tasks for each in compare_task(before[task], after[task])]


def check_same(task: str, before: Sequence[Sample], after: Sequence[Sample], names: tuple[str, str]) -> None:
    """Raises InputError unless both answered the same questions in the same prompts."""
    first, second = ({sample.question for sample in samples} for samples in (before, after))
    if first != second:
        raise InputError(f"{task}: {names[0]} has {len(first)} questions, {names[1]} {len(second)}, and "
                         f"{len(first & second)} are the same in the same prompts, so they cannot be compared in "
                         f"pairs; evaluate both with the same data, --limit, few shots and chat template")


def compare_task(before: Sequence[Sample], after: Sequence[Sample]) -> list[Compared]:
    """The metrics that both have."""
    first, second = ({each.metric: each for each in figures_of(samples) if not each.of_k}
                     for samples in (before, after))
    return [Compared(first[metric], figure, difference(_questions(metric, before), _questions(metric, after)))
            for metric, figure in second.items() if metric in first]


def _questions(metric: str, samples: Sequence[Sample]) -> Questions:
    valued = with_value(metric, samples)
    return by_question([sample.values[metric] for sample in valued], [sample.question for sample in valued],
                       [sample.family for sample in valued])
