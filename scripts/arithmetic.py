"""The recipe of online RL: a chat model learns to add and multiply small numbers by GRPO, with a verifier as reward."""

import dataclasses
from pathlib import Path
from typing import Any

from cli import command
from cli.flags import seed_field
from cli.parsing import from_here, invocation, parse_recipe
from scripts import grpo

DESCRIPTION = """Teach the embedded SmolLM2-135M-Instruct to add and multiply small numbers by GRPO with LoRA.

The recipe is configs/arithmetic.yaml: problems of reasoning-gym, a reward of 1 where an answer gives the right
number. Eval problems are answered greedily before the first step and after the last; report.png in the run
directory shows the reward over the steps, samples/ all completions."""

RECIPE = from_here("configs/arithmetic.yaml")


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str | None = None
    """The run directory is made here; by default where the recipe says."""
    max_steps: int | None = None
    """The run takes this many steps; the recipe's by default."""
    seed: int = seed_field()
    """The seed decides the adapter, the order of the problems, and what is sampled."""


def main(config: Config) -> None:
    recipe = parse_recipe(grpo.Config, RECIPE, **dataclasses.asdict(config))
    run = Path(recipe.output_dir)
    tables = run / "evals" / f"step-{recipe.max_steps:06d}" / "tables.txt"
    done = tables.exists()
    grpo.main(recipe)
    if done:  # nothing was left to do, and so nothing was shown
        print(tables.read_text())
    report(run)


def report(run: Path) -> None:
    """The picture of the reward, and where all else is."""
    from training.metrics import read_metrics

    plot(run, [line for line in read_metrics(run) if "reward" in line])
    print(f"the reward over the steps: {run}/report.png; completions: {run}/samples; eval answers: {run}/evals\n"
          f"Next: {invocation('generate')} --model {run} --temperature 0 --prompt "
          f"'State the final answer to the following arithmetic problem: 7 + 5 ='")


def plot(run: Path, lines: list[dict[str, Any]]) -> None:
    """report.png: the reward of each step, each reward by its name, and the length of completions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(2, 1))
    steps = [line["step"] for line in lines]
    top.plot(steps, [line["reward"] for line in lines], color="black", linewidth=2, label="reward")
    for name in sorted({name for line in lines for name in line if name.startswith("rewards/") and "/mean" in name}):
        top.plot(steps, [line.get(name) for line in lines], alpha=0.6, label=name.split("/")[1])
    top.set(ylabel="mean reward of a step's completions", ylim=(0, 1.02))
    top.legend(loc="lower right")
    bottom.plot(steps, [line["completions/mean_length"] for line in lines], color="tab:blue")
    bottom.set(xlabel="step", ylabel="tokens a completion")
    figure.tight_layout()
    figure.savefig(run / "report.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
