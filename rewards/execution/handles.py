"""What stands in the tests' process for things of the candidate's that are no plain values.

Nothing that the candidate wrote may learn what a test expects and then say that it is so. So an object that a function
gave back equals no plain value, is no operand of one, and of the methods of plain values that agree or not
(`startswith`) only those count whose agreement was tried with strangers (Link.knows).
An instance of a class that the tests name by a capital and make themselves has all of its operators and methods: they
are what is tested; where it is compared with plain values, strangers are tried, too. A subclass of a plain kind is
compared as its base's value, which is fetched.

Runs inside the sandbox: standard library only.
"""

import builtins
import types
from collections.abc import Callable
from typing import Any

from rewards.execution.operations import BASES, BINARY

_PLAIN = {kind.__name__: kind for kind in BASES}
AGREEMENTS = {name for kind in _PLAIN.values() for name in dir(kind) if name.startswith("is")} | {
    "startswith", "endswith", "count", "index", "find", "rfind", "rindex"}
"""methods of plain values by which an object might agree to what it does not know"""
_TOLD = {"__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__dict__", "__defaults__",
         "__wrapped__", "__members__", "__cause__", "__notes__"}
_TYPES = {"generator": types.GeneratorType, "function": types.FunctionType, "method": types.MethodType, "map": map,
          "async_generator": types.AsyncGeneratorType, "filter": filter, "zip": zip, "enumerate": enumerate,
          "reversed": reversed, "type": type, "builtin_function_or_method": types.BuiltinFunctionType}


