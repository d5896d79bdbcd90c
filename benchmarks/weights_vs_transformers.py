"""The largest difference between Temper's log-probabilities and those of transformers and peft, by kind of model.

Models and adapters are those of tests/fixtures: small, float32, as transformers saves each family, of every GGUF kind,
and with unusual configurations, files and adapters. What transformers and peft gave them stands beside them.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from cli import command
from models.pretrained import open_pretrained
from models.scoring import score
from sharding.mesh import MeshConfig, make_layout
from tests.fixtures.variants import cases

FIXTURES = Path(cases.__file__).parents[1]

DESCRIPTION = """Compare small models of many kinds with transformers and peft.

  python -m benchmarks.weights_vs_transformers"""


@dataclasses.dataclass(frozen=True)
class Config:
    pass


def main(_: Config) -> None:
    table = Table("family", "models", "largest difference", "of",
                  title="Log-probabilities against transformers and peft, float32")
    differences = dict(all_differences())
    for family in dict.fromkeys(name.split(",")[0] for name in differences):
        own = {name: each for name, each in differences.items() if name.split(",")[0] == family}
        worst = max(own, key=own.get)
        table.add_row(family, str(len(own)), f"{own[worst]:.1e}", worst.split(", ", 1)[1])
    Console().print(table)
    print(f"{len(differences)} models, at most {max(differences.values()):.1e}")


def all_differences() -> Iterator[tuple[str, float]]:
    """("family, what is unusual about it", largest absolute difference of a log-probability) of every model."""
    for folder in sorted((FIXTURES / "families").iterdir()):
        expected = np.load(folder / "reference.npz")
        yield f"as saved, {folder.name}", _largest(logps(folder, expected["tokens"]) - expected["logps"])
    expected = np.load(FIXTURES / "gguf" / "reference.npz")
    for file in sorted((FIXTURES / "gguf").glob("*.gguf")):
        found = logps(file, expected[f"tokens_{file.stem}"])
        yield f"gguf, {file.stem}", _largest(found - expected[f"logps_{file.stem}"])
    expected = np.load(FIXTURES / "variants" / "variants.npz")
    with tempfile.TemporaryDirectory() as scratch:
        for name in expected:
            folder = cases.write(Path(scratch) / name, name)
            yield name, _largest(logps(folder, cases.tokens()) - expected[name])


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def logps(model: Path, tokens: np.ndarray) -> np.ndarray:
    """Temper's log-probabilities of `tokens` [B, T]."""
    loaded, variables = open_pretrained(str(model)).load(make_layout(MeshConfig(), jax.devices()[:1]))
    batch = {"tokens": tokens, "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
             "segment_ids": np.ones_like(tokens)}
    return np.asarray(score(loaded, variables, batch).logps)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
