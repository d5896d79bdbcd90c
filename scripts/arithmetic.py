"""The recipe of online RL: a chat model learns to add and multiply small numbers by GRPO, with a verifier as reward."""

import dataclasses
from pathlib import Path
from typing import Any

from cli import command
from cli.flags import seed_field
from cli.parsing import parse_recipe
from scripts import grpo

DESCRIPTION = """Teach the embedded SmolLM2-135M-Instruct to add and multiply small numbers by GRPO with LoRA.

The recipe is configs/arithmetic.yaml: problems of reasoning-gym, a reward of 1 where an answer gives the right
number. Eval problems are answered greedily before the first step and after the last; report.png in the run
directory shows the reward over the steps, samples/ all completions."""

RECIPE = Path("configs/arithmetic.yaml")


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
    grpo.main(recipe)
    report(Path(recipe.output_dir), len(set(eval_problems(recipe))))


def eval_problems(recipe: grpo.Config) -> list[str]:
    """Some come twice, as problems made by chance do."""
    from data.sources import open_source

    return [row["prompt"] for each in recipe.eval_data for row in open_source(each)]


def report(run: Path, problems: int) -> None:
    """Eval accuracy before and after, with 95 % intervals, and the picture of the reward."""
    from rich.console import Console
    from rich.table import Table

    from training.metrics import read_metrics

    lines = read_metrics(run)
    before, *_, after = [line for line in lines if "eval/reward" in line]
    table = Table(title=f"eval problems answered right ({problems} different ones, greedy)")
    for name in ("problems", "before", "after"):
        table.add_column(name, justify="left" if name == "problems" else "right")
    names = [name for name in before if name.startswith("eval/rewards/") and name.endswith("/mean")]
    for name in names:
        table.add_row(name.split("/")[2].partition(":")[2], f"{before[name]:.1%}", f"{after[name]:.1%}")
    table.add_row("all", *(f"{line['eval/reward']:.1%}  ({interval(line['eval/reward'], problems)})"
                           for line in (before, after)))
    Console().print(table)
    plot(run, [line for line in lines if "reward" in line])
    print(f"the reward over the steps: {run}/report.png; all completions: {run}/samples\n"
          f"Next: python -m scripts.generate --model {run} --temperature 0 --prompt "
          f"'State the final answer to the following arithmetic problem: 7 + 5 ='")


def interval(share: float, count: int, z: float = 1.96) -> str:
    """Wilson's 95 % interval of a share of `count` (Wilson 1927)."""
    centre, spread = share + z**2 / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z**2 / count) for sign in (-1, 1))
    return f"95 %: {low:.1%} to {high:.1%}"


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
