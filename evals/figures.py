"""What a task's samples come to: a figure for each metric, none of them alone."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evals.samples import Sample
from evals.statistics import Estimate, estimate, maj_at_k, pass_at_k, pass_hat_k


class Figure(NamedTuple):
    """A metric of a task, and what one must know beside it."""

    task: str
    metric: str
    """lm-eval's "metric,filter", or a reward's name"""
    estimate: Estimate
    num_samples: int
    """answers to each question, the most"""
    truncated: float | None
    """share of answers that were cut at the limit; None where none was generated"""
    empty: float | None
    """share of answers without text"""
    failed: float
    """share of answers without a verdict, which are left out of the mean"""
    of_k: str = ""
    """"pass@8", "pass^8" or "maj@8" instead of the mean of all answers"""

    @property
    def of_all(self) -> bool:
        """Whether it is of all answers to a question, and not of fewer of them."""
        return not self.of_k or self.of_k.endswith(tuple(f"{mark}{self.num_samples}" for mark in "@^"))


def figures_of(samples: Sequence[Sample]) -> list[Figure]:
    """The figures of one task's samples: the mean of every metric (over several answers: avg@k), and for verdicts on
    several answers pass@k and pass^k of all of them, and maj@k where the answers that they judge are known."""
    found = []
    for metric in dict.fromkeys(name for sample in samples for name in sample.values):
        judged = [sample for sample in samples if metric in sample.values]
        found.append(_figure(metric, judged))
        found += [found[-1]._replace(of_k=name, estimate=each) for name, each in at_k(metric, judged).items()]
    return found


def with_value(metric: str, samples: Sequence[Sample]) -> list[Sample]:
    """Those that the metric has a verdict on, a finite one."""
    return [sample for sample in samples if sample.finish_reason != "error"
            and sample.values.get(metric) is not None and math.isfinite(sample.values[metric])]


def _figure(metric: str, samples: Sequence[Sample]) -> Figure:
    valued = with_value(metric, samples)
    answered = [sample for sample in samples if sample.finish_reason]
    of = estimate([sample.values[metric] for sample in valued], [sample.question for sample in valued],
                  [sample.family for sample in valued])
    return Figure(samples[0].task, metric, of, max(Counter(sample.question for sample in samples).values()),
                  _share(answered, lambda sample: sample.finish_reason == "length"),
                  _share(answered, lambda sample: not sample.completion.strip()), 1 - len(valued) / len(samples))


def at_k(metric: str, samples: Sequence[Sample]) -> dict[str, Estimate]:
    """"pass@k" and "pass^k" of K answers, as many as every question has that has no failed one, for k = K, 2, 4, 8,
    ..., and "maj@K"; {} for one answer, or values other than 0 and 1."""
    questions = _answered_in_full(metric, samples)
    k = max(map(len, questions), default=1)
    values = {sample.values[metric] for each in questions for sample in each}
    if k == 1 or not values <= {0.0, 1.0}:
        return {}
    rights = [int(sum(sample.values[metric] for sample in each)) for each in questions]
    smaller = [2**power for power in range(1, k.bit_length()) if 2**power < k]
    found = {f"{name}{size}": [of(k, right, size) for right in rights]
             for size in (k, *smaller) for name, of in (("pass@", pass_at_k), ("pass^", pass_hat_k))}
    if any(sample.answer is not None for each in questions for sample in each):
        found[f"maj@{k}"] = [maj_at_k([sample.answer for sample in each], [sample.values[metric] for sample in each], k)
                             for each in questions]
    return {name: estimate(each, [question[0].question for question in questions],
                           [question[0].family for question in questions]) for name, each in found.items()}


def _answered_in_full(metric: str, samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each question that has as many verdicts as any."""
    questions: dict[str, list[Sample]] = defaultdict(list)
    for sample in with_value(metric, samples):
        questions[sample.question].append(sample)
    k = max(map(len, questions.values()), default=0)
    return [each for each in questions.values() if len(each) == k]


def _share(samples: Sequence[Sample], is_one: Callable[[Sample], bool]) -> float | None:
    return sum(map(is_one, samples)) / len(samples) if samples else None
