"""Test classes of unittest's, run by unittest itself.

Runs inside the sandbox: standard library only.
"""

import types
import unittest
from typing import Any


def succeeded(module: types.ModuleType, name: str, methods: list[str]) -> set[str]:
    """Those of a class's test methods that succeeded, or failed as they should; a skipped one did neither."""
    result = _Result()
    unittest.TestSuite([getattr(module, name)(method) for method in methods]).run(result)
    return result.methods


class _Result(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.methods: set[str] = set()

    def addSuccess(self, test: Any) -> None:  # noqa: N802 - unittest's name
        self.methods.add(test._testMethodName)

    def addExpectedFailure(self, test: Any, error: Any) -> None:  # noqa: N802 - unittest's name
        self.methods.add(test._testMethodName)

    def _exc_info_to_string(self, error: Any, test: Any) -> str:
        return ""
