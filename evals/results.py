"""What an evaluation leaves in its folder: results.json, samples_TASK.jsonl, .eval_results/TASK.yaml; and reading it.

results.json has lm-eval's keys ("metric,filter" and "metric_stderr,filter" by task, n-samples, config), and beside them
what a figure must not be without: metric_interval, questions, truncated, empty and failed shares.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from errors import InputError
from evals.comparison import Compared
from evals.figures import Figure, figures_of
from evals.samples import Sample, file_name, read_samples, write_samples
from files import write_text, writing


class Benchmark(NamedTuple):
    """A data set of the Hub that has a leaderboard, where a task's figure belongs."""

    dataset: str
    task_id: str
    metric: str
    """the metric,filter that counts there"""
    notes: str = ""


def write_evaluation(folder: Path, evaluated: Mapping[str, Sequence[Sample]], config: Mapping[str, Any],
                     compared: Sequence[Compared] = (),
                     benchmarks: Mapping[str, Benchmark] | None = None) -> None:
    """All of it; `config` says what was evaluated and how. Raises InputError where it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for task, samples in evaluated.items():
        write_samples(folder / file_name(task), samples)
    figures = {task: figures_of(samples) for task, samples in evaluated.items()}
    write_text(folder / "results.json", json.dumps(results(figures, evaluated, config, compared), indent=2,
                                                   ensure_ascii=False, default=str, allow_nan=False) + "\n")
    for task, benchmark in (benchmarks or {}).items():
        if task in figures:
            write_hub_result(folder, task, figures[task], benchmark)


def read_evaluation(folder: Path) -> dict[str, list[Sample]]:
    """The samples of every task in a folder. Raises InputError where it has none."""
    files = sorted(folder.glob("samples_*.jsonl"))
    if not files:
        raise InputError(f"{folder}: no evaluation (samples_TASK.jsonl) is there; give a folder that "
                         f"scripts.evaluate --output-dir wrote, or evals/NAME of a run directory")
    read = [read_samples(file) for file in files]
    return {samples[0].task: samples for samples in read if samples}


def results(figures: Mapping[str, Sequence[Figure]], evaluated: Mapping[str, Sequence[Sample]],
            config: Mapping[str, Any], compared: Sequence[Compared]) -> dict[str, Any]:
    """What results.json holds."""
    counts = {task: len({sample.question for sample in samples}) for task, samples in evaluated.items()}
    found = {"results": {task: {"alias": task} | _joined(map(figure_row, each)) for task, each in figures.items()},
             "n-samples": {task: {"original": count, "effective": count} for task, count in counts.items()},
             "config": dict(config), "date": _now().isoformat(timespec="seconds")}
    return found | ({"comparison": _comparison(compared)} if compared else {})


def figure_row(figure: Figure) -> dict[str, Any]:
    """A figure by lm-eval's keys, null where it is no number: "acc,none", "acc_stderr,none", "acc_interval,none"."""
    metric, _, of = figure.metric.partition(",")
    of, of_k = of or "none", f"{figure.of_k} " if figure.of_k else ""
    estimate = figure.estimate
    return {f"{of_k}{metric},{of}": _finite(estimate.mean),
            f"{of_k}{metric}_stderr,{of}": _finite(estimate.standard_error),
            f"{of_k}{metric}_interval,{of}": [_finite(estimate.low), _finite(estimate.high)],
            f"{of_k}{metric}_questions,{of}": estimate.n} | ({} if of_k else {
                f"{metric}_failed,{of}": figure.failed, "truncated": figure.truncated, "empty": figure.empty,
                "num_samples": figure.num_samples})


def _comparison(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    return [{"task": each.after.task, "metric": each.after.metric, "before": _finite(each.before.estimate.mean),
             "after": _finite(each.after.estimate.mean)}
            | {name: _finite(value) for name, value in each.difference._asdict().items()} for each in compared]


def write_hub_result(folder: Path, task: str, figures: Sequence[Figure], benchmark: Benchmark) -> None:
    """.eval_results/TASK.yaml, which in a model's repository on the Hub shows the figure on its page and on the data
    set's leaderboard; the value is in percent."""
    figure = next((each for each in figures if each.metric == benchmark.metric and not each.of_k), None)
    if figure is None or _finite(figure.estimate.mean) is None:
        return
    of = figure.estimate
    notes = f"{benchmark.notes}; " if benchmark.notes else ""
    entry = {"dataset": {"id": benchmark.dataset, "task_id": benchmark.task_id}, "value": round(100 * of.mean, 2),
             "date": _now().date().isoformat(),
             "notes": f"{notes}{figure.metric}, {of.n} questions, 95 % interval {100 * of.low:.1f} to "
                      f"{100 * of.high:.1f}"}
    path = folder / ".eval_results" / file_name(task, "", ".yaml")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_text(path, yaml.safe_dump([entry], sort_keys=False, allow_unicode=True))


def _joined(rows: Any) -> dict[str, Any]:
    return {name: value for row in rows for name, value in row.items()}


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
