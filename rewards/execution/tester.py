"""The tester's process: runs a row's tests against a candidate that lives in another process, and gives the verdict.

The names that tests use and do not define are the candidate's: each is a Handle here, and every use of a handle is a
question over the pipe. Answers are plain values that are built here, of exact builtin types, so `==` is Python's own.
An object of the candidate's stays a handle, which equals no plain value and is no operand of one; it takes part in
operations with other handles only. So nothing that the candidate wrote ever learns what a test expects.

Verdict, lines on standard output: `ready N` (tests in all, once the candidate's process is up), then `1` or `0` a test.
`bad REASON` instead is printed for tests that cannot be run, whoever the candidate is.

Runs inside the sandbox: standard library only.
"""

import ast
import builtins
import importlib
import os
import symtable
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

from rewards.execution.inside import enter, silence
from rewards.execution.wire import decode, encode, receive, send

_PLAIN_NAMES = {name for kind in (str, bytes, list, tuple, dict, set, int, float, complex) for name in dir(kind)}
_BETWEEN_HANDLES = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "and_",
                    "or_", "xor")
_SETUP = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
          ast.AugAssign)


class BadTests(Exception):  # noqa: N818 - a verdict on data
    """The tests cannot be run, whatever the candidate does. The message is one line."""


class Gone(BaseException):
    """The candidate's process has ended or talks nonsense. No Exception: `except Exception` in a test is not for it."""


def main() -> None:
    job = enter()
    with open(os.dup(1), "w", errors="replace") as verdict, open(job["calls"], "wb") as calls, \
            open(job["replies"], "rb") as replies:
        silence(1)
        try:
            judge(job, Link(calls, replies), lambda line: print(line, file=verdict, flush=True))
        except BadTests as error:
            print("bad", " ".join(str(error).split()), file=verdict, flush=True)


def judge(job: dict[str, Any], link: "Link", say: Callable[[str], None]) -> None:
    """Says the verdict. Raises BadTests for tests that do not compile, call no candidate or fail before they do."""
    parts = list(_parts(job))
    namespace = _start_namespace(job["stub"])
    namespace |= _modules(parts, set(namespace))
    names = candidate_names(parts, job["entry_point"], set(namespace))
    namespace |= {name: Handle(link, ["name", name]) for name in names}
    total = sum(is_test for _, is_test in parts)
    if not total:
        raise BadTests("there is no test in them")
    link.wait_until_ready()
    silence(2)
    say(f"ready {total}")
    run(parts, namespace, link, say)
    if not link.calls_made:
        raise BadTests("they never use what a completion defines")


def run(parts: list[tuple[ast.Module, bool]], namespace: dict[str, Any], link: "Link",
        say: Callable[[str], None]) -> None:
    """Runs all in order and says how each test ended, until what is no test fails, which ends the rest, too."""
    for tree, is_test in parts:
        passed = holds(tree, namespace, link)
        if is_test:
            say("1" if passed else "0")
        elif not passed:
            return


