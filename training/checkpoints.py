"""Checkpoints by Orbax: asynchronous, atomic, the newest few kept. A step's folder holds three items.

`trainable`: the trained collection; `progress`: step, optimiser state and key; `data`: the position in the data, and
checksums of everything, since Orbax takes a flipped bit in an array for a number. Where there is a critic, `critic` and
`critic_progress` are its own of the first two.
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import math
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from errors import InputError
from sharding import hosts
from training.state import TrainState

ITEMS = ("trainable", "progress", "critic", "critic_progress")
"""of arrays"""
LATEST = 2
"""checkpoints that are kept, the best one not counted"""


def open_manager(run: Path, *, read_only: bool = False, keep_best: bool = False) -> ocp.CheckpointManager:
    """The manager of a run directory's checkpoints/; the newest LATEST are kept, and the one with the least eval
    loss if `keep_best`. What a kill left of an unfinished save is removed."""
    _silence_repeats()
    newest = checkpoint_managers.LatestN(n=LATEST)
    best = checkpoint_managers.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([newest, best]) if keep_best else newest
    options = ocp.CheckpointManagerOptions(preservation_policy=None if read_only else policy, best_mode="min",
                                           best_fn=_loss if keep_best or read_only else None,
                                           read_only=read_only, create=not read_only,
                                           cleanup_tmp_directories=not read_only)
    return ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)


@contextlib.contextmanager
def opened(run: Path, *, keep_best: bool = False) -> Iterator[ocp.CheckpointManager]:
    """open_manager for a block. Raises InputError at its end where the save that is under way cannot be written."""
    manager = open_manager(run, keep_best=keep_best)
    try:
        yield manager
    finally:
        with writing(manager):
            manager.close()


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def save(manager: ocp.CheckpointManager, state: TrainState, position: Any,
         eval_metrics: dict[str, float] | None) -> None:
    """Starts saving `state` and the data position under the state's step; a crash leaves no half checkpoint.

    Raises InputError where this or the save before it, which goes on in the background, cannot be written.
    """
    arrays = _arrays(state)
    data = {"position": position, "checksums": checksums(arrays) | {"position": _checksum_of_json(position)}}
    with writing(manager):
        _probe(Path(manager.directory))
        manager.save(int(state.step), metrics=eval_metrics, args=ocp.args.Composite(
            **{item: ocp.args.StandardSave(tree) for item, tree in arrays.items()}, data=ocp.args.JsonSave(data)))


def _probe(folder: Path) -> None:
    """Raises OSError where no folder can be made in `folder`. Orbax would, too, but leave threads that wait for that
    folder for minutes, and keep the process from ending."""
    if jax.process_index() == 0:
        (folder / ".probe").mkdir(exist_ok=True)
        (folder / ".probe").rmdir()


def checksums(tree: Any) -> dict[str, int]:
    """sum over i of bits_i (2 i + 1) modulo 2^32, for every array: any changed bit changes it, its sharding does not.

    Computed where the arrays are, at the speed of their memory.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    everywhere = jax.sharding.NamedSharding(named[0][1].sharding.mesh, jax.sharding.PartitionSpec())
    sums = jax.device_get(_summing(everywhere)([leaf for _, leaf in named]))
    return {_name(path): int(value) for (path, _), value in zip(named, sums, strict=True)}


@functools.cache
def _summing(everywhere: jax.sharding.Sharding) -> Callable[[list[jax.Array]], jax.Array]:
    return jax.jit(lambda leaves: jnp.stack([_checksum(leaf) for leaf in leaves]), out_shardings=everywhere)


