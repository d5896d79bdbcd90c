"""Checkpoints by Orbax: asynchronous, atomic, the newest few kept. A step's folder holds three items.

`trainable`: the trained collection; `progress`: step, optimiser state and key; `data`: the position in the data, and
checksums of everything, since Orbax takes a flipped bit in an array for a number. Where there is a critic, `critic` and
`critic_progress` are its own of the first two.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

import files
from errors import InputError
from sharding import hosts
from sharding.exchange import decided
from training.checksums import checksum_of_json, checksums
from training.reading import DamagedError, read, reason
from training.silence import silence_orbax
from training.state import TrainState

LATEST = 2
"""checkpoints that are kept, the best one not counted"""


def open_manager(run: Path, *, read_only: bool = False, keep_best: bool = False) -> ocp.CheckpointManager:
    """The manager of a run directory's checkpoints/; the newest LATEST are kept, and the one with the least eval
    loss if `keep_best`. What a kill left of an unfinished save is removed."""
    silence_orbax()
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
    data = {"position": position, "checksums": checksums(arrays) | {"position": checksum_of_json(position)}}
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
        raise InputError(f"{manager.directory}: a checkpoint could not be written ({reason(error)}); {kept}; "
                         f"make room or mend the permissions, and give the same command again") from None


def finished_steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint in `folder`, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def restore_newest(manager: ocp.CheckpointManager, state: TrainState) -> tuple[TrainState, Any] | None:
    """The newest checkpoint that is whole, in `state`'s shapes and shardings, and its data position; None without any.
    All processes call this, and do the same.

    A damaged one (training.reading) is named on standard error, moved to damaged-STEP, and the one before it is taken.
    Raises InputError for a checkpoint of another model, for one that cannot be read although it may be good, and where
    all are damaged.
    """
    folder, shapes = Path(manager.directory), jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(state))
    for step in decided(lambda: sorted(manager.all_steps(), reverse=True)):
        try:
            found = read(folder / str(step), shapes, lambda: _free(state))
        except DamagedError as error:
            _set_aside(manager, step, error)
        else:
            return _with_found(state, found), found["data"]["position"]
    damaged = decided(lambda: sorted(path.name for path in folder.glob("damaged-*")))
    if damaged:
        raise InputError(f"{manager.directory}: all checkpoints are damaged ({', '.join(damaged)}); start anew in "
                         f"another --output-dir, or remove these to start anew here")
    return None


def _free(state: TrainState) -> None:
    """What is replaced gives its memory back: a run that just fits must fit when it is resumed, too."""
    for each in (state, state.critic) if state.critic else (state,):
        jax.tree.map(lambda leaf: leaf.delete(), (each.trainable, each.opt_state, each.reference))


def _set_aside(manager: ocp.CheckpointManager, step: int, error: DamagedError) -> None:
    decided(lambda: _rename(Path(manager.directory) / str(step), error))
    manager.reload()


def _rename(folder: Path, error: DamagedError) -> None:
    print(f"warning: {folder}: {_damaged(error)}; it is moved to damaged-{folder.name}, and the one before it is taken",
          file=sys.stderr)
    names = (f"damaged-{folder.name}" + (f"-{count}" if count else "") for count in itertools.count())
    with files.writing(folder):
        folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))


def _damaged(error: DamagedError) -> str:
    return f"the checkpoint is incomplete or damaged ({error})"


def _with_found(state: TrainState, found: Mapping[str, Any]) -> TrainState:
    if state.critic is not None:
        state = state.replace(critic=_with(state.critic, found["critic"], found["critic_progress"]))
    return _with(state, found["trainable"], found["progress"])


def _with(state: TrainState, trainable: Any, progress: Any) -> TrainState:
    return state.with_trainable(trainable).replace(**progress | {"rng": jax.random.wrap_key_data(progress["rng"])})


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
        step, problem = decided(lambda: _find(manager, run, which))
    if problem:
        raise InputError(problem)
    stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), shapes)
    try:
        found = read(run / "checkpoints" / str(step), {item: stored})
    except DamagedError as error:
        raise InputError(f"{run / 'checkpoints' / str(step)}: {_damaged(error)}; give the training command again, "
                         f"which goes on from the one before it") from None
    return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), found[item], shapes)


def _find(manager: ocp.CheckpointManager, run: Path, which: str) -> tuple[int, str | None]:
    """The step, and what is wrong with asking for it, if anything."""
    steps = sorted(manager.all_steps())
    if not steps:
        return 0, f"{run}: holds no finished checkpoint yet; let the run reach one (--save-every)"
    if which == "best" and manager.best_step() is None:
        return 0, (f"{run}@best: no checkpoint is known by its eval loss; train with --keep-best, --eval-data and "
                   f"--eval-every")
    step = int({"newest": steps[-1], "best": manager.best_step()}.get(which, which))
    return step, None if step in steps else (
        f"{run}@{which}: no such checkpoint; there are {', '.join(map(str, steps))}")
