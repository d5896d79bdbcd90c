"""What stands between tests and a candidate in one process, as far as one process can be divided.

- The candidate runs in threads of its own (Room); the tests' and the verdict's frames are on none of its stacks.
- An audit hook refuses it the ways to other frames, to all objects, to raw memory and to other code: frames of
  tracebacks and generators, gc, ctypes, trace functions, crafted code, extension modules that are not known.
- What it replaces in modules that were there before it, is noticed after each of its calls, and at the end (Modules).

The hook and the checks use what they closed over, and no name that a candidate could bind anew.

Runs inside the sandbox: standard library only.
"""

import builtins
import operator
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

PROGRAM, TESTS = "program", "tests"
"""the file names of their code"""
IMPORTER = "<frozen importlib._bootstrap_external>"
STACK = 64 * 2**20
_REFUSED = frozenset((
    "sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile",
    "sys.monitoring.register_callback", "sys.addaudithook", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
    "code.__new__", "marshal.loads", "marshal.load", "cpython.PyInterpreterState_New", "cpython._PySys_ClearAuditHooks",
    "sys.remote_exec"))
_REFUSED_ATTRIBUTES = frozenset(("tb_frame", "gi_frame", "cr_frame", "ag_frame", "f_code"))
_FRAME_READERS = ("collections", "enum", "typing", "dataclasses", "_py_abc", "functools")
"""modules whose functions look at a frame and keep it to themselves"""
KNOWN_EXTENSIONS = frozenset((
    "math", "cmath", "array", "zlib", "binascii", "unicodedata", "select", "fcntl", "grp", "resource", "_struct",
    "_json", "_random", "_bisect", "_heapq", "_datetime", "_decimal", "_statistics", "_csv", "_pickle", "_queue",
    "_asyncio", "_contextvars", "_zoneinfo", "_hashlib", "_md5", "_sha1", "_sha2", "_sha256", "_sha512", "_sha3",
    "_blake2", "_elementtree", "_opcode", "_posixsubprocess", "_socket", "_bz2", "_lzma", "_uuid", "_typing", "_string",
    "_multiprocessing", "_posixshmem", "_crypt", "_sqlite3", "pyexpat", "mmap", "_lsprof",
    "readline", "termios", "_stat", "_operator"))


class TamperedError(BaseException):
    """The candidate replaced what is not its own. No Exception: no test is to handle it."""


def set_hook(tests: dict[str, Any], packages: tuple[str, ...]) -> None:
    """Refuses what is listed above to code that the candidate called, from now on. `packages`: how the paths of the
    allowed packages begin; they may be installed below /tmp, where all else is the candidate's."""
    get_frame, busy = sys._getframe, threading.local()
    from_candidate, refuses = _origin_check(packages), _refusal_check(tests, packages)
    watched = _REFUSED | {"object.__getattr__", "object.__setattr__", "compile", "import"}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in watched and event[:7] != "ctypes." or getattr(busy, "busy", False):
            return
        busy.busy = True
        try:
            frame = get_frame(1)
            refused = refuses(event, args, frame) and from_candidate(frame)
        finally:
            busy.busy = False
        if refused:
            raise PermissionError(f"a program may not: {event}")

    sys.addaudithook(hook)


def _origin_check(packages: tuple[str, ...]) -> Callable[[Any], bool]:
    """Says of a frame whether it is the candidate's, or called by one, or in another thread than this one."""
    ident, main = threading.get_ident, threading.get_ident()

    def from_candidate(frame: Any) -> bool:
        if ident() != main:
            return True
        while frame is not None:
            name = frame.f_code.co_filename
            if name == PROGRAM or _in_brackets(name) or (name[:5] == "/tmp/" and not name.startswith(packages)):
                return True
            frame = frame.f_back
        return False

    return from_candidate


