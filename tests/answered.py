"""Samples for tests: what a model might have answered."""

from evals.samples import Sample


def answered(task="sums", values=(1.0, 0.0), repeats=1, metric="correct", **changed):
    """`repeats` samples of as many questions as values / repeats; None: the grader failed."""
    return [Sample(**({"task": task, "question": f"q{number // repeats}", "family": f"q{number // repeats}",
                       "repeat": number % repeats, "prompt": "1 + 1 =", "completion": "2", "target": "2",
                       "values": {metric: value}, "finish_reason": "stop"} | changed))
            for number, value in enumerate(values)]
