"""Tests in pytest's style, run by pytest itself on a module that is there already.

Runs inside the sandbox, where pytest is a package that is allowed.
"""

import asyncio
import contextlib
import inspect
import os
import types
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = ("-s", "--assert=plain", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:terminal",
            "-p", "no:faulthandler", "-p", "no:threadexception", "-p", "no:unraisableexception")


def succeeded(module: types.ModuleType) -> set[str]:
    """The tests (`test_a`, `TestB::test_c`) all of whose cases ran and passed; those marked as failing pass so."""
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_VERSION": ""}
    reports = _Reports(module)
    path = Path("test_inside.py").resolve()
    path.touch()
    with contextlib.suppress(OSError):
        pytest.main([*_OPTIONS, f"--rootdir={path.parent}", f"--basetemp={path.parent / 'files'}",
                     str(path)], plugins=[reports])
    return reports.passed - reports.failed


class _Reports:
    """A plugin that collects the module, and what became of its tests."""

    def __init__(self, module: types.ModuleType):
        self.module = module
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_collect_file(self, file_path: Path, parent: Any) -> Any:
        return _Module.from_parent(parent, path=file_path, module=self.module)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: Any) -> bool | None:
        """Tests that are coroutine functions are awaited, as pytest-asyncio and anyio do."""
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.partition("::")[2].partition("[")[0]
        marked = hasattr(report, "wasxfail") and "xfail" in report.keywords
        if not (report.passed or marked):
            self.failed.add(name)
        elif report.when == "call":
            self.passed.add(name)


class _Module(pytest.Module):
    """The module that is there, instead of one that is imported."""

    def __init__(self, *, module: types.ModuleType, **others: Any):
        super().__init__(**others)
        self._there = module

    def _getobj(self) -> types.ModuleType:
        return self._there
