"""Checkpoints by Orbax: asynchronous, atomic, the newest few kept. A step's folder holds three items.

`trainable`: the trained collection; `progress`: step, optimiser state and key; `data`: the position in the data.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from errors import InputError
from training.state import TrainState


def open_manager(run: Path, read_only: bool = False) -> ocp.CheckpointManager:
    """The manager of a run directory's checkpoints/; the newest two are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else 2, read_only=read_only,
                                           create=not read_only)
    return ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, position: dict[str, Any]) -> None:
    """Starts saving `state` and the data position under the state's step; a crash leaves no half checkpoint."""
    manager.save(int(state.step), args=ocp.args.Composite(
        trainable=ocp.args.StandardSave(state.trainable), progress=ocp.args.StandardSave(_progress(state)),
        data=ocp.args.JsonSave(position)))


def restore(manager: ocp.CheckpointManager, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint in `state`'s shapes and shardings, and the data position saved with it.

    The memory of what is replaced is given back first: a run that just fits must fit when it is resumed, too.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state.trainable, _progress(state)))
    jax.tree.map(lambda leaf: leaf.delete(), (state.trainable, state.opt_state))
    found = manager.restore(manager.latest_step(), args=ocp.args.Composite(
        trainable=ocp.args.StandardRestore(shapes[0]), progress=ocp.args.StandardRestore(shapes[1]),
        data=ocp.args.JsonRestore()))
    progress = dict(found["progress"])
    progress["rng"] = jax.random.wrap_key_data(progress["rng"])
    return state.with_trainable(found["trainable"]).replace(**progress), found["data"]


def _progress(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "rng": jax.random.key_data(state.rng)}


def restore_trainable(run: Path, shapes: Any) -> Any:
    """Only the trained collection of a run's newest checkpoint, as `shapes` (with shardings) says."""
    missing = InputError(f"{run}: holds no finished checkpoint yet; let the run reach one (--save-every)")
    if not (run / "checkpoints").is_dir():
        raise missing
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that a read-only manager is read-only
    with open_manager(run, read_only=True) as manager:
        if manager.latest_step() is None:
            raise missing
        return manager.restore(manager.latest_step(), args=ocp.args.Composite(
            trainable=ocp.args.StandardRestore(shapes)))["trainable"]
