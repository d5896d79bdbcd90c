"""A model judged by benchmarks: figures with intervals, and every answer on file."""

import dataclasses
from pathlib import Path
from typing import Literal

from cli import command
from cli.checks import resolve_dtype
from sharding.hosts import HostsConfig
from sharding.mesh import MeshConfig

DESCRIPTION = """Judge a model by benchmarks.

  python -m scripts.evaluate --model smollm2-135m-instruct --tasks ifeval,gsm8k --output-dir evals/smollm2"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """This model is judged: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run
    directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    tasks: str
    """By these tasks, NAME[,...]."""
    output_dir: str
    """What is found is written here: results.json, samples_TASK.jsonl."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE takes a task's questions from this file, not from the Hub."""
    limit: int | None = None
    """Each task is its first so many questions; by default all."""
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def main(config: Config) -> None:
    from cli.online import open_tokenized
    from evals.cache import Cache
    from evals.samples import Sample, file_name, write_samples
    from evals.subject import Subject
    from evals.tasks import evaluate
    from sharding.hosts import connect
    from sharding.mesh import make_mesh
    from training.progress import counted

    connect(config.hosts)
    mesh, folder = make_mesh(config.mesh), Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    opened, tokenizer = open_tokenized(config.model)
    dtype = resolve_dtype(config.dtype)
    model, variables = opened.load(mesh, dtype=dtype, param_dtype=dtype)
    subject = Subject(model, tokenizer, mesh, cache=Cache(folder / "responses.jsonl"), progress=counted)
    subject.load(variables)

    def done(task: str, samples: list[Sample]) -> None:
        write_samples(folder / file_name(task), samples)
        for name in samples[0].values:
            values = [sample.values[name] for sample in samples]
            print(task, name, sum(values) / len(values), len(values))

    evaluate(subject, config.tasks.split(","), limit=config.limit, seed=config.seed,
             task_data=dict(each.split("=", 1) for each in config.task_data), done=done)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