def _checksum(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    strides = [math.prod(array.shape[axis + 1:]) % 2**32 for axis in range(array.ndim)]
    index = sum((jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
                 for axis, stride in enumerate(strides)), start=jnp.uint32(0))
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@contextlib.contextmanager
def writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into one line that says which checkpoint is still good."""
    try:
        yield
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        if hosts.lost_peer_message(error) is not None:
            raise  # it is another process that is gone
        good = finished_steps(Path(manager.directory))
        kept = f"the last good one is of step {good[-1]}" if good else "there is none yet"
        raise InputError(f"{manager.directory}: a checkpoint could not be written ({_reason(error)}); {kept}; "
                         f"make room or mend the permissions, and give the same command again") from None


def _reason(error: BaseException) -> str:
    """The system's message; TensorStore puts it at the end of a long line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def finished_steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint in `folder`, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def restore_newest(manager: ocp.CheckpointManager, state: TrainState) -> tuple[TrainState, Any] | None:
    """The newest checkpoint that is whole, in `state`'s shapes and shardings, and its data position; None without any.

    A damaged one is named on standard error, moved to damaged-STEP, and the one before it is taken. Raises InputError
    for a checkpoint of another model, for one that cannot be read although it may be good, and where all are damaged.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(state))
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            for item in ("trainable", "critic"):
                _check_same_model(manager, step, shapes, item)
            # what is replaced gives its memory back first: a run that just fits must fit when it is resumed, too
            for each in (state, state.critic) if state.critic else (state,):
                jax.tree.map(lambda leaf: leaf.delete(), (each.trainable, each.opt_state, each.reference))
            return _restore(manager, step, state, shapes)
        except Exception as error:
            if not _is_damage(error, manager, step):
                raise
            _set_aside(manager, step, error)
    damaged = sorted(path.name for path in Path(manager.directory).glob("damaged-*"))
    if damaged:
        raise InputError(f"{manager.directory}: all checkpoints are damaged ({', '.join(damaged)}); start anew in "
                         f"another --output-dir, or remove these to start anew here")
    return None


def _is_damage(error: Exception, manager: ocp.CheckpointManager, step: int) -> bool:
    """Whether the files themselves are at fault. Raises InputError where it is that this process cannot read them."""
    cause = error.__cause__ or error  # Orbax raises a plain Exception from what TensorStore says
    here = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
    if here or any(sign in str(cause) for sign in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")):
        raise InputError(f"{manager.directory}/{step}: the checkpoint cannot be read ({_first_line(cause)}); mend that "
                         f"and give the same command again") from None
    if isinstance(error, InputError | jax.errors.JaxRuntimeError):
        return False
    return type(error) is Exception or isinstance(error, OSError | ValueError | KeyError | TypeError | EOFError)


def _set_aside(manager: ocp.CheckpointManager, step: int, error: BaseException) -> None:
    folder = Path(manager.directory)
    if jax.process_index() == 0:
        print(f"warning: {folder / str(step)}: {_damaged(error)}; it is moved to damaged-{step}, and the one before it "
              f"is taken", file=sys.stderr)
        names = (folder / (f"damaged-{step}" + (f"-{count}" if count else "")) for count in itertools.count())
        (folder / str(step)).rename(next(name for name in names if not name.exists()))
    ocp.multihost.sync_global_processes(f"set aside {step}")
    manager.reload()


def _damaged(error: BaseException) -> str:
    return f"the checkpoint is incomplete or damaged ({_first_line(error.__cause__ or error)})"


def _silence_repeats() -> None:
    """Where one read or write fails, it is raised, and printed once; Orbax's threads and all that they had begun would
    each print a traceback besides."""
    sys.unraisablehook = _all_but_abandoned
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absl = logging.getLogger("absl")
    absl.setLevel(logging.ERROR)  # Orbax warns of what is meant: no metrics, reading only
    absl.addFilter(_is_not_raised_too)


def _all_but_abandoned(unraisable: Any) -> None:
    if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
        sys.__unraisablehook__(unraisable)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    messages = ("_SignalingThread.run() raised an exception", "or the Commit callback in background save thread",
            "Save Finalize thread", "Failed to write metadata")
    return not any(part in record.getMessage() for part in messages)


def _restore(manager: ocp.CheckpointManager, step: int, state: TrainState, shapes: Any) -> tuple[TrainState, Any]:
    found = manager.restore(step, args=ocp.args.Composite(
        **{item: ocp.args.StandardRestore(tree) for item, tree in shapes.items()}, data=ocp.args.JsonRestore()))
    position = _check(found)
    if state.critic is not None:
        state = state.replace(critic=_with(state.critic, found["critic"], found["critic_progress"]))
    return _with(state, found["trainable"], found["progress"]), position


def _with(state: TrainState, trainable: Any, progress: Any) -> TrainState:
    return state.with_trainable(trainable).replace(**progress | {"rng": jax.random.wrap_key_data(progress["rng"])})


def _check(found: Any) -> Any:
    """The data position in what was restored. Raises ValueError for an array, or a position, that was not saved so."""
    saved, position = found["data"]["checksums"], found["data"]["position"]
    arrays = {item: found[item] for item in ITEMS if found.get(item) is not None}
    for name, value in ({"position": _checksum_of_json(position)} | checksums(arrays)).items():
        if saved[name] != value:
            raise ValueError(f"{name} has not the checksum that it was saved with")
    return position


def _check_same_model(manager: ocp.CheckpointManager, step: int, shapes: Any, item: str) -> None:
    """Raises InputError where the checkpoint's arrays are not those of the model."""
    if item not in shapes:
        return
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(manager.directory / str(step) / item).item_metadata
    if found is None:
        raise FileNotFoundError("its list of arrays cannot be read")
    stored = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(found.tree)}
    expected = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes[item])}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise InputError(f"{manager.directory}/{step}: a checkpoint of another model ({name} is "
                             f"{stored.get(name, 'absent')} there, {expected.get(name, 'absent')} here); choose "
                             f"another --output-dir, or put back the model it was made with")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _arrays(state: TrainState) -> dict[str, Any]:
    """The items of arrays."""
    arrays = {"trainable": state.trainable, "progress": _progress(state)}
    critic = state.critic
    return arrays if critic is None else arrays | {"critic": critic.trainable, "critic_progress": _progress(critic)}


