"""Imports go one way, as the README draws them: a table of what each folder may import, held against the sources."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"batch", "errors", "files"}
MODELS = BASE | {"models", "objectives", "sharding"}
REWARDS = MODELS | {"data", "training"}
CLI = REWARDS | {"rewards", "rollouts"}
ALLOWED = {
    "errors": set(), "files": {"errors"}, "batch": {"errors"},
    "sharding": BASE, "objectives": {"batch"}, "models": BASE | {"sharding"}, "data": BASE, "training": MODELS,
    "planning": MODELS | {"training"}, "rewards": REWARDS, "rollouts": REWARDS | {"rewards"}, "evals": CLI,
    "reports": BASE | {"evals"}, "serving": MODELS | {"data", "training", "rollouts"},
    "checks": MODELS | {"training", "rollouts"},
    "curation": CLI | {"reports"}, "cli": CLI | {"evals", "planning"},
    "scripts": CLI | {"cli", "checks", "evals", "curation", "planning", "reports", "serving"},
    "benchmarks": CLI | {"cli", "evals", "curation", "planning", "scripts"}}
"""folder or file at the top -> what of ours it may import besides itself"""
NEEDS_A_MODEL = {"learned"}
"""graders that do"""


def sources(name):
    return sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]


def imported(path):
    """Modules that a source imports anywhere, in functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(path):
    """The folders and files at the top that a source imports."""
    return {module.split(".")[0] for module in imported(path)} & ALLOWED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_a_folder_imports_what_the_table_allows(name):
    assert sources(name)
    for path in sources(name):
        assert ours(path) <= ALLOWED[name] | {name}, path


def test_the_table_has_every_folder():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {path.stem for path in ROOT.glob("*.py")}
    assert packages | {"benchmarks"} == ALLOWED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_dataclasses_begin_on_python_3_11(name):
    """Which takes no MappingProxyType as a default, but a factory of one."""
    for path in sources(name):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
                values = [each.value for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
                assert not [each for each in map(ast.unparse, values) if "MappingProxyType" in each], path


def test_graders_and_reports_load_no_jax():
    """Nor does what they import."""
    inside = NEEDS_A_MODEL | {"__init__", "checked_eval"}  # the latter, as workers, with a verifier in a sandbox
    graders = [path.stem for path in (ROOT / "rewards").glob("*.py")
               if path.stem not in inside and not path.stem.endswith("_worker")]
    reports = [f"reports.{path.stem}" for path in sources("reports")]
    modules = ", ".join([f"rewards.{name}" for name in graders] + reports)
    program = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          check=False).returncode == 0


def test_a_grader_that_needs_no_model_imports_none():
    for path in sources("rewards"):
        if path.stem not in NEEDS_A_MODEL:
            assert not ours(path) & {"models", "objectives", "sharding", "training"}, path
            assert "jax" not in {module.split(".")[0] for module in imported(path)}, path
