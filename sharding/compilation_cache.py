"""Compiled programs are kept from run to run: JAX's persistent compilation cache, in the user's cache folder, bounded.

JAX's keys hold the program, the versions and what the hardware can do (of a CPU, its instructions), so a folder may
serve machines of many kinds; the program read back is the one written, bit for bit. Only process 0 of a run writes.
"""

import contextlib
import os
import secrets
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
OFF = ("n", "no", "f", "false", "off", "0")
"""how ENABLED says so, by jax.config"""
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
LARGEST = 8 * 2**30
"""bytes that are kept; JAX's own bound takes a lock at each read, which many processes on a network's file system, or
one without locks, would fail at"""


def open_cache(choice: str | None) -> None:
    """Has JAX, which must not be imported yet, keep what it compiles in the folder `choice` (`off`: nowhere; None: as
    the environment says, or else in the user's cache folder). A folder that cannot be used is one warning."""
    if choice == "off":
        os.environ[ENABLED] = "false"
        return
    folder = choice or os.environ.get(FOLDER) or ""
    try:
        folder = folder or str(default_folder())
        if "://" not in folder:
            _prepare(Path(folder))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        os.environ[ENABLED] = "false"
        print(f"warning: compiled programs cannot be kept in {folder or 'a cache folder'} ("
              f"{getattr(error, 'strerror', None) or error}); give --compilation-cache another, or off",
              file=sys.stderr)
        return
    os.environ[FOLDER] = folder
    os.environ.setdefault(LEAST_SECONDS, "0.1")
    warnings.showwarning = _first_alone(warnings.showwarning)


def default_folder() -> Path:
    """temper/xla in the user's cache folder, as the XDG Base Directory specification finds it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "temper" / "xla"


def folder_in_use() -> Path | None:
    """Where what is compiled is kept, or would be by default where no cache was opened; None where it is kept nowhere,
    or not on this machine's file systems."""
    folder = os.environ.get(FOLDER, "")
    if os.environ.get(ENABLED, "").lower() in OFF or "://" in folder:
        return None
    try:
        return Path(folder) if folder else default_folder()
    except RuntimeError:  # there is no home
        return None


def _prepare(folder: Path) -> None:
    """Makes the folder, the user's own since JAX runs what it finds there, and removes the entries that were read least
    recently. Raises OSError where no file can be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / _leave_probe(str(folder))).unlink()
    prune(folder, LARGEST)


def prune(folder: Path, largest: int) -> None:
    """Keeps the entries that were read or written last, `largest` bytes of them; others may be doing the same."""
    kept = 0
    for size, path in _newest_first(folder):
        kept += size
        if kept > largest:
            path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    """(bytes, path) of each entry."""
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    return [(size, path) for _, size, path in sorted(found, reverse=True)]


def _first_alone(show: Callable[..., None]) -> Callable[..., None]:
    """`warnings.showwarning` that shows one line of the first entry that JAX cannot read or write, and of no other."""
    told = []

    def showwarning(message: Any, *where: Any, **also: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, *where, **also)
        elif not told:
            told.append(message)
            print(f"warning: {str(message).splitlines()[0]}; it is compiled anew", file=sys.stderr)

    return showwarning


def turn_off_unless_shared() -> None:
    """In a run of several processes, which are all to call this: keeps the cache only where all see the same folder.

    Where only some find a program they would gain nothing, as they wait for the others; on GPUs, where XLA divides
    autotuning among the processes that compile, they would wait for each other forever.
    """
    import jax

    from sharding.exchange import decided, gather

    folder = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    name = decided(lambda: _leave_probe(folder))
    seen = gather(bool(folder and name) and ("://" in folder or (Path(folder) / name).exists()))
    if jax.process_index() == 0 and name:
        (Path(folder) / name).unlink(missing_ok=True)
    if not all(seen):
        jax.config.update("jax_enable_compilation_cache", False)
        if any(seen) and jax.process_index() == 0:
            print(f"note: {folder} is not one folder for all processes, so compiled programs are not kept; "
                  f"--compilation-cache names one that they share", file=sys.stderr)


def _leave_probe(folder: str | None) -> str | None:
    """The name of a file, in a folder of this file system made there."""
    if folder is None:
        return None
    name = f".shared-{secrets.token_hex(8)}"
    if "://" not in folder:
        Path(folder, name).touch()
    return name
