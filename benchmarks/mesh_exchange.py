"""What a train step exchanges between devices on several meshes, by its compiled text, beside what theory asks for.

The step is that of scripts.sft (training.step.make_train_step), compiled for shapes alone: no weight is made, no TPU is
needed. Bytes are those that one device sends (sharding.collectives); theory is training.least_exchange. Cases are
compiled one after the other (planning.compiling), without machine code. --simulated compiles for 8 simulated CPU
devices: kinds and dtypes are then the CPU backend's own (it makes all-reduces of reduce-scatters, and float32 of
bfloat16), places are the same.
"""

import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run
from errors import InputError
from models.settings import Architecture, LoRAConfig, Remat

DESCRIPTION = """Bytes that a train step sends on several meshes, by kind and place; needs libtpu, no TPU.

  python -m benchmarks.mesh_exchange --topology v5p:2x2x2 --output-dir exchange"""

SMALL = Architecture(preset="qwen3-0.6b", embed_dim=512, mlp_dim=1536, num_layers=8, num_heads=8, num_kv_heads=8)
"""divides over 8 devices on any mesh axis, and its layers, too"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    topology: str = "v5p:2x2x2"
    """The step is compiled for this TPU,"""
    slices: int = 1
    """or for so many of it, which are the mesh's axis `slice`."""
    libtpu: Path | None = None
    """The folder that has libtpu; by default it is fetched once into the user's cache folder."""
    simulated: bool = False
    """The step is compiled for 8 simulated CPU devices instead."""
    architecture: Architecture = SMALL
    vocab_size: int = 32768
    meshes: tuple[str, ...] = ("data=8", "fsdp=8", "tensor=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")
    """Sizes of the mesh axes; those not given are 1."""
    trained: tuple[Literal["full", "lora"], ...] = ("full", "lora")
    """All weights are trained, or LoRA of rank 16."""
    optimizers: tuple[Literal["adamw", "muon"], ...] = ("adamw", "muon")
    num_microbatches: tuple[int, ...] = (1, 2)
    """A step has so many micro-batches."""
    rows: int = 64
    """A micro-batch has so many rows, over all devices."""
    length: int = 1024
    """A row has so many tokens."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Remat = "dots"
    attention: Literal["flash", "xla"] = "flash"
    """On TPUs; on simulated devices it is xla."""
    details: bool = False
    """Each case's collectives are printed, too."""
    output_dir: Path | None = None
    """exchange.json, table.txt and the compiled texts are written here."""


class Case(NamedTuple):
    """A step to be compiled."""

    mesh: str
    trained: str
    optimizer: str
    num_microbatches: int

    @property
    def name(self) -> str:
        return "_".join(map(str, self))


class Measured(NamedTuple):
    """What a compiled step says of itself."""

    rows: list[Any]
    """sharding.collectives.Row"""
    theory: Any
    """training.least_exchange.LeastExchange"""
    temporary: int
    """bytes on a device, beside arguments and results"""
    largest: str
    """the largest array that a loop makes"""
    seconds: float
    """until the text was there, jax's import included"""

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def ratio(self) -> float:
        return self.bytes / self.theory.total

    def of_kind(self, kind: str, in_loops: bool) -> int:
        return sum(row.bytes for row in self.rows if row.kind == kind and (row.place != "outside") == in_loops)


def main(config: Config) -> None:
    check_positive(config, "slices", "vocab_size", "rows", "length")
    console, measured = Console(width=None if sys.stdout.isatty() else 200), {}
    where = "8 simulated CPUs" if config.simulated else f"{config.slices} x {config.topology}"
    title = f"{where}, a step of K x {config.rows} x {config.length} tokens, remat {config.remat}"
    for case in cases(config):
        measured[case] = measure(config, case)
        console.print(details(case, measured[case]) if config.details else summary({case: measured[case]}))
        if config.output_dir is not None:
            write(config.output_dir, config, measured, summary(measured, title))
    console.print(summary(measured, title))


def cases(config: Config) -> Iterator[Case]:
    for mesh in config.meshes:
        for trained in config.trained:
            for optimizer in config.optimizers:
                for count in config.num_microbatches:
                    yield Case(mesh, trained, optimizer, count)


def measure(config: Config, case: Case) -> Measured:
    """Compiles the step of a case, and reads its text."""
    import jax

    from planning.memory import read_memory
    from sharding.collectives import collectives, tally
    from sharding.hlo import made_arrays
    from sharding.layout import AXES, Layout
    from training.least_exchange import least_exchange

    compiled = compile_case(config, case)
    sizes = dict(re.findall(r"(\w+)=(\d+)", case.mesh))
    mesh = jax.sharding.AbstractMesh(tuple(int(sizes.get(axis, 1)) for axis in AXES), AXES)
    rows = tally(collectives(compiled.text, mesh))
    theory = least_exchange(make_model(config, case), case.optimizer, Layout(mesh),
                            case.num_microbatches * config.rows, config.length, case.num_microbatches)
    in_loops = [array for array, loops in made_arrays(compiled.text) if loops]
    largest = max(in_loops, key=lambda array: array.bytes, default="")
    memory = read_memory(compiled.buffers, compiled.live_ranges, compiled.text)
    return Measured(rows, theory, memory.temporaries, str(largest), compiled.seconds)


