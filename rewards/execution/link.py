"""The tester's end of the two pipes: asks the candidate, and rebuilds here what it answers.

Runs inside the sandbox: standard library only.
"""

import builtins
import random
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from rewards.execution.carried import Unsendable, make_like
from rewards.execution.handles import Handle, relayed
from rewards.execution.wire import decode, encode, receive, send

_NO_ERRORS = (StopIteration, StopAsyncIteration, GeneratorExit)
"""what ends a loop of the tester's own, as an empty one ends; only __next__ and its like may raise them"""
_ENDS = (SystemExit, KeyboardInterrupt)
_ANSWERS = {bool, int, float, complex, str, bytes, type(None)}
_CHANGING = (list, dict, set, bytearray)
STRANGERS = 9
"""values of the same kind among which an object has to find the one that it is said to equal"""


class Gone(BaseException):
    """The candidate's process has ended or talks nonsense. No Exception: `except Exception` in a test is not for it."""


class Link:
    """Asks the candidate over two pipes."""

    def __init__(self, calls: IO[bytes], replies: IO[bytes]):
        self.calls, self.replies, self.turn = calls, replies, threading.RLock()
        self.calls_made, self.gone = 0, False
        self.cannot = self.doubt = ""
        """why the two processes cannot run these tests; why they might not"""
        self.ends_allowed = False
        """whether the tests look for SystemExit and its like: else a candidate that raises them has ended"""
        self.functions: dict[Any, Callable[..., Any]] = {
            "input": lambda *prompt: builtins.input(*prompt), "readline": lambda: sys.stdin.readline(),
            "read": lambda: sys.stdin.read()}
        self.handles: dict[int, Handle] = {}
        self.failed: dict[str, Exception] = {}
        """by class, what functions of the tests' own raised last: it may come back through the candidate"""
        self.exceptions: dict[str, type[Exception]] = {}
        """of the candidate's, by name, what stands for them here"""

    def wait_until_ready(self) -> None:
        """Returns once the candidate's process is up; its program has not started then. Ends the process otherwise."""
        if receive(self.replies) != ["ready"]:
            raise SystemExit

    def begins(self, part: Any) -> None:
        """Before a part of the tests runs."""

    def ask(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        """The candidate's answer, or the exception that it raised. Raises Gone for any that is no answer."""
        message = [operation, encode(list(args), self.name, True), encode(kwargs, self.name, True)]
        if operation != "describe":
            self.calls_made += 1  # before it is sent: a process that has ended is the candidate's fault
        with self.turn:  # tests may have threads
            kind, *content = self._answer(message)
            self._take(content[-1], args, kwargs)
        if kind == "value":
            return _itself(*content, args, kwargs)
        raise self._allowed(operation, content[0])

    def _answer(self, message: list[Any]) -> list[Any]:
        """What comes back, once the functions of the tests' that it takes were called."""
        self._send(message)
        while True:
            kind, *content = self._receive()
            if kind != "call":
                return [kind, *content]
            self._send(self._called_back(*content))

    def _send(self, message: list[Any]) -> None:
        if self.gone:
            raise Gone
        try:
            send(self.calls, message)
        except OSError:
            self._lose()

    def _receive(self) -> list[Any]:
        """[kind, what it carries, side effects], rebuilt here."""
        try:
            kind, *content = receive(self.replies)
            return [kind, *_CONTENTS[kind](self, *content)]
        except Exception:  # noqa: BLE001 - whatever a hostile line does to the parser, it is no answer
            return self._lose()

    def _lose(self) -> Any:
        self.gone = True
        raise Gone

    def _allowed(self, operation: str, error: BaseException) -> BaseException:
        if isinstance(error, _ENDS) and not self.ends_allowed:
            self._lose()
        if isinstance(error, _NO_ERRORS) and operation not in ("next", "anext"):
            return RuntimeError(f"{type(error).__name__} was raised outside a loop")
        return error

    def _take(self, effects: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What a call printed is printed, and what it changed in place is changed here."""
        if not isinstance(effects, dict):
            self._lose()
        if isinstance(effects.get("printed"), str):
            print(effects["printed"], end="")
        if effects.get("changed"):
            try:
                for at, new in effects["changed"]:
                    make_like(kwargs[at] if isinstance(at, str) else args[at], decode(new, self.find))
            except Exception:  # noqa: BLE001 - whatever a hostile line does, it is no answer
                self._lose()

    def _called_back(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Runs a function that a test gave to the candidate. What it raises goes back by name."""
        try:
            return ["returned", encode(self.functions[function](*args, **kwargs), self.name, True)]
        except Exception as error:  # noqa: BLE001 - the candidate may catch it
            self.failed[type(error).__name__] = error
            args = error.args if all(type(each) in _ANSWERS for each in error.args) else [str(error)]
            return ["failed", [[kind.__module__, kind.__name__] for kind in type(error).__mro__],
                    encode(list(args), self.name)]

    def name(self, value: Any) -> list[Any]:
        """How a value of a test's that is no plain one is named. Raises Unsendable for one that cannot be sent."""
        if issubclass(type(value), Handle):
            return value._reference
        if type(value) in self.exceptions.values() and value._handle is not None:
            return value._handle._reference
        if not callable(value) or isinstance(value, type):
            self.cannot = f"a test passes a {type(value).__name__}, and only plain values and functions can be sent"
            raise Unsendable(self.cannot)
        number = len(self.functions)
        self.functions[number] = value
        doc = getattr(value, "__doc__", None)
        return ["function", [number, str(getattr(value, "__name__", "function")), doc if type(doc) is str else None]]

    def find(self, kind: str, content: Any) -> Any:
        """The one handle of an object of the candidate's."""
        number, type_name, base = content
        if kind != "object" or type(number) is not int or not isinstance(type_name, str) or not isinstance(base, str):
            raise ValueError(kind)
        if number not in self.handles:
            handle = Handle(self, [kind, content], type_name, base)
            self.handles[number] = relayed(handle, type_name)
        return self.handles[number]

    def agrees(self, operation: str, handle: Handle, value: Any) -> bool:
        """Whether an object says yes to a value and to none of as many strangers of its kind, asked in any order: one
        that says yes to everything knows nothing."""
        answer, others = self._lineup(operation, handle, value, stranger)
        return answer is True and True not in others

    def knows(self, method: Any, made: bool, *args: Any) -> bool:
        """Whether a method's answer is a no, or another than for any stranger; for an object that the tests made, than
        for all of them."""
        answer, others = self._lineup("call", method, list(args), strangers)
        said = [each for each in others if each is not None]
        same = [each == answer for each in said]
        return answer in (False, None, -1) or not any(same) or (made and same != [True] * len(others))

    def _lineup(self, operation: str, handle: Handle, value: Any, another: Callable[[Any], Any]) -> tuple[Any, list]:
        line = [value, *(another(value) for _ in range(STRANGERS))]
        order = random.SystemRandom().sample(range(len(line)), len(line))
        answers = self.ask("lineup", operation, handle, [line[at] for at in order])
        if type(answers) is not list or len(answers) != len(line) or {type(each) for each in answers} - _ANSWERS:
            self._lose()
        found = dict(zip(order, answers))
        return found.pop(0), list(found.values())


def _itself(value: Any, effects: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that an answer is said to be, where that is so, too: tests may ask for `is`."""
    named = dict(enumerate(args)) | kwargs
    at = effects.get("same")
    given = named.get(at) if isinstance(at, (int, str)) else None
    return given if type(given) is type(value) and type(value) in _CHANGING and given == value else value


def stranger(value: Any) -> Any:
    """A value that is another, of the same kind where that can be had."""
    for _ in range(9):
        other = _changed(value, random.SystemRandom())
        if type(other) is type(value) and other != value:
            return other
    return f"?{random.SystemRandom().getrandbits(64):x}"


def strangers(values: list[Any]) -> list[Any]:
    """To each of them."""
    return [stranger(each) for each in values]


def _changed(value: Any, dice: random.Random) -> Any:
    kind = type(value)
    if kind is bool:
        return not value
    if kind is int:
        return value + dice.choice((-1, 1)) * dice.randint(1, 9 + abs(value))
    if kind in (float, complex):
        return value + dice.choice((-1, 1)) * (1 + abs(value)) * dice.uniform(0.5, 2)
    if kind is str:
        return "".join(dice.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in value)
    if kind in (list, tuple, set, frozenset):
        return kind(map(stranger, value))
    return {key: stranger(item) for key, item in value.items()} if kind is dict else None


def _exception(link: Link, classes: list[list[str]], message: str, args: Any, reference: Any) -> BaseException:
    """The candidate's exception: its most derived class that tests can name: the candidate's own by what stands for it,
    else Python's, else the library's if the tests have imported it."""
    arguments = decode(args, link.find)
    for module, name in classes:
        if module == "tests" and name in link.failed:
            return link.failed[name]
        kind = link.exceptions.get(name) if module == "candidate" else getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException) and module.split(".")[0] in _EXCEPTION_MODULES:
            try:
                made = kind(*arguments) if module == "candidate" or arguments else kind(message) if message else kind()
            except Exception:  # noqa: BLE001 - takes other arguments
                continue
            if module == "candidate":
                made._handle, made._message = link.find(*reference), message
            return made
    return Exception(message)


_EXCEPTION_MODULES = sys.stdlib_module_names | {"candidate"}
_CONTENTS: dict[str, Callable[..., Any]] = {
    "value": lambda link, value, effects: [decode(value, link.find), effects],
    "raised": lambda link, classes, message, args, reference, effects: [
        _exception(link, classes, message, args, reference), effects],
    "call": lambda link, function, args, kwargs: [function, decode(args, link.find), decode(kwargs, link.find)]}
