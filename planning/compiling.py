"""Compiles a program for TPUs on a machine without one, in a process of its own, by the libtpu of a folder.

The compiler writes its optimised text, and how it lays out memory, well before it has made machine code, which takes it
most of its time: without `finish` it is stopped there.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errors import InputError

TOPOLOGIES = {
    "v5e": "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16", "v6e": "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
    "v5p": "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8 and more",
    "tpu7x": "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4 and more"}
"""that Google Cloud has, by the compiler's name of the chip"""

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
               "TPU_ACCELERATOR_TYPE": "v5p-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
               "JAX_ENABLE_COMPILATION_CACHE": "false"}
"""of a machine that has no TPU; of one that a program is compiled for nothing is kept"""

Make = Callable[..., Any]
"""(devices, ...) -> what is compiled: has `function`, jitted, and `arguments`; run in the other process"""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for."""

    topology: str | None
    """such as v5p:2x2x2; None: 8 simulated CPU devices"""
    slices: int = 1
    libtpu: Path | None = None
    """the folder that has it"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler has written."""

    text: str
    """optimised, with cycles where it has finished; "" where the program is so large that it was not written"""
    buffers: str
    live_ranges: str
    facts: dict[str, Any]
    """of what was compiled, by `describe`"""
    error: str
    """of a program that does not fit"""
    seconds: float
    optimal_seconds: float | None
    """the compiler's own, with loops counted once; None where it was stopped"""


def compile_for(target: Target, make: Make, arguments: Sequence[Any], describe: Callable[[Any], dict[str, Any]],
                folder: Path, finish: bool = False, watch: Callable[[str, float], None] = lambda *_: None) -> Compiled:
    """Compiles what `make` makes; `folder` is empty, and holds afterwards what was written. `watch` is told twice a
    second what is done, and since how many seconds. Raises InputError with the line of what is refused there."""
    start, context = time.perf_counter(), multiprocessing.get_context("spawn")
    process = context.Process(target=_compile, args=(target, make, arguments, describe, folder, finish), daemon=True)
    with _environment(target):
        process.start()
    try:
        while process.is_alive() and not (not finish and _text(folder)):
            process.join(0.5)
            watch(_stage(folder, finish), time.perf_counter() - start)
    finally:
        process.kill()
        process.join()
    return _read(folder, time.perf_counter() - start)


@contextlib.contextmanager
def _environment(target: Target) -> Any:
    """What a process that is started now has, and this one has not."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    library = {"TPU_LIBRARY_PATH": str(target.libtpu / "libtpu" / "libtpu.so")} if target.libtpu else {}
    changed = ENVIRONMENT | library | ({} if target.topology else {"XLA_FLAGS": flags})
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _stage(folder: Path, finish: bool) -> str:
    if not (folder / "facts.json").exists():
        return "tracing"
    return "making machine code" if finish and _text(folder) else "optimising"


def _text(folder: Path) -> str:
    """The optimised text, once all of it is there; the compiler writes it after the assignment of buffers."""
    if (finished := folder / "executable.txt").exists():
        return finished.read_text()
    texts = [path.read_text() for path in folder.glob("*after_optimizations.txt")]
    return next((text for text in texts if "\nENTRY " in text and text.rstrip().endswith("\n}")), "")


def _read(folder: Path, seconds: float) -> Compiled:
    if (refused := folder / "refused.txt").exists():
        raise InputError(refused.read_text())
    error = (folder / "error.txt").read_text() if (folder / "error.txt").exists() else ""
    text = _text(folder)
    if not text and not error:
        raise InputError("nothing was compiled; the compiler's last words are above")
    buffers, live = (_first(folder, f"*after_optimizations-{name}.txt") for name in ("buffer-assignment", "live-range"))
    done = folder / "done.json"
    optimal = json.loads(done.read_text())["optimal_seconds"] if done.exists() else None
    return Compiled(text, buffers, live, json.loads((folder / "facts.json").read_text()), error, seconds, optimal)


def _first(folder: Path, pattern: str) -> str:
    return next((path.read_text() for path in folder.glob(pattern)), "")


def _compile(target: Target, make: Make, arguments: Sequence[Any], describe: Callable[[Any], dict[str, Any]],
             folder: Path, finish: bool) -> None:
    """In the other process. What it writes there is whole, or has another name."""
    import jax

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        program = make(devices_of(target), *arguments)
        traced = program.function.trace(*program.arguments)
        _write(folder / "facts.json", json.dumps(describe(program, traced)))
        platforms = None if target.topology is None else ("tpu",)
        lowered = traced.lower(lowering_platforms=platforms)
        compiled = lowered.compile({"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True,
                                    "xla_dump_compact_gte": False})
    except InputError as error:
        _write(folder / "refused.txt", str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            traceback.print_exc()
            sys.exit(1)
        _write(folder / "error.txt", str(error))
    else:
        _finished(compiled, folder)


def _end_with_parent() -> None:
    """Nothing compiles for nobody, however the process ended that asked for it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _finished(compiled: Any, folder: Path) -> None:
    costs = compiled.cost_analysis() or {}
    _write(folder / "executable.txt", compiled.as_text())
    _write(folder / "done.json", json.dumps({"optimal_seconds": costs.get("optimal_seconds")}))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.rename(path)


def devices_of(target: Target) -> list[Any]:
    """The devices of a target. Raises InputError where there is no such topology."""
    import jax
    from jax.experimental import topologies

    if target.topology is None:
        return jax.devices()
    slices = {"num_slices": target.slices} if target.slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **slices).devices
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise InputError(f"--topology {target.topology}: there is none ({first}); there are "
                         f"{'; '.join(f'{chip}: {sizes}' for chip, sizes in TOPOLOGIES.items())}") from None
