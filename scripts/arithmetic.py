"""The recipe of online RL: a chat model learns to add and multiply small numbers by GRPO, with a verifier as reward."""

import dataclasses
from pathlib import Path

from cli import command
from cli.flags import seed_field
from cli.parsing import from_here, invocation, parse_recipe
from scripts import grpo, report

DESCRIPTION = """Teach the embedded SmolLM2-135M-Instruct to add and multiply small numbers by GRPO with LoRA.

The recipe is configs/arithmetic.yaml: problems of reasoning-gym, a reward of 1 where an answer gives the right
number. Eval problems are answered greedily before the first step and after the last; report.html in the run
directory shows the reward over the steps and the answers before and after, samples/ has all completions."""

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
    report.main(report.Config((str(run),)))
    print(f"completions: {run}/samples; eval answers: {run}/evals\n"
          f"Next: {invocation('generate')} --model {run} --temperature 0 --prompt "
          f"'State the final answer to the following arithmetic problem: 7 + 5 ='")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
