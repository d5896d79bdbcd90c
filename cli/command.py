"""How a script starts and ends: with malloc's settings, its flags parsed; by one line where the input is bad."""

import contextlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cli.parsing import is_script, parse, take_value
from cli.values import check_values
from errors import InputError, Stopped
from sharding.accelerators import on_cpus
from sharding.compilation_cache import open_cache
from sharding.hosts import lost_peers

DEBUG = "--debug"
CACHE = "--compilation-cache"
MALLOC = "glibc.malloc.hugetlb=1"
MALLOC_SINCE = 2, 35
"""the glibc that has this setting"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(main: Callable[[Any], None], config_type: type, description: str,
        renamed: Mapping[str, str] = MappingProxyType({})) -> None:
    """Parses the command line into `config_type` and calls `main`; `renamed` flags are refused with their new names.
    It ends as `ending` says."""
    with ending():
        cache, arguments = take_value(sys.argv[1:], CACHE, "a folder, or off")
        config = parse(config_type, arguments, description, renamed)
        set_malloc()
        if cache or is_script():  # a benchmark may measure what compiling takes
            open_cache(cache)
        check_values(config)
        with lost_peers():
            main(config)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """InputError becomes one line and exit status 1, with the traceback of what it came from before it where --debug is
    given; a stop that was asked for one line and 0."""
    debug = DEBUG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != DEBUG]
    try:
        yield
    except InputError as error:
        if debug:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stop:
        print(stop, file=sys.stderr)


def set_malloc() -> None:
    """Starts a script that computes on CPUs over with a malloc that asks for huge pages, where asking gives them.

    XLA's CPU backend takes its temporary memory fresh from the system at every step, and gives it back; mapping it in
    pages of 4 KiB costs a seventh of a training step (docs/measured.md). glibc reads this setting at start only, and
    mallopt has none for it; prctl can only forbid huge pages. Nothing is done where GLIBC_TUNABLES is set already, or
    an accelerator computes.
    """
    if is_script() and "GLIBC_TUNABLES" not in os.environ and huge_pages_for_asking() and on_cpus(os.environ):
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": MALLOC})


def huge_pages_for_asking() -> bool:
    """Whether glibc's malloc has to ask for huge pages, and gets them: neither where the system gives them unasked or
    never, nor with another system or libc, or a glibc too old to ask."""
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < MALLOC_SINCE:
        return False
    try:
        return "[madvise]" in HUGE_PAGES.read_text()
    except OSError:  # there are none
        return False


def tell_dropped(kept: int, total: int, max_length: int) -> None:
    """A line where prompts were left out. Raises InputError where none is left."""
    if not kept:
        raise InputError(f"all {total} prompts are longer than the {max_length} tokens that fit beside "
                         f"--max-new-tokens; lower it, or give shorter prompts")
    if kept < total:
        print_once(f"note: {total - kept} of {total} prompts are longer than the {max_length} tokens that fit, and are "
                   f"left out")


def print_once(text: str, file: Any = None) -> None:
    """Prints a line, once for all processes of a run; to standard output, or to `file`."""
    import jax

    if jax.process_index() == 0:
        print(text, file=file)
