"""Reading a checkpoint, by all processes of a run with one verdict: what is damaged is told from what may pass.

Damaged is what is on a list: a wrong checksum, a missing file, or bytes that cannot be decoded, on two reads alike.
What fails otherwise (a stale NFS handle, a store that is not available for now) is read again, and ends the run if it
goes on failing.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from errors import InputError
from sharding import hosts
from sharding.exchange import gather
from training.checksums import checksum_of_json, checksums, name_of

ARRAYS = ("trainable", "progress", "critic", "critic_progress")
"""items of arrays"""
DELAYS = (1.0, 2.0, 4.0, 8.0)
"""seconds before each further read"""
MISSING = (errno.ENOENT, errno.ENOTDIR)
UNDECODABLE = ("NOT_FOUND", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE")
"""what TensorStore says of bytes that are not there or not what they should be, where the system reports no error"""
MAY_PASS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")

WHOLE, REFUSED, DAMAGED, UNREAD = range(4)
"""what comes of a read; of several processes' reads, the last of these"""


class DamagedError(Exception):
    """A checkpoint's files are at fault, for all processes alike."""


class UndecodableError(Exception):
    """A file holds something else than it should."""


class Verdict(NamedTuple):
    """Of one process, or of all."""

    kind: int
    text: str


def read(folder: Path, shapes: Mapping[str, Any], free: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """{item: arrays as `shapes` (with shardings) says, "data": its JSON} of a step's folder. All processes call this,
    and get them, or get the same error; `free` is called before the arrays take memory.

    Raises DamagedError; InputError where they are another model's or optimiser's, and where they cannot be read
    although they may be good.
    """
    damaged = 0
    for delay in (*DELAYS, None):
        found, verdict, error = _read_once(folder, shapes, free)
        if verdict.kind == WHOLE:
            return found
        damaged += verdict.kind == DAMAGED
        if damaged == 2:
            raise DamagedError(verdict.text) from error
        if verdict.kind == REFUSED:
            raise InputError(verdict.text) from error
        if delay is not None:
            _tell(folder, verdict, delay)
            time.sleep(delay)
    raise InputError(f"{folder}: the checkpoint cannot be read ({verdict.text}), after {len(DELAYS) + 1} tries; it is "
                     f"left as it is: mend that and give the same command again") from error


def _read_once(folder: Path, shapes: Mapping[str, Any],
               free: Callable[[], None]) -> tuple[Any, Verdict, Exception | None]:
    """What was found, what all make of it, and the error of this process."""
    def restore() -> dict[str, Any]:
        for item in sorted(shapes, key=lambda item: item.endswith("progress")):  # the model's, then the optimiser's
            _check_same(folder, item, shapes[item])
        free()
        return _restore(folder, shapes)

    try:
        found, own, error = restore(), Verdict(WHOLE, ""), None
    except Exception as caught:  # whatever it is: the others wait to hear of it
        if _is_no_files(caught):
            raise
        found, own, error = None, _judged(caught), caught
    verdict = _agreed(own)
    if verdict.kind == WHOLE:  # all have their parts, as the checksums of all need
        verdict = _agreed(_compared(found))
    return found, verdict, error


def _is_no_files(error: Exception) -> bool:
    """Whether it is a device's error, or another process'."""
    may_pass = str(error).startswith(MAY_PASS) and hosts.lost_peer_message(error) is None
    return isinstance(error, jax.errors.JaxRuntimeError) and not may_pass


def _judged(error: Exception) -> Verdict:
    if isinstance(error, InputError):
        return Verdict(REFUSED, str(error))
    return Verdict(DAMAGED if is_damage(error) else UNREAD, reason(error))


def _agreed(own: Verdict) -> Verdict:
    """The worst of all processes; of several the first's."""
    return max((Verdict(*each) for each in gather(own)), key=lambda verdict: verdict.kind)


def _tell(folder: Path, verdict: Verdict, delay: float) -> None:
    if verdict.kind == UNREAD:
        hosts.warn(f"{folder}: the checkpoint cannot be read ({verdict.text}); it is tried again in {delay:g} s")


def is_damage(error: BaseException) -> bool:
    """Whether files are missing or cannot be decoded."""
    cause = _cause(error)
    number = _errno(cause)
    if number is not None:
        return number in MISSING
    undecodable = isinstance(cause, UndecodableError | json.JSONDecodeError | UnicodeDecodeError | FileNotFoundError)
    return undecodable or str(cause).startswith(UNDECODABLE)


def reason(error: BaseException) -> str:
    """The system's message, which TensorStore puts at the end of a long line; else the first line of the error's."""
    cause = _cause(error)
    number = _errno(cause)
    lines = str(cause).strip().splitlines()
    return os.strerror(number) if number is not None else lines[0][:300] if lines else type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    """Orbax raises a plain Exception from what TensorStore says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _errno(error: BaseException) -> int | None:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else error.errno if isinstance(error, OSError) else None


def _restore(folder: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What this process reads. Orbax would have all wait for each other behind a read, which one that fails never
    reaches."""
    for item in (*shapes, "data"):
        (folder / item).stat()  # that a file is missing is told by the system's error alone
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me))
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
    with ocp.CheckpointManager(folder.parent.absolute(), options=options) as manager:
        return dict(manager.restore(int(folder.name), args=ocp.args.Composite(
            **{item: ocp.args.StandardRestore(tree) for item, tree in shapes.items()}, data=ocp.args.JsonRestore())))


def _compared(found: Mapping[str, Any]) -> Verdict:
    """By the checksums; for all processes to call."""
    arrays = checksums({item: found[item] for item in ARRAYS if item in found})
    data = found["data"] if isinstance(found["data"], dict) else {}
    saved, position = dict(data.get("checksums", {})), {"position": checksum_of_json(data.get("position"))}
    wrong = [name for name, value in (position | arrays).items() if saved.get(name) != value]
    return Verdict(DAMAGED, f"{wrong[0]} has not the checksum that it was saved with") if wrong else Verdict(WHOLE, "")


def _check_same(folder: Path, item: str, shapes: Any) -> None:
    """Raises InputError where the checkpoint's arrays are others."""
    stored, expected = _stored_shapes(folder / item), _shapes(shapes)
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            whose = "optimiser" if item.endswith("progress") else "model"
            raise InputError(f"{folder}: a checkpoint of another {whose} ({name} is {stored.get(name, 'absent')} "
                             f"there, {expected.get(name, 'absent')} here); choose another --output-dir, or put back "
                             f"the {whose} it was made with")


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """By the item's list of arrays. Raises UndecodableError where that is none."""
    folder.stat()
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        try:
            return _shapes(handler.metadata(folder.absolute()).tree)  # a Checkpointer says None at any error
        except (KeyError, TypeError, AttributeError) as error:
            raise UndecodableError(f"the list of its arrays is none ({type(error).__name__}: {error})") from None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name_of(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