def _progress(state: TrainState) -> dict[str, Any]:
    progress = {"step": state.step, "opt_state": state.opt_state, "rng": jax.random.key_data(state.rng)}
    return progress if state.reference is None else progress | {"reference": state.reference}


def restore_trainable(run: Path, shapes: Any, which: str = "newest", item: str = "trainable") -> Any:
    """Only the trained collection of a run's checkpoint, or its critic's (`item`), as `shapes` (with shardings) says;
    what is trained is float32, and is cast once its checksums are compared.

    `which` is "newest", "best" (the least eval loss) or a step. Raises InputError where there is no such one.
    """
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: holds no finished checkpoint yet; let the run reach one (--save-every)")
    with open_manager(run, read_only=True) as manager:
        step = _find(manager, run, which)
        try:
            stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding),
                                  shapes)
            found = manager.restore(step, args=ocp.args.Composite(
                **{item: ocp.args.StandardRestore(stored)}, data=ocp.args.JsonRestore()))
            _check(found)
        except Exception as error:
            if not _is_damage(error, manager, step):
                raise
            raise InputError(f"{manager.directory}/{step}: {_damaged(error)}; give the training command again, which "
                             f"goes on from the one before it") from None
        return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), found[item], shapes)


def _find(manager: ocp.CheckpointManager, run: Path, which: str) -> int:
    steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"{run}: holds no finished checkpoint yet; let the run reach one (--save-every)")
    if which == "best" and manager.best_step() is None:
        raise InputError(f"{run}@best: no checkpoint is known by its eval loss; train with --keep-best, "
                         f"--eval-data and --eval-every")
    step = {"newest": steps[-1], "best": manager.best_step()}.get(which, which)
    if int(step) not in steps:
        raise InputError(f"{run}@{which}: no such checkpoint; there are {', '.join(map(str, steps))}")
    return int(step)
