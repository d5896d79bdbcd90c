"""README.md of an export: the base, the data and their hashes, the figures before and after, all flags."""

import re
from pathlib import Path
from typing import Any

import yaml

from models.pretrained import Pretrained
from training.metrics import read_metrics
from training.runs import TrainedRun, read_config

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_card(opened: Pretrained | TrainedRun, reference: str, base: str | None = None) -> str:
    """The card of `opened`, which `reference` names; an adapter names its `base`."""
    if not isinstance(opened, TrainedRun):
        return _header(base, None) + f"# {Path(reference).name}\n\nWritten by Temper from `{reference}`.\n"
    config = read_config(opened.path)
    start = config.get("model")
    parts = [_header(base, start), f"# {opened.path.resolve().name}\n\n", _origin(opened, start), _data(config),
             _figures(opened), _flags(config)]
    return "".join(parts)


def _header(base: str | None, start: str | None) -> str:
    """What the Hub reads; it takes no other base than one of its own."""
    content: dict[str, Any] = {"library_name": "peft" if base else "transformers", "tags": ["temper"]}
    named = base or start or ""
    if _HUB_ID.fullmatch(named) and not Path(named).exists():
        content["base_model"] = named
    return f"---\n{yaml.safe_dump(content)}---\n\n"


def _origin(opened: TrainedRun, start: str | None) -> str:
    trained = "All weights were" if opened.lora is None else f"LoRA of rank {opened.lora.rank} was"
    begun = f"beginning with `{start}`" if start else "beginning with random weights"
    kept = {"newest": "last", "best": "best"}.get(opened.checkpoint, f"step-{opened.checkpoint}")
    return f"{trained} trained with Temper, {begun}. These are the weights of its {kept} checkpoint.\n\n"


def _data(config: dict[str, Any]) -> str:
    lines = ["## Data\n\n", "| rows | source | weight | sha256 |\n", "|---|---|---|---|\n"]
    hashes = [*(config.get("sha256") or []), "", ""]
    for kind, key, sha in (("trained on", "data", hashes[0]), ("held out", "eval_data", hashes[1])):
        for each in config.get(key) or []:
            source, weight = (each.get("source", each), each.get("weight", 1)) if isinstance(each, dict) else (each, 1)
            lines.append(f"| {kind} | `{source}` | {weight} | {sha} |\n")
    return "".join(lines) + "\nA hash is of all the sources of its kind together.\n\n"


def _figures(opened: TrainedRun) -> str:
    """Held-out figures before the first step and at the checkpoint; of training, where nothing was held out."""
    lines = read_metrics(opened.path)
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    rows = evaluated or [line for line in lines if "loss" in line]
    if not rows:
        return ""
    first, last = rows[0], _at_checkpoint(rows, opened.checkpoint)
    names = [name for name, value in last.items() if isinstance(value, float) and isinstance(first.get(name), float)
             and (name.startswith("eval/") if evaluated else name == "loss")]
    table = "".join(f"| {name} | {first[name]:.6g} | {last[name]:.6g} |\n" for name in names)
    return f"## Figures\n\n| | step {first['step']} | step {last['step']} |\n|---|---|---|\n{table}\n"


def _at_checkpoint(rows: list[dict[str, Any]], checkpoint: str) -> dict[str, Any]:
    if checkpoint == "best":
        return min((row for row in rows if row["step"] and row.get("eval/loss") is not None), default=rows[-1],
                   key=lambda row: row["eval/loss"])
    if checkpoint.isdecimal():
        rows = [row for row in rows if row["step"] <= int(checkpoint)] or rows[:1]
    return rows[-1]


def _flags(config: dict[str, Any]) -> str:
    flags = {name: value for name, value in config.items() if name != "sha256"}
    return f"## Flags\n\n```yaml\n{yaml.safe_dump(flags, sort_keys=False)}```\n"
