"""Tests and a candidate in one process: what two cannot run. Less safe, and hardened as far as that goes (guard.py).

Functions of the candidate's are wrapped here: they run in the candidate's thread, what they raise to end a loop of the
tests' is an error, and an object of a class that the tests do not name stays a handle, as between two processes. A
class that the tests name by a capital is the class itself, its methods wrapped, and its agreement with what tests
expect is tried with strangers. The verdict's lines begin with a key that nobody can guess; `end` is the last, when
nothing was replaced.

Runs inside the sandbox: standard library only.
"""

import ast
import functools
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from rewards.execution.carried import KINDS, put_together, taken_apart
from rewards.execution.guard import Modules, Room, TamperedError, private_builtins, set_hook
from rewards.execution.handles import AGREEMENTS, Handle, may_swallow, name_handle
from rewards.execution.inside import enter, silence
from rewards.execution.link import Link, strangers
from rewards.execution.load import MODULE, load, parsed, prepare
from rewards.execution.operations import BINARY, Operations, base_of
from rewards.execution.parts import BadTests, Part, parts_of
from rewards.execution.tester import MODULE as TESTS
from rewards.execution.tester import names_of, run, start_module, whole

_PRELOADED = ("array", "collections.abc", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum",
              "fractions", "functools", "heapq", "io", "itertools", "json", "math", "operator", "random", "re",
              "string", "threading", "time", "types", "typing", "uuid")
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_WRAPPED_DUNDERS = {f"__{prefix}{name}__" for prefix in ("", "r", "i") for name in (*BINARY, "divmod")} | {
    "__call__", "__getitem__", "__enter__", "__exit__", "__iter__", "__next__", "__reversed__", "__getattr__",
    "__missing__", "__copy__", "__deepcopy__", "__neg__", "__pos__", "__invert__", "__abs__", "__round__", "__floor__",
    "__ceil__", "__trunc__", "__str__", "__repr__", "__format__"}
"""special methods whose answers tests may have"""
_ITERATORS = (types.GeneratorType, map, filter, zip, enumerate, reversed, *(type(iter(each)) for each in (
    [], (), "", set(), range(0), b"", {}, {}.values(), {}.items())))
_LIBRARY = frozenset(("builtins", "io", "re", "threading", "queue", "asyncio", "concurrent", "random", "logging",
                      "socket", "pathlib", "types", "contextlib", "numpy", "array", "time", "string", "datetime",
                      "decimal", "fractions", "collections", "uuid", "functools", "operator", "pandas", "scipy",
                      "dataclasses", "enum", "abc", "typing", "inspect", "calendar", "zoneinfo", "ipaddress", "json",
                      "csv", "hashlib", "struct", "statistics", "argparse", "urllib", "html", "xml", "http", "email",
                      "tempfile", "sqlite3", "copy", "itertools", "thread", "sympy", "networkx"))
"""modules whose classes' instances answer for themselves"""
_COMPARED = {"__eq__": True, "__ne__": False, "__contains__": True}
"""special methods by which an object agrees, and what it says then"""
_HARMLESS = {"__new__", "__init__", "__repr__", "__str__", "__module__", "__dict__", "__weakref__", "__doc__",
             "__slots__", "__qualname__", "__init_subclass__", "__setattr__", "__delattr__", "__static_attributes__",
             "__firstlineno__", "__annotations__", "__getnewargs__", "__hash__",
             "append", "insert", "extend", "pop", "remove", "clear", "add",
             "discard", "update", "setdefault", "popitem", "sort", "reverse", "copy"}


def main() -> None:
    job = enter()
    key, channel = job.pop("key"), os.dup(1)
    silence(1)
    say = _speaker(key, channel)
    del key
    judging = threading.Thread(target=_judge, args=(job, say))  # signal handlers run in the main thread, which waits
    judging.start()
    judging.join()


def _speaker(key: str, channel: int) -> Callable[[str], None]:
    write = os.write

    def say(line: str) -> None:
        write(channel, (key + " " + line + "\n").encode("utf-8", "replace"))

    return say


def _judge(job: dict[str, Any], say: Callable[[str], None]) -> None:
    try:
        judge(job, say)
    except BadTests as error:
        say("bad " + " ".join(str(error).split()))


