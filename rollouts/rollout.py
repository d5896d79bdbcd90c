"""A batch of rollouts: prompts answered in groups, rewarded, counted and kept."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batch import bucket_length, buckets
from data.prompts import Prompt
from files import whole_file, write_text, writing
from rewards.registry import Weighted
from rewards.scoring import Failure, compute_rewards
from rollouts.generate import Completion

Sampler = Callable[[Sequence[Sequence[int]], Any, int], list[Completion]]
"""(prompts as token ids, key, completions of each) -> completions, prompt by prompt"""


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """P prompts, G completions of each; lists of completions are in the order of their prompts."""

    prompts: list[Prompt]
    completions: list[Completion]
    texts: list[str]
    """without special tokens"""
    values: dict[str, list[float | None]]
    """of each reward"""
    rewards: np.ndarray
    """[P, G] weighted sums, NaN where no reward has a value"""
    failures: list[Failure]
    seconds: dict[str, float]
    """that `rollout` and `reward` took"""

    def spread(self) -> np.ndarray:
        """[P], True for groups whose rewards differ, which alone teach anything."""
        scored = ~np.isnan(self.rewards)
        low = np.min(self.rewards, axis=1, initial=np.inf, where=scored)
        return np.max(self.rewards, axis=1, initial=-np.inf, where=scored) > low

    def take(self, numbers: Sequence[int]) -> "Rollouts":
        """Those of some prompts. Failures and seconds stay those of all."""
        group_size = self.rewards.shape[1]
        rows = [number * group_size + member for number in numbers for member in range(group_size)]
        return dataclasses.replace(
            self, prompts=[self.prompts[number] for number in numbers],
            completions=[self.completions[row] for row in rows], texts=[self.texts[row] for row in rows],
            values={name: [values[row] for row in rows] for name, values in self.values.items()},
            rewards=self.rewards[list(numbers)])


def roll_out(prompts: Sequence[Prompt], sampler: Sampler, decode: Callable[[Sequence[int]], str],
             rewards: Sequence[Weighted], key: Any, group_size: int, timeout: float) -> Rollouts:
    """Answers and rewards; `timeout` seconds for each reward. Raises InputError as compute_rewards does."""
    start = time.perf_counter()
    completions = sampler([prompt.tokens for prompt in prompts], key, group_size)
    texts = [decode(completion.tokens) for completion in completions]
    sampled = time.perf_counter()
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    replies = [[{"role": "assistant", "content": text}] if isinstance(prompt.text, list) else text
               for prompt, text in zip(repeated, texts, strict=True)]
    scored = compute_rewards(rewards, [prompt.text for prompt in repeated], replies, columns(repeated, completions),
                             timeout)
    totals = np.asarray([np.nan if total is None else total for total in scored.totals]).reshape(-1, group_size)
    seconds = {"rollout": sampled - start, "reward": time.perf_counter() - sampled}
    return Rollouts(list(prompts), completions, texts, scored.values, totals, scored.failures, seconds)


def columns(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What rewards get besides prompts and completions: the rows' columns, None where a row has not that one, and
    completion_ids, TRL's name for the completions' tokens."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names} | {
        "completion_ids": [completion.tokens for completion in completions]}


def join(parts: Sequence[Rollouts]) -> Rollouts:
    """All of them, one after the other; the rows of failures go on counting."""
    starts = np.cumsum([0, *(len(part.completions) for part in parts)]).tolist()
    failures = [failure if failure.row is None else failure._replace(row=start + failure.row)
                for start, part in zip(starts, parts) for failure in part.failures]
    return Rollouts(
        [each for part in parts for each in part.prompts], [each for part in parts for each in part.completions],
        [each for part in parts for each in part.texts],
        {name: [each for part in parts for each in part.values[name]] for name in parts[0].values},
        np.concatenate([part.rewards for part in parts]), failures,
        {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds})


def to_batch(rollouts: Rollouts, max_prompt_length: int, max_new_tokens: int,
             columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """A batch of [B, T] arrays, a completion a row, group by group: prompts end at `max_prompt_length`, padded in
    front, and completions begin there, padded to one of the few lengths up to `max_new_tokens`.

    A completion's tokens are targets, the end token with them. Beside the usual columns: sampler_logps, and
    truncated [B], 1 where a completion was cut; and `columns` [B], numbers of the prompts' rows.
    """
    group_size = rollouts.rewards.shape[1]
    longest = max(len(completion.tokens) for completion in rollouts.completions)
    length = max_prompt_length + bucket_length(longest, buckets(max_new_tokens))
    names = {"tokens": np.int32, "positions": np.int32, "segment_ids": np.int32, "loss_mask": np.float32,
             "sampler_logps": np.float32}
    batch = {name: np.zeros((len(rollouts.completions), length), dtype) for name, dtype in names.items()}
    for row, completion in enumerate(rollouts.completions):
        prompt = rollouts.prompts[row // group_size].tokens
        start, stop = max_prompt_length - len(prompt), max_prompt_length + len(completion.tokens)
        batch["tokens"][row, start:stop] = [*prompt, *completion.tokens]
        batch["positions"][row, start:stop] = np.arange(stop - start)
        batch["segment_ids"][row, start:stop] = 1
        batch["loss_mask"][row, max_prompt_length:stop] = 1
        batch["sampler_logps"][row, max_prompt_length:stop] = completion.logps
    cut = [completion.finish_reason == "length" for completion in rollouts.completions]
    numbers = {name: np.repeat(np.float32([prompt.columns[name] for prompt in rollouts.prompts]), group_size)
               for name in columns}
    return batch | {"truncated": np.asarray(cut, np.float32)} | numbers


# --------------------------------------------------------------------------------------------- metrics and samples

def rollout_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Under the names that the field knows; lengths in tokens, the end token counted. What nothing has is left out."""
    lengths = np.asarray([len(completion.tokens) for completion in rollouts.completions])
    ended = np.asarray([completion.finish_reason == "stop" for completion in rollouts.completions])
    metrics = reward_metrics(rollouts) | {
        "completions/mean_length": np.mean(lengths), "completions/min_length": np.min(lengths),
        "completions/max_length": np.max(lengths), "completions/clipped_ratio": np.mean(~ended),
        "rollout_tokens_per_second": np.sum(lengths) / rollouts.seconds["rollout"]}
    if ended.any():
        metrics["completions/mean_terminated_length"] = np.mean(lengths[ended])
    return {name: float(value) for name, value in metrics.items()}


