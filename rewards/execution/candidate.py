"""The candidate's process: runs a completion's program, then answers what the tester asks about it, until it is ended.

Nothing in here is protected from the program, and nothing needs to be: neither the tests nor the verdict are in this
process, and all that it can say to the tester is an answer.

Runs inside the sandbox: standard library only.
"""

import builtins
import contextlib
import operator
import sys
from collections.abc import Callable
from typing import IO, Any

from rewards.execution.inside import enter, silence
from rewards.execution.wire import decode, encode, receive, send

_MODULE = "candidate"
_BASES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, /, *args, **kwargs: function(*args, **kwargs),
    **{name: getattr(builtins, name) for name in ("getattr", "setattr", "isinstance", "len", "iter", "next", "bool",
                                                  "str", "repr")},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem", "eq", "ne", "lt", "le", "gt", "ge",
                                                  "add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_",
                                                  "xor")}}


def main() -> None:
    job = enter()
    silence(1, 2)
    with open(job["calls"], "rb") as calls, open(job["replies"], "wb") as replies:
        send(replies, ["ready"])
        Candidate(run(job["stub"], job["program"]), calls, replies).serve()


def run(stub: str, program: str) -> dict[str, Any]:
    """The names that a program defines, after those of a stub, which may be prose and is left out then."""
    module = sys.modules[_MODULE] = type(sys)(_MODULE)
    with contextlib.suppress(SyntaxError):
        exec(compile(stub, "stub", "exec"), module.__dict__)
    exec(compile(program, "program", "exec"), module.__dict__)
    return module.__dict__


class Candidate:
    """Answers over two pipes. What is no plain value stays here, and the tester gets its number."""

    def __init__(self, names: dict[str, Any], calls: IO[bytes], replies: IO[bytes]):
        self.names, self.calls, self.replies = names, calls, replies
        self.objects: list[Any] = []

    def serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self.answer(*receive(self.calls))

    def answer(self, operation: str, args: Any, kwargs: Any) -> None:
        """Sends the value, or the names of the exception's classes, most derived first. sys.exit ends the process."""
        try:
            value = OPERATIONS[operation](*decode(args, self.find), **decode(kwargs, self.find))
            send(self.replies, ["value", encode(value, self.store)])
        except Exception as error:  # noqa: BLE001 - whatever a program raises is its answer
            send(self.replies, ["raised", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]])

    def store(self, value: Any) -> Any:
        """How a value that is no plain one is named: one of the library's subclasses (Counter) as its base's value."""
        base = next((base for base in _BASES if isinstance(value, base)), None)
        if base and (type(value).__module__ != _MODULE or hasattr(value, "_fields")):  # a namedtuple is a tuple
            return encode(base(value), self.store)
        self.objects.append(value)
        return ["object", len(self.objects) - 1]

    def find(self, kind: str, content: Any) -> Any:
        """What the tester names: an object from before, a name of the program's, or a function of the tester's own."""
        if kind == "object":
            return self.objects[content]
        if kind == "function":
            return lambda *args, **kwargs: self.call_back(content, args, kwargs)
        if content not in self.names:
            raise NameError(f"name {content!r} is not defined")
        return self.names[content]

    def call_back(self, function: int, args: Any, kwargs: Any) -> Any:
        """Calls a function that the tester gave, while the tester waits for an answer."""
        send(self.replies, ["call", function, encode(args, self.store), encode(kwargs, self.store)])
        while True:
            operation, *content = receive(self.calls)
            if operation == "returned":
                return decode(content[0], self.find)
            if operation == "failed":
                raise getattr(builtins, content[0], RuntimeError)(content[1])
            self.answer(operation, *content)
