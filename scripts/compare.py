"""Methods of online RL at equal numbers of sampled tokens: PPO with a verifier and with a learned reward, GRPO, RLOO
and REINFORCE++ learn arithmetic, three seeds each; one table and one plot."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli import command
from cli.checks import check_positive, check_seed
from cli.parsing import from_here, script_path
from errors import InputError, shown
from files import write_text

DESCRIPTION = """Train SmolLM2-135M-Instruct on small sums and products by several methods, and compare them.

  python -m scripts.compare --output-dir runs/compare

The recipe is configs/compare.yaml. A reward model is trained first, on right and wrong answers that the model gives
before any training. Then each method trains with each seed, and held-out problems are answered greedily as it goes. All
are compared at the number of sampled tokens that every run reached, by the same problems: intervals are bootstraps over
problems and seeds. OUTPUT_DIR/table.md and plot.png hold the result. Runs that are there already are gone on with."""

RECIPE = from_here("configs/compare.yaml")
VERIFIERS = "gym_exact:chain_sum,gym_exact:products"
CRITIC = ("--critic.lora.rank", "16", "--critic.lora.alpha", "32", "--critic.learning-rate", "5e-4",
          "--critic.optimizer.schedule", "constant")
PPO = ("--beta", "0", "--num-iterations", "1", "--critic.num-iterations", "2", *CRITIC)
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "GRPO": ("grpo", ()),
    "RLOO": ("grpo", ("--algorithm.advantages", "leave_one_out", "--loss-aggregation", "constant",
                      "--algorithm.constant-length", "16")),
    "REINFORCE++": ("grpo", ("--algorithm.advantages", "reinforce_plus_plus")),
    "PPO, verifier": ("ppo", PPO),
    "PPO, reward model": ("ppo", PPO)}
"""name -> script and flags; the first is what the others are compared with"""


@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: str = "runs/compare"
    """Runs, table.md and plot.png are made here."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method is trained with these seeds."""
    max_steps: int = 20
    """A run takes this many steps."""


def main(config: Config) -> None:
    check(config)
    folder = Path(config.output_dir)
    judge = train_judge(folder)
    curves = {}
    for name, (script, flags) in METHODS.items():
        rewards = f"model:{judge}=1.0,{VERIFIERS.replace(',', '=0,')}=0" if "reward model" in name else VERIFIERS
        for seed in config.seeds:
            run = folder / f"{name.lower().replace(', ', '-').replace(' ', '-').replace('+', 'p')}-{seed}"
            start(script, "--config", RECIPE, "--output-dir", run, "--seed", seed, "--rewards", rewards,
                  "--max-steps", config.max_steps, *flags)
            curves[name, seed] = read_curve(run)
    budget = min(max(curve) for curve in curves.values())
    figures = {name: np.asarray([at_budget(curves[name, seed], budget) for seed in config.seeds]) for name in METHODS}
    (folder / "table.md").write_text(table(figures, budget))
    plot(folder / "plot.png", curves, config.seeds)
    print((folder / "table.md").read_text(), f"the curves: {folder}/plot.png", sep="\n")


def check(config: Config) -> None:
    """Raises InputError for flags that compare nothing."""
    check_positive(config, "max_steps")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"--seeds {shown(list(config.seeds))}: give one or more, each once")
    for seed in config.seeds:
        check_seed(seed)


def start(script: str, *flags: Any) -> None:
    """Runs a script to its end. Raises InputError where it fails."""
    if subprocess.run([sys.executable, script_path(script), *map(str, flags)], check=False).returncode:
        raise InputError(f"scripts.{script} failed; mend what it says above, and give the same command again")


# ------------------------------------------------------------------------------------------------ the reward model

def train_judge(folder: Path) -> Path:
    """A reward model, trained on right and wrong answers to the same training problems, drawn before any training."""
    judge, draws, pairs = folder / "judge", folder / "draws", folder / "pairs.jsonl"
    if not pairs.exists():
        start("grpo", "--config", RECIPE, "--output-dir", draws, "--learning-rate", 0, "--max-steps", 30,
              "--seed", 1000, "--eval-every", 0)
        rows = [pair for file in sorted((draws / "samples").glob("*.parquet")) for pair in right_and_wrong(file)]
        write_text(pairs, "".join(json.dumps(row) + "\n" for row in rows))
    start("reward", "--model", "smollm2-135m-instruct", "--data", pairs, "--output-dir", judge, "--max-steps", 100,
          "--batch-size", 8, "--lora.rank", 16, "--lora.alpha", 32, "--learning-rate", "2e-4")
    return judge