def reward_metrics(rollouts: Rollouts) -> dict[str, float]:
    """reward, reward_std (of a group, on average), frac_reward_zero_std; each reward's mean, std and failures."""
    metrics = {"frac_reward_zero_std": np.mean(~rollouts.spread())}
    scored = ~np.isnan(rollouts.rewards)
    if scored.any():
        metrics["reward"] = np.nanmean(rollouts.rewards)
        full = rollouts.rewards[np.sum(scored, axis=1) > 1]
        metrics |= {"reward_std": np.mean(np.nanstd(full, axis=1, ddof=1))} if len(full) else {}
    failed = [failure.reward for failure in rollouts.failures]
    for name, values in rollouts.values.items():
        given = [value for value in values if value is not None]
        metrics |= {f"rewards/{name}/mean": np.mean(given), f"rewards/{name}/std": np.std(given)} if given else {}
        metrics |= {f"rewards/{name}/failures": failed.count(name)} if name in failed else {}
    return {name: float(value) for name, value in metrics.items()}


def write_parquet(path: Path, rollouts: Rollouts, advantages: np.ndarray) -> None:
    """Every rollout as a row of a file that appears whole; advantages [P, G], NaN for what is not trained on.
    Raises InputError where it cannot be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts = [prompt for prompt in rollouts.prompts for _ in range(rollouts.rewards.shape[1])]
    table = {"prompt": [_plain(prompt.text) for prompt in prompts], "completion": rollouts.texts,
             "reward": pa.array(rollouts.rewards.ravel(), pa.float64(), from_pandas=True),  # NaN is none
             **{f"rewards/{name}": pa.array(values, pa.float64()) for name, values in rollouts.values.items()},
             "advantage": pa.array(advantages.ravel(), pa.float64(), from_pandas=True),
             "length": [len(completion.tokens) for completion in rollouts.completions],
             "finish_reason": [completion.finish_reason for completion in rollouts.completions]}
    with whole_file(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), partial)


class SpreadMonitor:
    """Warns where rewards teach nothing for long: no group of many steps in a row has rewards that differ."""

    def __init__(self, patience: int = 10):
        self._patience, self._flat = patience, 0

    def update(self, rollouts: Rollouts, step: int) -> None:
        """Takes a step's rollouts into account."""
        self._flat = 0 if rollouts.spread().any() else self._flat + 1
        if self._flat and self._flat % self._patience == 0:
            print(f"warning: step {step}: for {self._flat} steps all completions of every prompt got equal rewards, so "
                  f"nothing is learnt; try easier or harder prompts, a higher --temperature, a larger --group-size, "
                  f"--dynamic-sampling-tries above 1, or a reward that tells answers apart", file=sys.stderr)


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def last_message(text: Any) -> str:
    """The last message of a chat, without the rest; a text as it is."""
    return text if isinstance(text, str) else str(text[-1].get("content", "") if text else "")


def log_completions(rollouts: Rollouts, step: int, count: int) -> None:
    """Prints the first group's best and worst completions."""
    from rich.console import Console
    from rich.markup import escape

    console, group = Console(), rollouts.rewards.shape[1]
    order = np.argsort(-np.nan_to_num(rollouts.rewards[0], nan=-np.inf), kind="stable")
    console.print(f"[bold]step {step}[/]  [cyan]{escape(_short(last_message(rollouts.prompts[0].text)))}[/]")
    for member in dict.fromkeys([*order[: count - 1].tolist(), order[-1].item()] if group > 1 else [0]):
        reward = rollouts.rewards[0, member]
        console.print(f"  [bold]{reward:6.2f}[/]  {escape(_short(rollouts.texts[member]))}", highlight=False)


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def log_failures(path: Path, step: int, failures: Sequence[Failure]) -> None:
    """Adds what rewards failed on to a JSON-lines file, in place of what a killed run wrote from this step on."""
    if failures:
        with writing(path):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        earlier = [line for line in lines if json.loads(line)["step"] < step]
        new = [json.dumps({"step": step} | failure._asdict(), ensure_ascii=False) for failure in failures]
        write_text(path, "".join(line + "\n" for line in earlier + new))
