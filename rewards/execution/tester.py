"""The tester's process: runs a row's tests against a candidate that lives in another process, and gives the verdict.

The names that tests use and do not define are the candidate's: each is a Handle here, and every use of a handle is a
question over the pipe. Answers are plain values that are built here, so `==` is Python's own. An object of the
candidate's stays a handle (handles.py says what it may take part in). So nothing that the candidate wrote ever learns
what a test expects, but among strangers.

Verdict, lines on standard output: `ready N` (tests in all, once the candidate's process is up), then `1` or `0` a test.
`bad REASON` is printed for tests that cannot be run, whoever the candidate is; `cannot REASON` for those that two
processes cannot run; `doubt REASON` behind tests that failed and that might not have in one process. All three depend
on the tests alone.

Runs inside the sandbox: standard library only.
"""

import ast
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from rewards.execution.handles import exception_class, name_handle
from rewards.execution.inside import enter, silence
from rewards.execution.link import Gone, Link
from rewards.execution.names import candidate_names, free_names, solution_modules, used_modules, usual_names
from rewards.execution.parts import BadTests, Part, parse, parts_of, statements

MODULE = "tests"
_ENDS = {"SystemExit", "KeyboardInterrupt"}
_TOGETHER = {"patch", "mock", "monkeypatch", "MagicMock", "Mock", "tmp_path", "tmpdir", "tempfile", "open", "os",
             "threading", "Thread", "ThreadPoolExecutor"}
"""by which tests reach into a candidate's process or its files, or call it from several threads"""


def main() -> None:
    job = enter()
    with open(os.dup(1), "w", errors="replace") as verdict, open(job["calls"], "wb") as calls, \
            open(job["replies"], "rb") as replies:
        silence(1)
        try:
            judge(job, Link(calls, replies), lambda line: print(line, file=verdict, flush=True))
        except BadTests as error:
            print("bad", " ".join(str(error).split()), file=verdict, flush=True)


def judge(job: dict[str, Any], link: Link, say: Callable[[str], None]) -> None:
    """Says the verdict. Raises BadTests for tests that do not compile, call no candidate or fail before they do."""
    parts = parts_of(job["setup"], job["tests"], job["split"])
    total = sum(part.count for part in parts)
    if not total:
        raise BadTests("there is no test in them")
    module, tree = start_module(job["stub"]), whole(parts)
    names, modules = names_of(parts, job["entry_point"], module)
    mentioned = mentioned_in(tree)
    link.ends_allowed = bool(mentioned & _ENDS)
    if mentioned & _TOGETHER:
        link.doubt = "they replace what the candidate uses, or share files with it"
    elif names.keys() & managers(tree):
        link.doubt = "a manager of the candidate's may change what it was given"
    link.wait_until_ready()
    silence(2)
    say(f"ready {total}")
    bind(names, modules, link)
    passed = run(parts, module, link, say)
    if not link.calls_made and not link.cannot:
        raise BadTests("they never use what a completion defines")
    if not passed and link.cannot:
        say(f"cannot {link.cannot}")
    elif not passed and link.doubt and not link.gone:
        say(f"doubt {link.doubt}")


def start_module(stub: str) -> types.ModuleType:
    """The tests' module, with what the stub of a task defines: its helpers. A stub that is prose defines nothing."""
    module = sys.modules[MODULE] = types.ModuleType(MODULE)
    try:
        statements(Part(statements, parse(stub)), module)
    except BadTests:
        return module
    except Exception as error:  # noqa: BLE001 - most likely a package that the sandbox does not have
        raise BadTests(f"their prompt fails on its own: {type(error).__name__}: {error}") from None
    return module


def names_of(parts: list[Part], entry_point: str | None, module: types.ModuleType) -> tuple[dict[str, str], list[str]]:
    """The candidate's names, each with the module that the tests have it in, and the modules that the tests import it
    from; the usual imports that the tests lack are made. Raises BadTests where no name is the candidate's."""
    tree, defined = whole(parts), set(vars(module))
    modules = solution_modules(tree)
    for each in modules:
        sys.modules[each] = types.ModuleType(each)
    tests = [part.tree for part in parts if part.count]
    wanted = candidate_names(tree, tests, entry_point, defined, bool(modules))
    if not wanted and not modules:
        raise BadTests("they use no name that a completion could define")
    free = free_names(tree) - defined - wanted
    vars(module).update(used_modules(tree, free) | usual_names(free))
    names = dict.fromkeys(wanted, MODULE) | {name: each for each, taken in modules.items() for name in taken}
    return names, list(modules)


def whole(parts: list[Part]) -> ast.Module:
    return ast.Module([node for part in parts for node in part.tree.body], [])


def mentioned_in(tree: ast.Module) -> set[str]:
    return {node.id if isinstance(node, ast.Name) else node.arg for node in ast.walk(tree)
            if isinstance(node, (ast.Name, ast.arg))}


def managers(tree: ast.Module) -> set[str]:
    """What is called to make a context manager."""
    items = (item.context_expr for node in ast.walk(tree) if isinstance(node, (ast.With, ast.AsyncWith))
             for item in node.items)
    return {item.func.id for item in items if isinstance(item, ast.Call) and isinstance(item.func, ast.Name)}


def bind(names: dict[str, str], modules: list[str], link: Link) -> None:
    """Gives each name what stands for it: a value, a class of exceptions, or a handle."""
    for each in modules:
        vars(sys.modules[each])["__getattr__"] = lambda name: _standing_for(name, link)
    for name, module in names.items():
        vars(sys.modules[module])[name] = _standing_for(name, link)


def _standing_for(name: str, link: Link) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        kind, content = link.ask("describe", name)
    except Gone:
        kind, content = "nothing", None
    if kind == "value":
        link.calls_made += 1
        return content
    if kind == "exception":
        return exception_class(link, name, content)
    if kind == "class" and name[:1].isupper():
        link.doubt = link.doubt or f"{name} is a class"
    return name_handle(link, name, kind, content[0] if kind == "changing" else "")


def run(parts: list[Part], module: types.ModuleType, link: Link, say: Callable[[str], None]) -> bool:
    """Runs all in order and says how each test ended, until what is no test fails, which ends the rest, too. Whether
    all passed."""
    passed = True
    for part in parts:
        outcomes = outcomes_of(part, module, link)
        for outcome in outcomes[: part.count]:
            say("1" if outcome else "0")
        passed = passed and all(outcomes)
        if not part.count and not all(outcomes):
            return False
    return passed


def outcomes_of(part: Part, module: types.ModuleType, link: Link) -> list[bool]:
    """How a part's tests ended. Raises BadTests where they fail before the candidate is called: they always would."""
    reason = ""
    link.begins(part)
    try:
        outcomes = part.run(part, module)
    except BadTests:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit of a test, too, is a test that failed
        reason = f": {type(error).__name__}: {error}"
        outcomes = [False] * max(1, part.count)
    if not all(outcomes) and not link.calls_made and not link.cannot:
        raise BadTests(f"they fail on their own{reason}")
    return [outcome and not (part.count and link.gone) for outcome in outcomes]  # a bare `except` may have caught it
