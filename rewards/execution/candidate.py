"""The candidate's process: runs a completion's program, then answers what the tester asks about it, until it is ended.

Nothing in here is protected from the program, and nothing needs to be: neither the tests nor the verdict are in this
process, and all that it can say to the tester is an answer. What it prints goes with the answer, what it reads from
standard input during a call is asked of the tester, and arguments that it changed in place are sent back.

Runs inside the sandbox: standard library only.
"""

import builtins
import contextlib
import enum
import io
import os
import sys
from typing import IO, Any

from rewards.execution.inside import enter, silence
from rewards.execution.load import MODULE, load, prepare
from rewards.execution.operations import UNCHANGING, Operations, base_of
from rewards.execution.wire import NAMED, decode, encode, receive, send


def main() -> None:
    job = enter()
    silence(1, 2)
    with open(os.dup(job["calls"]), "rb") as calls, open(os.dup(job["replies"]), "wb") as replies:
        os.close(job["calls"])
        os.close(job["replies"])
        send(replies, ["ready"])
        candidate = Candidate(calls, replies)
        prepare(job["program"])
        candidate.knows(load(job["program"], job["stub"]))
        candidate.serve()


class _Input(io.TextIOBase):
    """Standard input: lines that the tester gives during a call; empty at other times."""

    def __init__(self, candidate: "Candidate"):
        self._candidate = candidate

    def readline(self, size: int = -1) -> str:
        return self._candidate.ask_for("readline")

    def read(self, size: int = -1) -> str:
        return self._candidate.ask_for("read")

    def fileno(self) -> int:
        return 0


class Candidate:
    """Answers over two pipes. What is no plain value stays here, and the tester gets its number."""

    def __init__(self, calls: IO[bytes], replies: IO[bytes]):
        self.names: dict[str, Any] = {}
        self.operations = Operations(self.names)
        self.calls, self.replies, self.busy = calls, replies, False
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.printed = io.BytesIO()
        sys.stdin, sys.stdout = _Input(self), io.TextIOWrapper(self.printed, "utf-8", "replace", write_through=True)
        self.own_input, builtins.input = builtins.input, self.input

    def knows(self, names: dict[str, Any]) -> None:
        self.names = self.operations.names = names

    def serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self.busy = True
                self.answer(*receive(self.calls))

    def answer(self, operation: str, args: Any, kwargs: Any) -> None:
        """Sends the value, or the exception's classes, most derived first."""
        try:
            given, named = decode(args, self.find), decode(kwargs, self.find)
            same: dict[str, Any] = {}
            try:
                value = self.operations.of(operation, given, named)
                reply, same = ["value", encode(value, self.store)], _same(value, given, named)
            except BaseException as error:  # noqa: BLE001 - whatever a program raises is its answer
                reply = self.raised(error)
            send(self.replies, [*reply, self.side_effects([args, kwargs], [given, named]) | same])
        except Exception as error:  # noqa: BLE001 - a value that cannot be sent
            send(self.replies, [*self.raised(error), {}])

    def raised(self, error: BaseException) -> list[Any]:
        classes = [[kind.__module__, kind.__name__] for kind in type(error).__mro__]
        try:
            args = encode(list(error.args), self.store)
        except Exception:  # noqa: BLE001 - arguments that cannot be sent
            args = ["list", []]
        return ["raised", classes, str(error)[:1000], args, self.store(error)]

    def side_effects(self, sent: list[Any], given: list[Any]) -> dict[str, Any]:
        """What was printed, and the arguments as they are now, if they are others."""
        printed = self.printed.getvalue().decode(errors="replace")
        self.printed.seek(0)
        self.printed.truncate()
        effects = {"printed": printed} if printed else {}
        args, kwargs = given
        pairs = [*zip(range(len(args)), sent[0][1], args), *((key, was, kwargs[key]) for key, was in sent[1][1])]
        changed = [[at, now] for at, was, value in pairs if (now := self.changed(was, value)) is not None]
        return effects | ({"changed": changed} if changed else {})

    def changed(self, was: Any, value: Any) -> Any:
        """How an argument is sent that is not as it came; None for others, and for what cannot change."""
        if type(value) in UNCHANGING or not isinstance(was, list) or was[0] in (*NAMED, "iterator"):
            return None
        now = encode(value, self.store)
        return now if now != was else None

    def store(self, value: Any) -> Any:
        """How a value that is no plain one is named: its number, its class's name, the plain kind that it derives from.
        The library's own subclasses, and enumerations', travel as their base's value."""
        base = base_of(value)
        if base and type(value).__module__ != MODULE and not isinstance(value, enum.Enum):
            return encode(base(value), self.store)
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        kind = type(value)
        return ["object", [number, kind.__name__ if kind.__module__ in ("builtins", "types") else "",
                           base.__name__ if base else ""]]

    def find(self, kind: str, content: Any) -> Any:
        """What the tester names: an object from before, a name of the program's, or a function of the tester's own."""
        if kind == "object":
            return self.objects[content[0]]
        if kind == "function":
            number, name, doc = content
            function = lambda *args, **kwargs: self.call_back(number, args, kwargs)  # noqa: E731
            function.__name__, function.__qualname__, function.__doc__ = name, name, doc
            return function
        if content not in self.names:
            raise NameError(f"name {content!r} is not defined")
        return self.names[content]

    def call_back(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function that the tester gave, while the tester waits for an answer."""
        send(self.replies, ["call", function, encode(list(args), self.store, True), encode(kwargs, self.store, True)])
        while True:
            operation, *content = receive(self.calls)
            if operation == "returned":
                return decode(content[0], self.find)
            if operation == "failed":
                raise _rebuilt(content[0], decode(content[1], self.find))
            self.answer(operation, *content)

    def ask_for(self, what: str) -> str:
        return self.call_back(what, [], {}) if self.busy else ""

    def input(self, prompt: Any = "") -> str:
        if not self.busy:
            raise EOFError("there is no input")
        return self.call_back("input", [str(prompt)], {})


def _same(value: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Which argument an answer is, if it is one that can change."""
    found = [at for at, each in [*enumerate(args), *kwargs.items()] if each is value and type(value) not in UNCHANGING]
    return {"same": found[0]} if found else {}


def _rebuilt(classes: list[list[str]], args: list[Any]) -> Exception:
    """An exception of a test's function: of Python's own class, or of one that is called as the tests' class is."""
    base = next(kind for _, name in classes if isinstance(kind := getattr(builtins, name, None), type)
                and issubclass(kind, Exception))
    module, name = classes[0]
    return (base if base.__name__ == name else type(name, (base,), {"__module__": module}))(*args)
