"""Examples of input and output, as the data sets of programming contests spell them.

- APPS, TACO: `input_output`, JSON text of {"inputs": [...], "outputs": [...]}; with "fn_name" the inputs are lists of
  arguments of that function, or of that method of a class Solution.
- CodeContests: `public_tests`, `private_tests`, `generated_tests`, each {"input": [...], "output": [...]}.
- LiveCodeBench: `public_test_cases` and `private_test_cases`, JSON text (the latter compressed, in base64) of
  [{"input", "output", "testtype"}]; "functional" ones are of the function that `metadata` names, an argument a line.
- Others: `test_cases`, `tests`, `verification_info`, any of these forms.
"""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from errors import InputError

COLUMNS = ("input_output", "public_tests", "private_tests", "generated_tests", "public_test_cases",
           "private_test_cases", "test_cases", "tests", "verification_info")
_FUNCTION = ("fn_name", "func_name", "function_name", "entry_point")


class Example(NamedTuple):
    """What is given and what is wanted: texts, or with `function` its arguments and its value."""

    given: Any
    wanted: Any
    function: str | None = None


def read_examples(row: Mapping[str, Any]) -> list[Example]:
    """Of all columns that a row has. Raises ValueError, one line, for a column that holds none."""
    function = _function(_parsed(row.get("metadata"))) or _function(row)
    found: list[Example] = []
    for name in COLUMNS:
        if row.get(name):
            try:
                found += _examples(_parsed(row[name]), function)
            except (ValueError, TypeError, KeyError, zlib.error, pickle.UnpicklingError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(f"{name} holds no examples of input and output: {reason}") from None
    return found


def check_columns(columns: Mapping[str, Any]) -> None:
    """Raises InputError where no row can have examples."""
    if not any(name in columns for name in COLUMNS):
        raise InputError(f"examples of input and output are in a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; "
                         f"there are {', '.join(sorted(columns)) or 'no columns'}")


def _function(value: Any) -> str | None:
    found = [value[name] for name in _FUNCTION if value.get(name)] if isinstance(value, Mapping) else []
    return str(found[0]) if found else None


def _parsed(value: Any) -> Any:
    """JSON text, plain or as LiveCodeBench packs it: compressed, of a pickled string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        packed = zlib.decompress(base64.b64decode(value, validate=True)) if value[:1] not in "[{" else b""
    if not packed:
        raise ValueError("no JSON")
    return json.loads(_Strings(io.BytesIO(packed)).load() if packed[:1] == b"\x80" else packed)


class _Strings(pickle.Unpickler):  # noqa: S301 - it builds no object of any class
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in what should be text")


def _examples(value: Any, function: str | None) -> Iterator[Example]:
    """Any of the forms."""
    if isinstance(value, Mapping) and "test_cases" in value:
        yield from _examples(value["test_cases"], _function(value) or function)
    elif isinstance(value, Mapping):
        inputs = value["inputs"] if "inputs" in value else value["input"]
        outputs = value["outputs"] if "outputs" in value else value["output"]
        named = _function(value) or (function if inputs and not isinstance(inputs[0], str) else None)
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
        yield from (_of_lists(given, wanted, named) for given, wanted in zip(inputs, outputs))
    else:
        yield from (_of_case(case, function) for case in value)


def _of_lists(given: Any, wanted: Any, function: str | None) -> Example:
    if function:
        return Example(_arguments(given), _json_or_text(wanted) if isinstance(given, str) else wanted, function)
    return Example(_text(given), _text(wanted))


def _of_case(case: Mapping[str, Any], function: str | None) -> Example:
    named = _function(case) or function
    if case.get("testtype") == "functional" or str(case.get("type", "")).startswith("function") and named:
        if not named:
            raise ValueError("a functional case, and no metadata with func_name")
        given = case["input"]
        arguments = _of_lines(given) if isinstance(given, str) else given
        wanted = case["output"]
        return Example(arguments, json.loads(wanted) if isinstance(wanted, str) else wanted, named)
    return Example(_text(case["input"]), _text(case["output"]))


def _arguments(given: Any) -> Any:
    """Those of a function: a list, JSON text of one, or of an argument a line."""
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given)
    except ValueError:
        return _of_lines(given)
    return value if isinstance(value, list) else [value]


def _of_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _json_or_text(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> str:
    """A text, or its lines."""
    return value if isinstance(value, str) else "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def same_output(output: str, wanted: str, tolerance: float) -> bool:
    """Token by token: the same text, or numbers of which one has a fraction and that differ by at most `tolerance`,
    absolutely or relatively."""
    tokens, others = output.split(), wanted.split()
    return len(tokens) == len(others) and all(
        token == other or _close(token, other, tolerance) for token, other in zip(tokens, others))


def _close(token: str, other: str, tolerance: float) -> bool:
    if not (set(token + other) <= set("0123456789.+-eE") and set(token + other) & set(".eE")):
        return False
    try:
        a, b = float(token), float(other)
    except ValueError:
        return False
    return abs(a - b) <= tolerance * max(1.0, abs(b))
