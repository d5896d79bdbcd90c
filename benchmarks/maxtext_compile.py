"""A train step compiled for TPUs beside MaxText's: the compiler's estimates of time, and memory.

Both are compiled by the same libtpu with layers, micro-batches and chunks of the vocabulary unrolled. Since a whole
model takes the compiler many minutes so, models of few layers are compiled, of which the figures of the whole follow:
time(L) = time(l) + (L - l) (time(m) - time(l)) / (m - l), memory likewise.

The compiler's own estimate, optimal_seconds, counts the body of a loop once, and the compiler itself makes loops of
matmuls whose weights are gathered piece by piece: of MaxText's layers it so counts three quarters of the FLOPs or half.
Cycles of its schedule, times how often a loop runs, count all. Attention's kernel declares no cost; on both sides it is
given the time of its FLOPs.
"""

import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from cli.checks import check_positive
from cli.command import run
from errors import InputError

DESCRIPTION = """A train step for TPUs that are not there, beside MaxText's own train_compile.

  python3.12 -m venv /tmp/mt && /tmp/mt/bin/pip install "maxtext[tpu]"
  python -m benchmarks.maxtext_compile --maxtext-python /tmp/mt/bin/python"""

REMAT = {"full": "full", "dots": "minimal"}
"""ours -> MaxText's"""
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "HF_HUB_OFFLINE": "1",
               "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: str = "qwen3-0.6b"
    """The preset, which both know by this name."""
    topology: str = "v5p:2x2x2"
    rows: int = 4
    """A device has so many rows,"""
    length: int = 2048
    """of so many tokens."""
    remat: tuple[Literal["full", "dots"], ...] = ("full", "dots")
    """MaxText calls dots minimal."""
    reduce_dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """In which ours sums gradients over devices; MaxText sums them in bfloat16."""
    depths: tuple[int, int] = (1, 4)
    """Models of so many layers are compiled."""
    libtpu: Path | None = None
    """The folder of libtpu, as for scripts.plan."""
    maxtext_python: Path | None = None
    """The python of an environment that has maxtext[tpu]; without one only ours is compiled."""


class Figures(NamedTuple):
    """Of a step; milliseconds, and gigabytes on a device."""

    counted_once: float
    """optimal_seconds: each instruction once"""
    cycles: float
    """of the compiler's schedule, loops as often as they run"""
    attention: float
    """by its FLOPs: its kernel declares none"""
    exchange: float
    """of collectives, what nothing hides, by bytes and links"""
    temporaries: float

    @property
    def total(self) -> float:
        return self.cycles + self.attention + self.exchange


def main(config: Config) -> None:
    from models.config import PRESETS

    check_positive(config, "rows", "length")
    if not 0 < config.depths[0] < config.depths[1]:
        raise InputError(f"--depths {config.depths[0]} {config.depths[1]}: give a number of layers and a larger one")
    if config.model not in PRESETS:
        raise InputError(f"--model {config.model}: there is no such preset; there are {', '.join(PRESETS)}")
    if config.maxtext_python:
        maxtext_folder(config.maxtext_python)  # before minutes go by
    table = Table("remat", "", "optimal_seconds, ms", "cycles, ms", "attention", "exchange", "together", "of MaxText's",
                  "temporaries, GB",
                  title=f"{config.model}, {config.topology}, fsdp, {config.rows} x {config.length} tokens a device")
    for remat in config.remat:
        found = whole_steps(config, remat, PRESETS[config.model].num_layers)
        peer = found.get("MaxText")
        for name, each in found.items():
            ratio = f"{each.counted_once / peer.counted_once:.3f}, {each.total / peer.total:.3f}" if peer else ""
            table.add_row(remat, name, *(f"{value:.1f}" for value in each[:4]), f"{each.total:.1f}", ratio,
                          f"{each.temporaries:.2f}")
    Console(width=160).print(table)


def whole_steps(config: Config, remat: str, num_layers: int) -> dict[str, Figures]:
    """Of all layers, from models of few."""
    pairs: dict[str, list[Figures]] = {}
    for depth in config.depths:
        for dtype in config.reduce_dtype:
            compiled = ours(config, remat, dtype, depth)
            pairs.setdefault(f"Temper, {dtype} sums", []).append(figures(compiled))
        if config.maxtext_python:
            pairs.setdefault("MaxText", []).append(theirs(config, remat, depth, compiled))
    times = (num_layers - config.depths[0]) / (config.depths[1] - config.depths[0])
    return {name: Figures(*(one + times * (other - one) for one, other in zip(few, more, strict=True)))
            for name, (few, more) in pairs.items()}


def figures(compiled: Any) -> Figures:
    from planning.estimate import estimate

    found = estimate(compiled)
    core, kernels, in_turn = (1e3 * getattr(found.times, name) for name in ("core", "kernels", "in_turn"))
    return Figures(1e3 * compiled.optimal_seconds, core, kernels, in_turn, found.memory.temporaries / 1e9)