def right_and_wrong(file: Path) -> list[dict[str, Any]]:
    """Pairs of each group of a step's samples, as many as it has of the fewer, without the same text twice, and without
    answers that have no verdict."""
    import pyarrow.parquet as pq

    groups: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for row in pq.read_table(file).to_pylist():
        if row["reward"] is not None:
            groups.setdefault(row["group"], ({}, {}))[row["reward"] > 0][row["completion"]] = row
    return [{"prompt": [{"role": "user", "content": chosen["prompt"]}],
             "chosen": [{"role": "assistant", "content": chosen["completion"]}],
             "rejected": [{"role": "assistant", "content": rejected["completion"]}]}
            for wrong, right in groups.values() for rejected, chosen in zip(wrong.values(), right.values())]


# ------------------------------------------------------------------------------------------------------ the figures

Curve = dict[int, np.ndarray]
"""sampled tokens -> 1 for each held-out problem that was answered right then, else 0 [Q]"""


def read_curve(run: Path) -> Curve:
    """Of all evaluations of a run."""
    import pyarrow.parquet as pq

    from training.metrics import read_metrics

    tokens = {0: 0} | {line["step"]: line["sampled_tokens"] for line in read_metrics(run) if "sampled_tokens" in line}
    curve = {}
    for file in sorted((run / "eval" / "samples").glob("step-*.parquet")):
        rows = sorted(pq.read_table(file).to_pylist(), key=lambda row: row["group"])
        right = [sum(row[f"rewards/{name}"] or 0.0 for name in VERIFIERS.split(",")) for row in rows]
        curve[tokens[int(file.stem.removeprefix("step-"))]] = np.asarray(right)
    return curve


def at_budget(curve: Curve, budget: int) -> np.ndarray:
    """The last evaluation within so many sampled tokens."""
    return curve[max(tokens for tokens in curve if tokens <= budget)]


def interval(differences: np.ndarray, random: np.random.Generator, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of [S, Q], seeds and problems drawn anew."""
    seeds, problems = differences.shape
    means = [differences[np.ix_(random.integers(0, seeds, seeds), random.integers(0, problems, problems))].mean()
             for _ in range(draws)]
    return tuple(np.percentile(means, [2.5, 97.5]).tolist())


def table(figures: Mapping[str, np.ndarray], budget: int) -> str:
    """Accuracy [S, Q] of each method, and its difference to the first one's, problem by problem, in Markdown."""
    base = next(iter(figures))
    lines = [f"Held-out problems answered right (greedy), after {budget:,} sampled tokens; "
             f"{figures[base].shape[0]} seeds, {figures[base].shape[1]} problems, 95 % intervals", "",
             f"| method | right | by seed | difference to {base} |", "|---|---|---|---|"]
    for name, right in figures.items():
        low, high = interval(right, np.random.default_rng(0))
        by_seed = ", ".join(f"{each:.1%}" for each in right.mean(axis=1))
        difference = right - figures[base]
        below, above = interval(difference, np.random.default_rng(0))
        paired = "" if name == base else f"{difference.mean():+.1%} ({below:+.1%} to {above:+.1%})"
        lines.append(f"| {name} | {right.mean():.1%} ({low:.1%} to {high:.1%}) | {by_seed} | {paired} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, curves: Mapping[tuple[str, int], Curve], seeds: Sequence[int]) -> None:
    """Accuracy over sampled tokens: a thin line a run, a thick one for the mean of a method's seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    budget = min(max(curve) for curve in curves.values())
    grid = np.linspace(0, budget, 50)
    for color, name in zip(pyplot.rcParams["axes.prop_cycle"].by_key()["color"], METHODS):
        runs = [{tokens: right.mean() for tokens, right in curves[name, seed].items()} for seed in seeds]
        for each in runs:
            axes.plot(list(each), list(each.values()), color=color, alpha=0.25, linewidth=1)
        axes.plot(grid, np.mean([np.interp(grid, list(each), list(each.values())) for each in runs], axis=0),
                  color=color, linewidth=2, label=name)
    axes.set(xlabel="sampled tokens", ylabel="held-out problems answered right", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
