"""What a train step exchanges between devices on several meshes, by its compiled text, beside what theory asks for.

The step is that of scripts.sft (training.step.make_train_step), compiled for shapes alone: no weight is made, no TPU is
needed. Bytes are those that one device sends (sharding.collectives); theory is training.least_exchange. The compiler
writes its optimised text, and how much memory it needs, before it makes machine code of it, which takes it most of its
time: so each case is compiled by a process of its own, one after the other, that is ended there. libtpu is needed, best
in a folder of its own that PYTHONPATH names: beside jax it disturbs runs on the CPU. --simulated compiles for 8
simulated CPU devices in its place: kinds and dtypes are then the CPU backend's own (it makes all-reduces of
reduce-scatters, and float32 of bfloat16), places are the same.
"""

import dataclasses
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
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

  pip install --no-deps --target /tmp/libtpu libtpu
  PYTHONPATH=/tmp/libtpu python -m benchmarks.mesh_exchange --topology v5p:2x2x2 --output-dir exchange"""

SMALL = Architecture(preset="qwen3-0.6b", embed_dim=512, mlp_dim=1536, num_layers=8, num_heads=8, num_kv_heads=8)
"""divides over 8 devices on any mesh axis, and its layers, too"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    topology: str = "v5p:2x2x2"
    """The step is compiled for this TPU,"""
    slices: int = 1
    """or for so many of it, which are the mesh's axis `slice`."""
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

    from sharding.collectives import collectives, tally
    from sharding.hlo import made_arrays
    from sharding.layout import AXES, Layout
    from training.least_exchange import least_exchange

    text, temporary, seconds = compiled_text(config, case)
    sizes = dict(re.findall(r"(\w+)=(\d+)", case.mesh))
    mesh = jax.sharding.AbstractMesh(tuple(int(sizes.get(axis, 1)) for axis in AXES), AXES)
    rows = tally(collectives(text, mesh))
    theory = least_exchange(make_model(config, case), case.optimizer, Layout(mesh),
                            case.num_microbatches * config.rows, config.length, case.num_microbatches)
    in_loops = [array for array, loops in made_arrays(text) if loops]
    largest = max(in_loops, key=lambda array: array.bytes, default="")
    return Measured(rows, theory, temporary, str(largest), seconds)


def compiled_text(config: Config, case: Case) -> tuple[str, int, float]:
    """The optimised text of a case's step, the bytes of temporaries, and seconds until the text was there."""
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        process = multiprocessing.get_context("spawn").Process(target=compile_step, args=(config, case, folder))
        process.start()
        while not (text := written(folder)) and process.is_alive():
            process.join(0.5)
        seconds = time.perf_counter() - start
        process.kill()
        process.join()
        if not text:
            raise InputError(f"{case.name}: nothing was compiled; why is above")
        buffers = next(folder.glob("*after_optimizations-buffer-assignment.txt")).read_text()
        temporary = re.findall(r"size (\d+)(?:, color 0)?, page \d+, preallocated-temp", buffers)
    if config.output_dir is not None:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        (config.output_dir / f"{case.name}.hlo").write_text(text)
    return text, sum(map(int, temporary)), seconds


def written(folder: Path) -> str:
    """The optimised text, once all of it is there; the compiler writes it after the assignment of buffers."""
    texts = [path.read_text() for path in folder.glob("*after_optimizations.txt")]
    return next((text for text in texts if "\nENTRY " in text and text.rstrip().endswith("\n}")), "")


def compile_step(config: Config, case: Case, folder: Path) -> None:
    """In a process of its own: compiles a case's train step, made as scripts.sft makes it; what it is compiled to is
    written to `folder`."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                   "TPU_ACCELERATOR_TYPE": "v5p-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # of this machine: it has none
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    from objectives.sft import sft
    from sharding.mesh import make_layout
    from sharding.placement import Placement
    from training.abstract import batch_shapes, train_state_shapes
    from training.optimizer import OptimizerConfig, make_optimizer, make_schedule
    from training.step import make_train_step

    try:
        layout = make_layout(mesh_config(case.mesh), devices(config))
    except InputError as error:
        sys.exit(f"error: {error}")
    model = make_model(config, case).clone(training=True, layout=layout)
    flags = OptimizerConfig(name=case.optimizer)
    schedule = make_schedule(flags, 1e-4, 1000)
    optimizer = make_optimizer(flags, schedule)
    state = train_state_shapes(model, optimizer, layout)
    placement = Placement(case.num_microbatches * config.rows, case.num_microbatches, layout)
    step = make_train_step(model, sft, optimizer, schedule, state)
    step.lower(state, batch_shapes(placement, config.length)).compile(
        {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_compact_gte": False})


def devices(config: Config) -> list[Any]:
    import jax
    from jax.experimental import topologies

    if config.simulated:
        return jax.devices()
    try:
        slices = {"num_slices": config.slices} if config.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=config.topology, **slices).devices
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"topology {config.topology}: {first}; is libtpu in PYTHONPATH?") from None


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