# ----------------------------------------------------------------------------------------------------------------- ours

def ours(config: Config, remat: str, reduce_dtype: str, depth: int) -> Any:
    """planning.compiling.Compiled"""
    from planning.compiling import Target, compile_for
    from planning.facts import describe
    from planning.libtpu import find_libtpu
    from planning.search import devices_in
    from scripts.plan import read_flags

    devices = devices_in(config.topology, 1)
    flags = {"model": config.model, "batch-size": devices * config.rows, "max-length": config.length, "remat": remat,
             "mesh.data": 1, "mesh.fsdp": devices, "mesh.reduce-dtype": reduce_dtype}
    parsed = read_flags("sft", [str(part) for name, value in flags.items() for part in (f"--{name}", value)])
    with tempfile.TemporaryDirectory() as folder:
        done = compile_for(Target(config.topology, 1, find_libtpu(config.libtpu)), unrolled,
                           (parsed, depth), describe, Path(folder), finish=True)
    if done.optimal_seconds is None:
        raise InputError(f"{depth} layers do not fit {config.topology}; give fewer --rows")
    return done


def unrolled(devices: Sequence[Any], parsed: Any, depth: int) -> Any:
    """The script's program for a model of so many layers, with all loops unrolled, in the process that compiles.
    Without loops the compiler would undo what is computed again, but for prevent_cse."""
    import flax.linen as nn
    import jax

    from cli.planned import on_tpus
    from models.config import PRESETS
    from scripts.sft import programs

    PRESETS[parsed.model] = dataclasses.replace(PRESETS[parsed.model], num_layers=depth)
    scan, remat = jax.lax.scan, nn.remat
    jax.lax.scan = lambda *arguments, **flags: scan(*arguments, **flags | {"unroll": True})
    nn.remat = lambda target, **flags: remat(target, **flags | {"prevent_cse": True})
    return programs(on_tpus(parsed), devices)[0]


# -------------------------------------------------------------------------------------------------------------- MaxText

def theirs(config: Config, remat: str, depth: int, compiled: Any) -> Figures:
    """By maxtext.trainers.pre_train.train_compile; what is not of the compiler's texts is as in ours."""
    from planning.search import devices_in

    chip = config.topology.partition(":")[0]
    cores = 2 if chip == "v5p" else 1  # by which MaxText counts some chips
    settings = {"model_name": config.model, "compile_topology": f"{chip}-{cores * devices_in(config.topology, 1)}",
                "compile_topology_num_slices": 1, "per_device_batch_size": config.rows,
                "max_target_length": config.length, "remat_policy": REMAT[remat], "attention": "flash",
                "dataset_type": "synthetic", "enable_checkpointing": False, "run_name": "compared", "steps": 5,
                "ici_fsdp_parallelism": -1, "scan_layers": False, "base_num_decoder_layers": depth,
                "override_model_config": True}
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder}/dump --xla_dump_hlo_as_text --xla_dump_compact_gte=false"
        package = maxtext_folder(config.maxtext_python)
        done = subprocess.run(
            [str(config.maxtext_python), "-m", "maxtext.trainers.pre_train.train_compile", package / "configs/base.yml",
             *(f"{name}={value}" for name, value in settings.items()), f"base_output_directory={folder}"],
            capture_output=True, text=True, env=os.environ | ENVIRONMENT | {"XLA_FLAGS": dump}, cwd=package.parent)
        seconds = re.search(r"'optimal_seconds': ([\d.e+-]+)", done.stdout)
        temporaries = re.search(r"temp_size_in_bytes=(\d+)", done.stdout)
        texts = {name: list(Path(folder).glob(f"dump/*jit_train_step*{name}.txt")) for name in (
            "after_codegen", "after_optimizations-buffer-assignment", "after_optimizations-live-range")}
        if not (seconds and temporaries and all(texts.values())):
            raise InputError(f"MaxText compiled nothing; its last words: {(done.stdout + done.stderr)[-500:]}")
        text, buffers, live_ranges = (found[0].read_text() for found in texts.values())
    found = figures(dataclasses.replace(compiled, text=text, buffers=buffers, live_ranges=live_ranges,
                                        optimal_seconds=float(seconds[1])))
    return found._replace(temporaries=int(temporaries[1]) / 1e9)


def maxtext_folder(python: Path) -> Path:
    """Raises InputError where this is no python of an environment that has it."""
    find = "import maxtext, pathlib; print(pathlib.Path(maxtext.__file__).parent)"
    try:
        done = subprocess.run([str(python), "-c", find], capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    except OSError as error:
        raise InputError(f"--maxtext-python {python}: cannot be run ({error.strerror}); give a Python") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise InputError(f"--maxtext-python {python}: {reason}; run there: pip install \"maxtext[tpu]\"")
    return Path(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    run(main, Config, DESCRIPTION)
