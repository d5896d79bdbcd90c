"""The largest difference between Temper's log-probabilities and those of transformers and peft, by kind of model.

Models and adapters are small, float32, with unusual configurations, files and adapters: tests/fixtures/variants. What
transformers and peft gave them stands beside them (make_variants.py).
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
from sharding.mesh import MeshConfig, make_mesh
from tests.fixtures.variants import cases

DESCRIPTION = """Compare small models of many kinds with transformers and peft.

  python -m benchmarks.weights_vs_transformers"""


@dataclasses.dataclass(frozen=True)
class Config:
    pass


def main(_: Config) -> None:
    table = Table("model", "largest difference of a log-probability")
    differences = dict(all_differences())
    for name, difference in differences.items():
        table.add_row(name, f"{difference:.1e}")
    Console().print(table)
    print(f"{len(differences)} models, at most {max(differences.values()):.1e}")


def all_differences() -> Iterator[tuple[str, float]]:
    """(name, largest absolute difference of a log-probability) of every model."""
    expected = np.load(Path(cases.__file__).with_name("variants.npz"))
    with tempfile.TemporaryDirectory() as scratch:
        for name in expected:
            folder = cases.write(Path(scratch) / name, name)
            yield name, float(np.abs(logps(folder) - expected[name]).max())


def logps(folder: Path) -> np.ndarray:
    """Temper's log-probabilities of cases.tokens()."""
    model, variables = open_pretrained(str(folder)).load(make_mesh(MeshConfig(), jax.devices()[:1]))
    tokens = cases.tokens()
    batch = {"tokens": tokens, "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
             "segment_ids": np.ones_like(tokens)}
    return np.asarray(score(model, variables, batch).logps)


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