class Handle:
    """Something of the candidate's: a name, or an object by its number."""

    def __init__(self, link: Any, reference: list[Any], type_name: str = "", base: str = ""):
        for name, value in {"_link": link, "_reference": reference, "_type": type_name, "_base": _PLAIN.get(base),
                            "_made": False}.items():
            object.__setattr__(self, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        answer = self._link.ask("call", self, *args, **kwargs)
        return self._of_mine(answer)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            if name not in _TOLD:
                self._refuse(name)
            return self._link.ask("getattr", self, name)
        if name in AGREEMENTS and self._reference[0] == "object":
            return self._with_care(name)
        return self._of_mine(self._link.ask("getattr", self, name))

    def _with_care(self, name: str) -> Any:
        """A method by which an object might agree to what it does not know."""
        if self._base is not None and not self._made:
            return getattr(self._fetched(), name)
        method = self._link.ask("getattr", self, name)
        if not issubclass(type(method), Handle):
            return method if self._made else _no_agreement(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            known = self._made if kwargs or not args else self._link.knows(method, self._made, *args)
            return self._of_mine(self._link.ask("call", method, *args, **kwargs)) if known else _no_agreement(name)

        return call

    def _of_mine(self, answer: Any) -> Any:
        """What an object of the tests' own making hands out is of their making, too."""
        if issubclass(type(answer), Handle) and self._made:
            object.__setattr__(answer, "_made", True)
        return answer

    def _refuse(self, name: str) -> None:
        self._link.doubt = self._link.doubt or f"{name} of what is the candidate's"
        raise AttributeError(f"no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._link.ask("delattr", self, name)

    @property
    def __class__(self) -> type:
        return self._base or _TYPES.get(self._type, Handle)

    def __hash__(self) -> int:
        return hash(tuple(self._reference)) if self._reference[0] == "name" else _forward("hash", int)(self)

    def _fetched(self) -> Any:
        """The plain value of an instance of a plain kind's subclass."""
        value = self._link.ask("plain", self)
        return value if type(value) is self._base else object()

    def __eq__(self, other: Any) -> Any:
        if issubclass(type(other), Handle) and self._base is None:
            return self is other or self._link.agrees("eq", self, other)
        if self._base is not None:
            return self._fetched() == (other._fetched() if issubclass(type(other), Handle) and other._base else other)
        return self._link.agrees("eq", self, other) if self._made else NotImplemented

    def __ne__(self, other: Any) -> Any:
        same = self.__eq__(other)
        return NotImplemented if same is NotImplemented else not same

    def __contains__(self, item: Any) -> bool:
        if self._base is not None:
            return item in self._fetched()
        if self._made or issubclass(type(item), Handle):
            strangers = [f"?{id(self):x}", -987654321.5]
            answers = self._link.ask("lineup", "contains", self, [item, *strangers])
            return answers[0] is True and True not in answers[1:]
        return any(item == each for each in self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        """What a test raised itself may be swallowed, and nothing that shows that the candidate is wrong."""
        return self._link.ask("exit", self, kind and kind.__name__, str(error)) is True and may_swallow(error, trace)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._link.ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return self._link.ask("issubclass", subclass, self) is True

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        self._link.cannot = "a test derives a class from one of the candidate's"
        raise TypeError(self._link.cannot)

    def __copy__(self) -> Any:
        return self._of_mine(self._link.ask("copy", self))

    def __deepcopy__(self, memo: Any) -> Any:
        return self._of_mine(self._link.ask("deepcopy", self))

    async def __aenter__(self) -> Any:
        return self._of_mine(self._link.ask("aenter", self))

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return self._link.ask("aexit", self) is True

    def __aiter__(self) -> "Handle":
        return self

    async def __anext__(self) -> Any:
        return self._link.ask("anext", self)


def name_handle(link: Any, name: str, kind: str, base: str = "") -> Handle:
    """Of a name of the candidate's: a class with a capital is one whose instances tests make."""
    handle = Handle(link, ["name", name], base=base)
    object.__setattr__(handle, "_made", kind == "class" and name[:1].isupper())
    return handle


def may_swallow(error: BaseException | None, trace: Any) -> bool:
    """Whether a context manager of the candidate's may: what a test raised itself, and no sign of a wrong candidate."""
    wrong = isinstance(error, (AssertionError, TypeError, AttributeError, NameError))
    return isinstance(error, Exception) and not wrong and trace is not None and trace.tb_next is None


def relayed(handle: Handle, type_name: str) -> Any:
    """A coroutine of the tests' own for one of the candidate's, which event loops insist on."""
    if type_name != "coroutine":
        return handle

    async def relay() -> Any:
        return handle._link.ask("await", handle)

    return relay()


def _no_agreement(name: str) -> Any:
    raise AttributeError(f"no plain value, and a method {name!r} that says the same to any")


def _forward(operation: str, kind: type | tuple[type, ...] | None = None) -> Callable[..., Any]:
    """A method that asks the candidate; where Python wants a `kind` of it, any other answer is a TypeError, as it is
    for a class."""

    def method(self: Handle, *args: Any) -> Any:
        if self._base is not None and operation in ("int", "float", "complex", "index", "bool", "bytes"):
            return _PLAIN.get(operation, int)(self._fetched())
        answer = self._link.ask(operation, self, *args)
        if kind is not None and type(answer) is not kind and not isinstance(answer, kind):
            raise TypeError(f"{operation} gave {type(answer).__name__}")
        return self._of_mine(answer)

    return method


def _binary(operation: str) -> Callable[[Handle, Any], Any]:
    """With another handle, or where the object is of the tests' making: an operand is an argument then."""

    def method(self: Handle, other: Any) -> Any:
        if self._base is not None and not self._made:
            return _on_plain(operation, self._fetched(), other)
        if self._made or issubclass(type(other), Handle):
            return self._of_mine(self._link.ask(operation, self, other))
        return NotImplemented

    return method


def _on_plain(operation: str, value: Any, other: Any) -> Any:
    other = other._fetched() if issubclass(type(other), Handle) and other._base else other
    method = getattr(value, f"__{operation}__", None)
    return NotImplemented if method is None else method(other)


for _name in ("lt", "le", "gt", "ge", *(f"{prefix}{name}" for prefix in ("", "r", "i") for name in BINARY)):
    setattr(Handle, f"__{_name}__", _binary(_name))
for _name, _kind in {"len": int, "bool": bool, "str": str, "repr": str, "format": str, "int": int, "float": float,
                     "complex": complex, "index": int, "bytes": bytes, "iter": None, "next": None, "reversed": None,
                     "getitem": None, "setitem": None, "delitem": None, "neg": None, "pos": None, "invert": None,
                     "abs": None, "round": None, "floor": None, "ceil": None, "trunc": None, "enter": None,
                     "divmod": None, "dir": None}.items():
    setattr(Handle, f"__{_name}__", _forward(_name, _kind))


def exception_class(link: Any, name: str, bases: list[str]) -> type[Exception]:
    """A class of the tests' own for one of the candidate's exceptions, to be named in `except`."""
    base = next(vars(builtins)[each] for each in bases if isinstance(vars(builtins).get(each), type))
    base = base if issubclass(base, Exception) else Exception
    above = next((link.exceptions[each] for each in bases if each in link.exceptions), base)

    class Kind(type):
        def __getattr__(cls, attribute: str) -> Any:
            return link.ask("getattr", Handle(link, ["name", name]), attribute)

    def get(self: Any, attribute: str) -> Any:
        if self._handle is None or attribute.startswith("__"):
            raise AttributeError(attribute)
        return link.ask("getattr", self._handle, attribute)

    made = Kind(name, (above,), {"_handle": None, "_message": None, "__getattr__": get, "__str__": lambda self: (
        self._message if self._message is not None else BaseException.__str__(self))})
    link.exceptions[name] = made
    return made


Handle.__doc__ = property(lambda self: self._link.ask("getattr", self, "__doc__"))  # not this class's own