def compile_case(config: Config, case: Case) -> Any:
    """planning.compiling.Compiled of a case's step."""
    from planning.compiling import Target, compile_for
    from planning.facts import describe
    from planning.libtpu import find_libtpu

    target = Target(None) if config.simulated else Target(config.topology, config.slices, find_libtpu(config.libtpu))
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_for(target, make_program, (config, case), describe, Path(folder))
    if config.output_dir is not None:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        (config.output_dir / f"{case.name}.hlo").write_text(compiled.text)
    return compiled


def make_program(devices: list[Any], config: Config, case: Case) -> Any:
    """The train step of a case, as scripts.sft makes it."""
    from objectives.sft import sft
    from planning.program import Program
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.abstract import batch_shapes, train_state_shapes
    from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
    from training.step import make_train_step

    layout = make_layout(mesh_config(case.mesh), devices)
    model = make_model(config, case).clone(training=True, layout=layout)
    flags = OptimizerConfig(name=case.optimizer)
    schedule = make_schedule(flags, 1e-4, 1000)
    optimizer = make_optimizer(flags, schedule)
    state = train_state_shapes(model, optimizer, layout)
    placement = Placement(case.num_microbatches * config.rows, case.num_microbatches, layout)
    step = make_train_step(model, sft, optimizer, schedule, state)
    return Program(case.name, step, (state, batch_shapes(placement, config.length)), layout)


def mesh_config(text: str) -> Any:
    """The MeshConfig of "fsdp=4,tensor=2". Raises InputError for what names no sizes."""
    from sharding.settings import MeshConfig

    sizes = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return MeshConfig(**{"data": 1} | {name: int(size) for name, size in sizes.items()})
    except (TypeError, ValueError):
        raise InputError(f"mesh {text!r}: give sizes of its axes, such as fsdp=4,tensor=2") from None


def make_model(config: Config, case: Case) -> Any:
    from models.architecture import make_config
    from models.transformer import Transformer

    lora = LoRAConfig(rank=16) if case.trained == "lora" else None
    model = dataclasses.replace(make_config(config.architecture, config.vocab_size), dtype=config.dtype,
                                param_dtype=config.dtype if lora else "float32", remat=config.remat,
                                attention="xla" if config.simulated else config.attention)
    return Transformer(model, lora)


KINDS = {"all-gather": "gather", "reduce-scatter": "scatter", "all-reduce": "reduce", "all-to-all": "all to all",
         "collective-permute": "permute"}


def summary(measured: dict[Case, Measured], title: str = "") -> Table:
    """A line a case. Of each kind the megabytes in loops + outside them; `permute` is also how the TPU compiler gathers
    and scatters for a matmul."""
    table = Table("mesh", "trained", "optimizer", "K", *KINDS.values(), "all, MB", "theory", "ratio", "temp MB",
                  "largest in a loop", "text after, s", title=title)
    for case, each in measured.items():
        kinds = (f"{each.of_kind(kind, True) / 1e6:.1f}+{each.of_kind(kind, False) / 1e6:.1f}" for kind in KINDS)
        table.add_row(*map(str, case), *kinds, f"{each.bytes / 1e6:.1f}", f"{each.theory.total / 1e6:.1f}",
                      f"{each.ratio:.2f}", f"{each.temporary / 1e6:.1f}", each.largest.replace("[", r"\["),
                      f"{each.seconds:.0f}")
    return table


def details(case: Case, measured: Measured) -> Table:
    from sharding.collectives import exchange_table

    theory = ", ".join(f"{name} {size / 1e6:.3f}" for name, size in measured.theory._asdict().items())
    return exchange_table(measured.rows, f"{' '.join(map(str, case))}: {measured.ratio:.2f} of theory, in MB {theory}")


def write(folder: Path, config: Config, measured: dict[Case, Measured], table: Table) -> None:
    """exchange.json and table.txt."""
    found = [case._asdict() | {"bytes": each.bytes, "ratio": each.ratio, "theory": each.theory._asdict(),
                               "temporary": each.temporary, "largest": each.largest, "seconds": each.seconds,
                               "rows": [row._asdict() | {"largest": str(row.largest)} for row in each.rows]}
             for case, each in measured.items()]
    content = {"config": dataclasses.asdict(config), "cases": found}
    (folder / "exchange.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    with (folder / "table.txt").open("w") as file:
        Console(file=file, width=240).print(table)


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