def holds(tree: ast.Module, namespace: dict[str, Any], link: "Link") -> bool:
    """Whether a part runs through. Raises BadTests where it fails before the candidate is called: it always would."""
    try:
        exec(compile(tree, "tests", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001 - SystemExit of a test, too, is a test that failed
        if not link.calls_made:
            raise BadTests(f"they fail on their own: {type(error).__name__}: {error}") from None
        return False
    return not link.gone  # a bare `except` of the test's may have caught it


def _start_namespace(stub: str) -> dict[str, Any]:
    """What the stub of a task defines: its helpers, which tests may use. A stub that is prose defines nothing."""
    namespace = {"__name__": "tests", "__builtins__": builtins}
    try:
        exec(compile(stub, "stub", "exec"), namespace)
    except SyntaxError:
        return namespace
    except Exception as error:  # noqa: BLE001 - most likely a package that the sandbox does not have
        raise BadTests(f"their prompt fails on its own: {type(error).__name__}: {error}") from None
    return namespace


def _modules(parts: list[tuple[ast.Module, bool]], defined: set[str]) -> dict[str, Any]:
    """Modules of the standard library that tests use by attribute (`math.pi`) and forget to import."""
    tree = joined(parts)
    nodes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} & (free_names(tree) - defined)
    return {name: importlib.import_module(name) for name in names & sys.stdlib_module_names}


def _parts(job: dict[str, Any]) -> Iterator[tuple[ast.Module, bool]]:
    """(what to run, whether it is a test), in order. Raises BadTests for what does not compile."""
    for text in job["setup"]:
        yield _parse(text), False
    for text in job["tests"]:
        tree = _parse(text)
        if job["split"]:
            yield from _split(tree)
        else:
            yield tree, True


def _parse(text: str) -> ast.Module:
    try:
        compile(text, "tests", "exec")  # finds more than the parser does
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise BadTests(f"they do not compile: {error}") from None


def _split(tree: ast.Module) -> Iterator[tuple[ast.Module, bool]]:
    """A text by its statements: definitions, imports and assignments are no tests, functions `test...` are called."""
    for statement in tree.body:
        if not _ignored(statement):
            yield ast.Module([statement], []), not isinstance(statement, _SETUP)
        if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test"):
            yield ast.parse(f"{statement.name}()"), True


def _ignored(statement: ast.stmt) -> bool:
    """A docstring, `pass`, and `if __name__ == ...`, which would pass as tests."""
    docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    script = isinstance(statement, ast.If) and ast.unparse(statement.test).startswith("__name__")
    return docstring or script or isinstance(statement, ast.Pass)


def candidate_names(parts: list[tuple[ast.Module, bool]], entry_point: str | None, defined: set[str]) -> set[str]:
    """The names that a candidate must define: those that the tests use and neither they nor Python define.

    Where only builtins are left, a candidate may define one anew (`sum`): the one that every test calls. Raises
    BadTests where there is no name at all.
    """
    if entry_point:
        return {entry_point}
    wanted = free_names(joined(parts)) - defined - set(dir(builtins))
    wanted = wanted or _builtin_called_by_all([part for part, is_test in parts if is_test])
    if not wanted:
        raise BadTests("they use no name that a completion could define")
    return wanted


def joined(parts: list[tuple[ast.Module, bool]]) -> ast.Module:
    return ast.Module([statement for part, _ in parts for statement in part.body], [])


def _builtin_called_by_all(tests: list[ast.Module]) -> set[str]:
    calls = [[node.func for node in ast.walk(test) if isinstance(node, ast.Call)] for test in tests]
    called = [{function.id for function in functions if isinstance(function, ast.Name)} for functions in calls]
    shared = set.intersection(*called) if called else set()
    return shared if len(shared) == 1 else set()


def free_names(tree: ast.Module) -> set[str]:
    """Names that are used as global ones and that no statement at the top binds."""
    top = symtable.symtable(ast.unparse(tree), "tests", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return _used(top) - bound


def _used(table: symtable.SymbolTable) -> set[str]:
    top = table.get_type() == "module"
    symbols = [symbol for symbol in table.get_symbols() if top or symbol.is_global()]
    names = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    return names.union(*map(_used, table.get_children()))


class Link:
    """Asks the candidate over two pipes."""

    def __init__(self, calls: IO[bytes], replies: IO[bytes]):
        self.calls, self.replies = calls, replies
        self.calls_made, self.gone = 0, False
        self.functions: list[Callable[..., Any]] = []

    def wait_until_ready(self) -> None:
        """Returns once the candidate's process is up; its program has not started then. Ends the process otherwise."""
        if receive(self.replies) != ["ready"]:
            raise SystemExit

    def ask(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        """The candidate's answer, or the exception that it raised. Raises Gone for any that is no answer."""
        message = [operation, encode(list(args), self.name), encode(kwargs, self.name)]
        self.calls_made += 1  # before it is sent: a process that has ended is the candidate's fault
        self._send(message)
        while True:
            kind, content = self._receive()
            if kind == "value":
                return content
            if kind == "raised":
                raise content
            self._send(self._called_back(*content))

    def _send(self, message: list[Any]) -> None:
        if self.gone:
            raise Gone
        try:
            send(self.calls, message)
        except OSError:
            self._lose()

    def _receive(self) -> tuple[str, Any]:
        """(kind, what it carries), rebuilt here."""
        try:
            kind, *content = receive(self.replies)
            return kind, _CONTENTS[kind](self, *content)
        except Exception:  # noqa: BLE001 - whatever a hostile line does to the parser, it is no answer
            return self._lose()

    def _lose(self) -> Any:
        self.gone = True
        raise Gone

    def _called_back(self, function: int, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Runs a function that a test gave to the candidate. What it raises goes back by name."""
        try:
            return ["returned", encode(self.functions[function](*args, **kwargs), self.name)]
        except Exception as error:  # noqa: BLE001 - the candidate may catch it
            return ["failed", type(error).__name__, str(error)]

    def name(self, value: Any) -> list[Any]:
        """How a value of a test's that is no plain one is named. Raises TypeError for one that cannot be sent."""
        if type(value) is Handle:
            return value._reference
        if not callable(value):
            raise TypeError(f"a test passes a {type(value).__name__}, and only plain values and functions can be sent")
        self.functions.append(value)
        return ["function", len(self.functions) - 1]

    def find(self, kind: str, content: Any) -> "Handle":
        if kind != "object" or type(content) is not int:
            raise ValueError(kind)
        return Handle(self, [kind, content])


def _exception(link: Link, names: list[str], message: str) -> Exception:
    """The candidate's exception: its most derived class that is a builtin one."""
    for kind in (getattr(builtins, name, None) for name in names):
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:  # takes more than a message
                continue
    return Exception(message)


_CONTENTS: dict[str, Callable[..., Any]] = {
    "value": lambda link, value: decode(value, link.find), "raised": _exception,
    "call": lambda link, function, args, kwargs: (int(function), decode(args, link.find), decode(kwargs, link.find))}


class Handle:
    """Something of the candidate's that is no plain value.

    It compares with other handles only. Where a function's answer should be a plain value, an object in its place must
    not pass by a method that agrees to everything (`startswith`, `issubset`): methods that plain values have too are
    refused, except for an instance of a class that the tests name, by a capital, and make themselves.
    """

    def __init__(self, link: Link, reference: list[Any], made: bool = False):
        for name, value in {"_link": link, "_reference": reference, "_made": made}.items():
            object.__setattr__(self, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        answer = self._link.ask("call", self, *args, **kwargs)
        if type(answer) is Handle and self._reference[0] == "name" and self._reference[1][:1].isupper():
            object.__setattr__(answer, "_made", True)
        return answer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (name in _PLAIN_NAMES and not self._made):
            raise AttributeError(f"no plain value, and no attribute {name!r}")
        return self._link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", self, name, value)

    def __hash__(self) -> int:
        return hash(tuple(self._reference))


def _forward(operation: str, kind: type | None = None) -> Callable[..., Any]:
    """A method that asks the candidate; where Python wants a `kind` of it, any other answer is a TypeError, as it is
    for a class."""

    def method(self: Handle, *args: Any) -> Any:
        answer = self._link.ask(operation, self, *args)
        if kind is not None and type(answer) is not kind:
            raise TypeError(f"{operation} gave {type(answer).__name__}")
        return answer

    return method


def _between_handles(operation: str) -> Callable[[Handle, Any], Any]:
    def method(self: Handle, other: Any) -> Any:
        return self._link.ask(operation, self, other) if type(other) is Handle else NotImplemented

    return method


for _operation in _BETWEEN_HANDLES:
    setattr(Handle, f"__{_operation.strip('_')}__", _between_handles(_operation))
for _operation, _kind in {"len": int, "bool": bool, "str": str, "repr": str, "iter": None, "next": None,
                          "getitem": None, "setitem": None, "delitem": None}.items():
    setattr(Handle, f"__{_operation}__", _forward(_operation, _kind))
Handle.__instancecheck__ = lambda self, instance: self._link.ask("isinstance", instance, self) is True
