"""Control groups of sandboxes, in a hierarchy of plain files: what is written where, and that nothing stays."""

import os
import shutil
from pathlib import Path

import pytest
from sandboxed import needs_sandbox

from rewards.execution import cgroups, sandbox
from rewards.execution.sandbox import Limits, run_python


@pytest.fixture(autouse=True)
def looked_for_anew():
    cgroups.found.cache_clear()
    yield
    cgroups.found.cache_clear()


@pytest.fixture
def container(monkeypatch, tmp_path):
    """The root of a container's groups, this process alone in it. Folders are made with the kernel's files in them, and
    are removed with them."""
    make = Path.mkdir

    def mkdir(folder, *arguments, **options):
        make(folder, *arguments, **options)
        for name in ("cgroup.procs", "cgroup.kill", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max"):
            (folder / name).touch()

    (tmp_path / "cgroup.type").write_text("domain")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")  # no systemd-run
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
    return tmp_path


def contents(folder):
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def groups(folder):
    return [path for path in folder.iterdir() if path.is_dir() and path.name != "temper-trainer"]


def test_a_container_is_divided_and_a_group_lasts_as_long_as_its_sandbox(container):
    with cgroups.group(123, 45) as (command, variables):
        [made] = groups(container)
        assert contents(made) == {"cgroup.procs": "", "cgroup.kill": "", "memory.max": "123", "memory.swap.max": "0",
                                  "memory.oom.group": "1", "pids.max": "45"}
        assert command[-1] == str(made)
        assert variables == {}
    assert groups(container) == []
    assert contents(container / "temper-trainer")["cgroup.procs"] == str(os.getpid())
    assert (container / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_two_sandboxes_have_two_groups(container):
    with cgroups.group(1, 1), cgroups.group(1, 1):
        assert len(groups(container)) == 2


@pytest.mark.parametrize(("name", "text"), [("cgroup.procs", "1\n2\n"), ("cgroup.type", None)])
def test_a_group_that_is_not_ours_is_left_alone(container, name, text):
    """One with other processes, and the root of all groups, which has no type."""
    (container / name).write_text(text) if text else (container / name).unlink()
    before = contents(container)
    with cgroups.group(1, 1) as made:
        assert made == ([], {})
    assert contents(container) == before


def test_a_group_that_is_divided_already_is_used_as_it_is(container):
    (container / "cgroup.procs").write_text("1\n2\n")
    (container / "cgroup.subtree_control").write_text("cpu memory pids")
    with cgroups.group(1, 1):
        assert len(groups(container)) == 1
    assert contents(container)["cgroup.subtree_control"] == "cpu memory pids"


def test_what_systemd_delegates_is_ours(container, monkeypatch):
    (container / "cgroup.type").unlink()
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if name == "user.delegate" else b"")
    assert cgroups.found() == container


def test_a_group_without_the_controllers_is_none(container, monkeypatch):
    monkeypatch.setattr(cgroups, "_make", lambda *arguments: (_ for _ in ()).throw(PermissionError))
    (container / "cgroup.subtree_control").write_text("memory pids")
    assert cgroups.found() is None


SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> FOLDER/asked
case "$*" in *memory.max*) echo REPLY; shift $(($# - 1)); exec /bin/sh -c "OPEN${1##*&& }";; esac
while [ "$1" != -- ]; do shift; done
shift; exec "$@"
"""


@pytest.fixture
def systemd_run(monkeypatch, tmp_path):
    """Makes a systemd-run that says of each limit that it is `reply`, and runs what it is given after `opens`."""
    def make(reply, opens=""):
        script = tmp_path / "systemd-run"
        script.write_text(SYSTEMD_RUN.replace("FOLDER", str(tmp_path)).replace("REPLY", reply).replace("OPEN", opens))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path)
        return tmp_path / "asked"

    return make


@needs_sandbox
def test_a_sandbox_runs_in_a_scope_of_systemd(systemd_run):
    asked = systemd_run(str(1 << 30))
    assert run_python("print(5)", Limits(memory_mb=100, disk_mb=20, threads=9)).output == "5\n"
    options = asked.read_text().splitlines()[-1].split()
    assert options[options.index("--scope"):options.index("--")] == [
        "--scope", "--quiet", "--collect", f"--property=MemoryMax={120 << 20}", "--property=MemorySwapMax=0",
        "--property=TasksMax=13"]
    assert ("--user" in options) == (os.geteuid() != 0)


def test_a_systemd_whose_limits_do_not_hold_is_not_used(systemd_run):
    systemd_run("max")
    assert cgroups.found() is None


def test_a_systemd_that_closes_files_is_not_used(systemd_run):
    systemd_run(str(1 << 30), opens=": ")
    assert cgroups.found() is None


def test_systemd_is_found_and_what_runs_inside_is_told_nothing_of_it(systemd_run):
    systemd_run(str(1 << 30))
    with cgroups.group(1, 1) as (_, variables):
        assert variables["XDG_RUNTIME_DIR"] == "/run/user/7"
    if sandbox._missing() is None:
        assert "/run/user" not in run_python("import os\nprint(os.environ)").output


@needs_sandbox
def test_a_sandbox_goes_into_its_group_and_the_group_goes_with_it(container, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    assert sandbox._missing() is None
    (container / "cgroup.subtree_control").write_text("memory pids")
    with sandbox.start("inside", {"program": "import time\ntime.sleep(99)"}, Limits(memory_mb=64, disk_mb=1)):
        [made] = groups(container)
        assert contents(made)["memory.max"] == str(65 << 20)
    assert groups(container) == []
