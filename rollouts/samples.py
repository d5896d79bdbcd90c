"""What is kept of every episode: samples/step-NNNNNN.parquet in the run directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from files import whole_file
from rollouts.episodes import Group


def write_samples(run: Path, step: int, groups: Sequence[Group], trained: Sequence[Group], advantages: np.ndarray,
                  policy_logps: np.ndarray) -> None:
    """Every episode as a row of a file that appears whole. `advantages` [N] or [N, T] and `policy_logps` [N, T], the
    trainer's, are of the episodes that are trained on, in to_batch's columns. Raises InputError where it cannot be
    written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {id(episode): row for row, episode in enumerate(each for group in trained for each in group.episodes)}
    table = {"prompt": [], "completion": [], "reward": [], "advantage": [], "length": [], "finish_reason": []}
    names = dict.fromkeys(name for group in groups for episode in group.episodes for name in episode.values)
    values = {f"rewards/{name}": [] for name in names}
    for group in groups:
        for episode in group.episodes:
            row = rows.get(id(episode))
            advantage = None if row is None else advantages[row]
            table["prompt"].append(_plain(group.prompt.text))
            table["completion"].append(episode.text)
            table["reward"].append(episode.reward)
            table["advantage"].append(None if advantage is None else float(np.ravel(advantage).max()))
            table["length"].append(len(episode.completion))
            table["finish_reason"].append(episode.finish_reason)
            for name in names:
                values[f"rewards/{name}"].append(episode.values.get(name))
    floats = {name: pa.array(table.pop(name), pa.float64()) for name in ("reward", "advantage")}
    values = {name: pa.array(value, pa.float64()) for name, value in values.items()}
    path = run / "samples" / f"step-{step:06d}.parquet"
    with whole_file(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table | floats | values), partial)


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