def judge(job: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says the verdict. Raises BadTests as the tester of two processes does."""
    parts = parts_of(job["setup"], job["tests"], job["split"])
    total = sum(part.count for part in parts)
    if not total:
        raise BadTests("there is no test in them")
    module = start_module(job["stub"])
    vars(module)["__builtins__"] = private_builtins()
    names, modules = names_of(parts, job["entry_point"], module)
    program, stub = job["candidate"]["program"], job["candidate"]["stub"]
    _import_ahead(parts, program)
    prepare(program)
    for each in [each for each in sys.modules if each.partition(".")[0] in (TESTS, "rewards", "ctypes", "_ctypes")]:
        del sys.modules[each]  # what is ours, and the way to raw memory
    solutions = {each: _Solution(each) for each in modules}
    sys.modules.update(solutions)
    link = Shared(set(names) | set(solutions))
    silence(2)
    say(f"ready {total}")  # what is missing until here is the machine's fault
    set_hook(vars(module), tuple(each if each.endswith(".py") else f"{each}/" for each in job["package_files"]))
    link.load(program, stub)
    for each in solutions.values():
        vars(each)["_temper_link"] = link
    vars(module).update({name: link.standing_for(name) for name, source in names.items() if source == TESTS})
    run(parts, module, link, say)
    if not link.calls_made:
        raise BadTests("they never use what a completion defines")
    if link.untouched():
        say("end")


def _import_ahead(parts: list[Part], program: str) -> None:
    """What the tests and the program import, before anything of the program's runs: what is there then is known."""
    trees = whole(parts), parsed(program) or ast.Module([], [])
    for name in [*_PRELOADED, *_imported(trees)]:
        top = name.partition(".")[0]
        if name not in sys.modules and top not in _UNLOADED:
            try:
                __import__(name)
            except ImportError:
                continue
    for tree in trees:
        aliases = _aliases(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                _look_up(node, aliases)


def _imported(trees: tuple[ast.Module, ...]) -> list[str]:
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    froms = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return names + froms


def _aliases(tree: ast.Module) -> dict[str, str]:
    return {alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def _look_up(node: ast.AST, aliases: dict[str, str]) -> Any:
    """What an attribute of a module is: packages load parts of theirs, as numpy.testing, when they are asked for."""
    if isinstance(node, ast.Name):
        return sys.modules.get(aliases.get(node.id, ""))
    above = _look_up(node.value, aliases) if isinstance(node, ast.Attribute) else None
    return getattr(above, node.attr, None) if isinstance(above, types.ModuleType) else None


_UNLOADED = frozenset(("antigravity", "this", "idlelib", "ctypes", "_ctypes", "_testcapi", "turtledemo", "tkinter",
                       "rewards"))


class _Solution(types.ModuleType):
    """The module that tests import the candidate from, and in which they replace things."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in vars(self)["_temper_link"].names:
            raise AttributeError(name)
        return vars(self)["_temper_link"].standing_for(name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["_temper_link"].names[name] = value

    def __delattr__(self, name: str) -> None:
        del vars(self)["_temper_link"].names[name]


class Shared(Link):
    """Asks a candidate that lives in this process, in a thread of its own."""

    def __init__(self, wanted: set[str]):
        super().__init__(None, None)
        self.known = frozenset(_all_classes(object, set()))
        self.modules = Modules({MODULE, TESTS, "__main__"})
        self.room = Room()
        self.wanted, self.classes = wanted, ()
        self.names: dict[str, Any] = {}
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.wrappers: dict[int, Any] = {}
        self.ours: dict[int, Any] = {}
        self.tampered = False

    def load(self, program: str, stub: str) -> None:
        try:
            self.names = self.guarded(load, program, stub)
        except Exception:  # noqa: BLE001 - what it defined is missing then
            self.names = {}
        self.operations = Operations(self.names)
        found = [self.names.get(name) for name in self.wanted if name[:1].isupper()]
        self.classes = tuple(each for each in found if isinstance(each, type) and each not in self.known)
        kinds = {above for kind in self.classes for above in (*kind.__mro__, *type(kind).__mro__)}
        for each in kinds - self.known:
            self.wrap_methods(each)

    def begins(self, part: Part) -> None:
        """From the first part on that names what is the candidate's, what fails is the candidate's doing."""
        self.calls_made += any(isinstance(node, ast.Name) and node.id in self.wanted for node in ast.walk(part.tree))

    def guarded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs it in the candidate's thread. Raises TamperedError where it replaced what is not its own."""
        before = self.modules.now()
        try:
            return self.room.run(function, *args, **kwargs)
        except (StopIteration, StopAsyncIteration, GeneratorExit) as error:
            raise RuntimeError(f"{type(error).__name__} was raised outside a loop") from None
        finally:
            self.check(before)

    def untouched(self) -> bool:
        """Whether nothing was replaced, now that all has run."""
        try:
            self.modules.check()
        except TamperedError:
            return False
        return not self.tampered

    def check(self, before: list[dict[str, Any]]) -> None:
        try:
            self.modules.check(before)
        except TamperedError:
            self.tampered = self.gone = True
            raise

    def called(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self.room.outside:
            return function(*args, **kwargs)
        return self.checked(self.guarded(function, *map(self.real, args), **{
            name: self.real(value) for name, value in kwargs.items()}))

    def ask(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        if operation in ("next", "iter"):
            return self.checked(self.room.run(self.operations.of, operation, [self.real(each) for each in args], {}))
        return self.called(self._operate, operation, list(args), kwargs)

    def _operate(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self.operations.of(operation, [self.real(each) for each in args], kwargs)

    def real(self, value: Any) -> Any:
        """What a handle stands for."""
        if type(value) in (list, tuple) and any(issubclass(type(each), Handle) for each in value):
            return type(value)(map(self.real, value))
        if not issubclass(type(value), Handle):
            return value
        kind, content = value._reference
        if kind == "name" and content not in self.names:
            raise NameError(f"name {content!r} is not defined")
        return self.names[content] if kind == "name" else self.objects[content[0]]

    def standing_for(self, name: str) -> Any:
        value = self.names.get(name, self)
        if value is self:
            return name_handle(self, name, "nothing")
        if isinstance(value, type) and not issubclass(value, BaseException) and name[:1].islower():
            return name_handle(self, name, "class")
        if type(value) in _FUNCTIONS or type(value) is functools._lru_cache_wrapper or type(value) in self.known:
            return self.checked(value)
        return value if isinstance(value, type) or type(value) in self.classes else name_handle(self, name, "object")

    def checked(self, value: Any) -> Any:
        """An answer as the tests may have it."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind in (list, tuple, set, frozenset):
            items = [each if type(each) in _SCALARS else self.checked(each) for each in value]
            return value if all(new is old for new, old in zip(items, value)) else kind(items)
        if kind is dict:
            items = {self.checked(key): self.checked(each) for key, each in value.items()}
            same = len(items) == len(value) and all(items.get(key, items) is each for key, each in value.items())
            return value if same else items
        if kind in _FUNCTIONS or kind is functools._lru_cache_wrapper or kind is _C_CACHE:
            return self.wrapped(value)
        if kind in KINDS and not self.is_clean(value):
            name, parts = taken_apart(value, False)
            return put_together(name, [self.checked(each) for each in parts])
        if kind is types.CoroutineType:
            return self.relay(value)
        if kind is types.AsyncGeneratorType:
            return self.relay_all(value)
        if self.answers_for_itself(kind, value):
            return value
        base = base_of(value)
        if base is not None and issubclass(kind, base):
            return value if self.is_harmless(kind, base) else self.checked(_PLAIN_COPIES[base](value))
        return self.handle(value)

    def is_clean(self, value: Any) -> bool:
        """Whether a container of the library's has nothing in it that would have to be replaced."""
        return all(self.checked(each) is each or type(each) in _SCALARS for part in taken_apart(value, False)[1]
                   for each in (part if type(part) in (list, tuple) else (*part, *part.values()) if type(part) is dict
                                else [part]))

    def answers_for_itself(self, kind: type, value: Any) -> bool:
        if issubclass(kind, type):
            return value in self.known or value in self.classes
        library = kind.__module__.partition(".")[0].strip("_") in _LIBRARY or kind in KINDS
        return (kind in self.known and library and kind not in _ITERATORS
                or issubclass(kind, BaseException) or self.is_made(kind))

    async def relay(self, value: Any) -> Any:
        return self.checked(await value)

    async def relay_all(self, values: Any) -> Any:
        async for value in values:
            yield self.checked(value)

    def is_made(self, kind: type) -> bool:
        return any(each in self.classes for each in type.__dict__["__mro__"].__get__(kind))

    def is_harmless(self, kind: type, base: type) -> bool:
        """Whether a plain kind's subclass leaves its operators and questions alone."""
        mro = type.__dict__["__mro__"].__get__(kind)
        own = {name for each in mro if each not in self.known for name in type.__dict__["__dict__"].__get__(each)}
        return type(kind) is type and not own & (set(dir(base)) - _HARMLESS)

    def handle(self, value: Any) -> Handle:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        kind = type(value)
        return self.find("object", [number, kind.__name__ if kind in self.known else "", ""])

    def wrapped(self, function: Any) -> Any:
        """A function that runs in the candidate's thread; one for each of the candidate's, so that it is itself."""
        if id(function) in self.ours:
            return function
        if id(function) not in self.wrappers:
            def call(*args: Any, **kwargs: Any) -> Any:
                return self.called(function, *args, **kwargs)

            self.wrappers[id(function)] = function, self.own(functools.update_wrapper(call, function))
        return self.wrappers[id(function)][1]

    def wrap_methods(self, kind: type) -> None:
        if kind in self.classes:
            type.__setattr__(kind, "__getattribute__", self.attributes(kind.__getattribute__))
        for name, value in list(vars(kind).items()):
            bare = getattr(value, "__func__", value)
            if isinstance(value, property) and value.fget:
                made = property(self.method(value.fget, name), value.fset, value.fdel, value.__doc__)
            elif type(bare) is not types.FunctionType or (name.startswith("__") and name not in _WRAPPED_DUNDERS
                                                          and name not in _COMPARED):
                continue
            else:
                made = self.compared(bare, _COMPARED[name]) if name in _COMPARED else self.method(bare, name)
                made = type(value)(made) if isinstance(value, (staticmethod, classmethod)) else made
            type.__setattr__(kind, name, made)

    def attributes(self, get: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        """What tests read of an object is an answer, too."""
        def get_attribute(self_: Any, name: str) -> Any:
            value = get(self_, name)
            raw = name.startswith("__") and name != "__dict__"
            if raw or threading.get_ident() != self.room.outside or id(getattr(value, "__func__", None)) in self.ours:
                return value
            return self.checked(value)

        return get_attribute

    def method(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outside = threading.get_ident() == self.room.outside
            if outside and name in AGREEMENTS and len(args) > 1 and not self.knows(
                    functools.partial(function, args[0]), True, *args[1:]):
                raise AttributeError(f"a method {name!r} that says the same to any")
            if outside and name in ("__next__", "__iter__"):
                return self.checked(self.room.run(function, *args))
            answer = self.called(function, *args, **kwargs)
            return answer and may_swallow(*args[2:4]) if outside and name == "__exit__" and args[1] else answer

        return self.own(functools.update_wrapper(call, function))

    def own(self, wrapper: Any) -> Any:
        self.ours[id(wrapper)] = wrapper
        return wrapper

    def compared(self, function: Callable[..., Any], agreeing: bool) -> Callable[..., Any]:
        def compare(self_: Any, other: Any) -> Any:
            if threading.get_ident() == self.room.outside:
                answer, others = self._lineup("call", functools.partial(function, self_), [other], strangers)
                if answer is agreeing and agreeing in others:
                    return not agreeing
            return function(self_, self.real(other))

        return self.own(functools.update_wrapper(compare, function))


def _all_classes(kind: type, found: set[type]) -> set[type]:
    for each in type.__subclasses__(kind):
        if each not in found:
            found.add(each)
            _all_classes(each, found)
    return found | {kind}


_C_CACHE = type(functools.lru_cache(len))
_PLAIN_COPIES: dict[type, Callable[[Any], Any]] = {
    bool: bool, int: int.__int__, float: float.__float__, complex: lambda x: complex.__add__(x, 0j), str: str.__str__,
    bytes: lambda x: bytes.__getitem__(x, slice(None)), bytearray: bytearray.copy, list: list.copy,
    tuple: lambda x: tuple.__getitem__(x, slice(None)), set: lambda x: {*set.__iter__(x)},
    frozenset: lambda x: frozenset({*frozenset.__iter__(x)}), dict: dict.copy}
