"""The environment is made once from its requirements, and constraints.txt is renewed for one Python at a time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("requirements.txt", "requirements-serve.txt", "requirements-dev.txt", "constraints.txt")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in (*FILES, "scripts/setup.sh", "scripts/constraints.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python(folder, text):
    """A Python that prints this, whatever it is asked."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def run(project, script, venv, **environment):
    return subprocess.run(["sh", f"scripts/{script}.sh", str(venv)], cwd=project, text=True, capture_output=True,
                          env=os.environ | environment, check=False)


def made_from(project):
    files = "".join((project / name).read_text() for name in (*FILES, "scripts/setup.sh"))
    return subprocess.run(["cksum"], input=files, text=True, capture_output=True, check=True).stdout


def test_an_environment_of_these_requirements_stays_whatever_the_times_and_names(project, tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "installed").write_text(made_from(project))
    (tmp_path / "link").symlink_to(venv)
    os.utime(project / "requirements.txt", (2e9, 2e9))
    for name in ("venv", "link"):
        done = run(project, "setup", tmp_path / name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", [*FILES, "scripts/setup.sh"])
def test_an_environment_of_others_is_made_anew(project, tmp_path, name):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "installed").write_text(made_from(project))
    with (project / name).open("a") as file:
        file.write("# more\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "cat", "cksum", "sort", "cut", "ls", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run(project, "setup", tmp_path / "venv", PATH=str(tools), PYENV_ROOT=str(tmp_path))
    assert (done.returncode, done.stderr.startswith("error: no working Python 3.11")) == (1, True)


def test_constraints_of_one_python_are_renewed(project, tmp_path):
    frozen = 'printf "b==2\\nA==1\\nlocal @ file:///x\\n"'
    venv = python(tmp_path / "venv", f'case "$*" in *freeze) {frozen};; *) echo 3.99;; esac')
    lines = ("# Why.", 'z==0 ; python_version == "3.99"', 'b==1 ; python_version == "3.11"')
    (project / "constraints.txt").write_text("\n".join([*lines, ""]))
    for _ in range(2):
        done = run(project, "constraints", venv)
        assert (done.returncode, done.stdout) == (0, "constraints.txt: 2 packages of Python 3.99\n")
        assert (project / "constraints.txt").read_text().splitlines() == [
            "# Why.", 'A==1 ; python_version == "3.99"', 'b==1 ; python_version == "3.11"',
            'b==2 ; python_version == "3.99"']


def test_constraints_are_lines_of_a_python_each():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("==" in line and '; python_version == "3.' in line for line in lines[1:])
    assert any(line.startswith("jax==") for line in lines)
