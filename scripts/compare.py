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
"""name -> script and flags"""


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
    before = by_method({("before training", seed): curves[next(iter(METHODS)), seed] for seed in config.seeds},
                       config.seeds, 0)
    write_text(folder / "table.md", table(before | by_method(curves, config.seeds, budget), budget))
    plot(folder / "plot.png", curves, config.seeds, budget)
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

Curve = dict[int, dict[str, float]]
"""sampled tokens -> {each different held-out problem: the share of its answers that were right then, NaN where none has
a verdict}"""


def read_curve(run: Path) -> Curve:
    """Of all evaluations of a run. Raises InputError for one without any verdict."""
    import pyarrow.parquet as pq

    from training.metrics import read_metrics

    tokens = {0: 0} | {line["step"]: line["sampled_tokens"] for line in read_metrics(run) if "sampled_tokens" in line}
    curve = {}
    for file in sorted((run / "eval" / "samples").glob("step-*.parquet")):
        right = right_answers(pq.read_table(file).to_pylist())
        if np.isnan(list(right.values())).all():
            raise InputError(f"{file}: none of its answers has a verdict; eval_failures.jsonl of the run says why")
        curve[tokens[int(file.stem.removeprefix("step-"))]] = right
    return curve


def right_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A problem that is asked twice counts once. An answer that no verifier spoke of, because it failed or because the
    engine did, is neither right nor wrong."""
    answers: dict[str, list[float]] = {}
    for row in rows:
        given = [row[f"rewards/{name}"] for name in VERIFIERS.split(",") if row[f"rewards/{name}"] is not None]
        judged = given and row["finish_reason"] != "error"
        answers.setdefault(row["prompt"], []).extend([sum(given)] if judged else [])
    return {problem: float(np.mean(each)) if each else np.nan for problem, each in answers.items()}


def at_budget(curve: Curve, budget: int) -> dict[str, float]:
    """Of each problem after so many sampled tokens, on the line between the evaluations before and after; a run whose
    next evaluation is just beyond is not taken for what it was long before."""
    before = max(tokens for tokens in curve if tokens <= budget)
    after = min(tokens for tokens in curve if tokens >= budget)
    share = (budget - before) / (after - before) if after > before else 0.0
    return {problem: float((1 - share) * right + share * curve[after].get(problem, np.nan))
            for problem, right in curve[before].items()}


def by_method(curves: Mapping[tuple[str, int], Curve], seeds: Sequence[int], budget: int) -> dict[str, np.ndarray]:
    """[S, Q] of each method, problems in one order."""
    there = {key: at_budget(curve, budget) for key, curve in curves.items()}
    problems = sorted({problem for each in there.values() for problem in each})
    return {name: np.asarray([[there[name, seed].get(problem, np.nan) for problem in problems] for seed in seeds])
            for name in dict.fromkeys(name for name, _ in curves)}


def interval(differences: np.ndarray, random: np.random.Generator, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of [S, Q], seeds and problems drawn anew."""
    seeds, problems = differences.shape
    means = [differences[np.ix_(random.integers(0, seeds, seeds), random.integers(0, problems, problems))].mean()
             for _ in range(draws)]
    return tuple(np.percentile(means, [2.5, 97.5]).tolist())


def table(figures: Mapping[str, np.ndarray], budget: int) -> str:
    """Accuracy [S, Q] of each method, and their differences, problem by problem, in Markdown. Problems that some answer
    to has no verdict on are left out of all. Raises InputError where none is left."""
    judged = ~np.any([np.isnan(right).any(axis=0) for right in figures.values()], axis=0)
    if not judged.any():
        raise InputError("no held-out problem has a verdict on its answers by all runs; the runs' eval_failures.jsonl "
                         "say why")
    missing = {name: np.isnan(right).sum() for name, right in figures.items()}
    figures = {name: right[:, judged] for name, right in figures.items()}
    lines = [f"Held-out problems answered right (greedy), after {budget:,} sampled tokens; "
             f"{len(next(iter(figures.values())))} seeds, {judged.sum()} different problems ({np.sum(~judged)} left "
             f"out: some answer has no verdict), 95 % intervals", "",
             "| method | right | by seed | no verdict |", "|---|---|---|---|"]
    lines += [f"| {name} | {with_interval(right, '')} | {', '.join(f'{each:.1%}' for each in right.mean(axis=1))} | "
              f"{missing[name]} |" for name, right in figures.items()]
    return "\n".join([*lines, "", *differences(figures)]) + "\n"


def differences(figures: Mapping[str, np.ndarray]) -> list[str]:
    """Of each two methods, in Markdown."""
    names = [*figures]
    lines = ["Row less column, seed by seed and problem by problem", "", f"| | {' | '.join(names[:-1])} |",
             "|---" * len(names) + "|"]
    for number, name in enumerate(names[1:], 1):
        cells = [with_interval(figures[name] - figures[other], "+") for other in names[:number]]
        lines.append(f"| {name} | {' | '.join(cells + [''] * (len(names) - 1 - number))} |")
    return lines


def with_interval(values: np.ndarray, sign: str) -> str:
    """The mean of [S, Q]; `sign` is + where it is a difference."""
    low, high = interval(values, np.random.default_rng(0))
    return f"{values.mean():{sign}.1%} ({low:{sign}.1%} to {high:{sign}.1%})"


def plot(path: Path, curves: Mapping[tuple[str, int], Curve], seeds: Sequence[int], budget: int) -> None:
    """Accuracy over sampled tokens, a panel a method: its seeds, their mean as far as all were compared, and the means
    of the others behind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = np.linspace(0, budget, 50)
    runs = {key: ([*curve], [np.nanmean([*right.values()]) for right in curve.values()])
            for key, curve in curves.items()}
    means = {name: np.mean([np.interp(grid, *runs[name, seed]) for seed in seeds], axis=0) for name in METHODS}
    figure, panels = pyplot.subplots(1, len(METHODS), figsize=(3 * len(METHODS), 3.4), sharex=True, sharey=True)
    for number, (axes, name) in enumerate(zip(panels, METHODS)):
        for other in means.values():
            axes.plot(grid, other, color="0.8", linewidth=1.5)
        for seed in seeds:
            axes.plot(*runs[name, seed], color=f"C{number}", alpha=0.5, linewidth=1, marker="o", markersize=3)
        axes.plot(grid, means[name], color=f"C{number}", linewidth=3)
        axes.axvline(budget, color="0.5", linestyle=":", linewidth=1)
        axes.set(title=name, xlabel="sampled tokens, thousands", ylim=(0, 1))
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1000:g}")
    panels[0].set_ylabel("held-out problems answered right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