def _refusal_check(tests: dict[str, Any],
                   packages: tuple[str, ...]) -> Callable[[str, tuple[Any, ...], Any], bool]:
    """Says of an event, and the frame that it is in, whether a candidate may not have it."""
    function_type = type(_refusal_check)
    trusted = frozenset(id(function.__code__) for name in _FRAME_READERS
                        for function in _functions(sys.modules.get(name)))

    def refuses(event: str, args: tuple[Any, ...], caller: Any) -> bool:
        if event == "object.__getattr__":
            if args[1] == "__code__":
                return args[0].__class__ is function_type and args[0].__globals__ is tests
            return args[1] in _REFUSED_ATTRIBUTES
        if event == "object.__setattr__":
            return args[1] in ("__code__", "__closure__")
        if event == "compile":
            return not (args[1] is None or args[1] == PROGRAM or _in_brackets(str(args[1])))
        if event == "import":
            return bool(args[1]) and not known(args[0], args[1])
        if event in ("sys._getframe", "marshal.loads"):
            return id(caller.f_code) not in trusted and caller.f_code.co_filename != IMPORTER
        return event in _REFUSED or event[:7] == "ctypes."

    def known(name: Any, file: Any) -> bool:
        return type(name) is str and name in KNOWN_EXTENSIONS and file[:5] != "/tmp/" or file.startswith(packages)

    return refuses


def _in_brackets(name: str) -> bool:
    return name[:1] == "<" and name[:7] != "<frozen"


def _functions(module: Any) -> list[Any]:
    """The functions of a module, and of its classes."""
    values = list(vars(module).values()) if module else []
    values += [value for each in values if isinstance(each, type) for value in vars(each).values()]
    values = [getattr(value, "__func__", value) for value in values]
    return [value for value in values if type(value) is type(_functions)]


class Modules:
    """What the modules hold that can be called: a candidate that replaces any of it is found out."""

    def __init__(self, own: set[str]):
        self.spaces = [sys.modules, *(vars(module) for name, module in list(sys.modules.items())
                                      if name not in own and type(module) is type(sys))]
        self.spaces += [vars(each) for space in self.spaces[1:] for each in list(space.values())
                        if type(each) is type and each.__module__.partition(".")[0] in ("unittest", "_pytest")]
        self.first = self.now()

    def now(self) -> list[dict[str, Any]]:
        return [dict(space) for space in self.spaces]

    def check(self, before: list[dict[str, Any]] | None = None) -> None:
        """Raises TamperedError where something that could be called is not what it was."""
        for space, old in zip(self.spaces, before or self.first):
            if len(space) == len(old) and all(map(operator.is_, space.values(), old.values())):
                continue
            for name, value in old.items():
                if space.get(name) is not value and (callable(value) or type(value) is type(sys)):
                    raise TamperedError(f"{name} was replaced")


class Room:
    """A thread in which a candidate's code runs, called from outside one call at a time; inside, a call is a call."""

    def __init__(self, size: int = STACK):
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        before = threading.stack_size(size)
        sys.setrecursionlimit(3 * sys.getrecursionlimit())  # what is wrapped takes two frames for one
        self.thread = threading.Thread(target=_serve, args=(self._tasks.get, self._done.put), daemon=True)
        self.thread.start()
        threading.stack_size(before)
        self.outside = threading.get_ident()

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What it returns. Raises what it raises, as an exception that the candidate holds no reference to: its
        traceback will have the tests' frames."""
        if threading.get_ident() != self.outside:
            return function(*args, **kwargs)
        self._tasks.put((function, args, kwargs))
        raised, value = self._done.get()
        if raised:
            raise _copied(value)
        return value


def _serve(get: Callable[[], Any], put: Callable[[Any], None]) -> None:
    while True:
        function, args, kwargs = get()
        try:
            put((False, function(*args, **kwargs)))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            put((True, error))
        del function, args, kwargs


def _copied(error: BaseException) -> BaseException:
    kind = type(error)
    builtin = next(each for each in kind.__mro__ if each.__module__ == "builtins" and each.__flags__ & 1 << 9 == 0)
    try:
        copy = builtin.__new__(kind, *error.args)
        builtin.__init__(copy, *error.args)
    except Exception:  # noqa: BLE001 - takes other arguments
        copy = Exception.__new__(kind) if issubclass(kind, Exception) else BaseException.__new__(kind)
    BaseException.__setattr__(copy, "__dict__", dict(BaseException.__getattribute__(error, "__dict__")))
    return copy


def private_builtins() -> dict[str, Any]:
    """Python's own names for the tests: what a candidate binds in `builtins` is nothing to them."""
    return dict(vars(builtins))
