"""What this process may take of the machine's memory: all of it, or what its control groups are allowed."""

import pytest

from models.transformer import Transformer
from rollouts import memory as rollouts_memory
from sharding import memory

ALL = memory.machine_memory()


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine whose control groups have these limits, and a process in these of them."""
    def make(own, limits):
        monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(own)
        for name, limit in limits.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")

    return make


@pytest.mark.parametrize(("own", "limits", "expected"), [
    ("0::/\n", {"memory.max": "max"}, ALL),
    ("0::/\n", {"memory.max": 2**20}, 2**20),
    ("0::/system.slice/job_3/step\n", {"system.slice/job_3/memory.max": 2**21,
                                       "system.slice/job_3/step/memory.max": "max", "memory.max": 2**22}, 2**21),
    ("0::/not/seen/here\n", {"memory.max": 2**20}, 2**20),
    ("0::/a\n", {"b/memory.max": 2**20}, ALL),
    ("9:cpu:/job\n4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": 2**20,
                                           "memory/memory.limit_in_bytes": 2**63 - 4096}, 2**20),
    ("4:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, ALL), ("", {}, ALL)])
def test_the_least_limit_of_a_processs_groups_counts(groups, own, limits, expected):
    groups(own, limits)
    assert memory.machine_memory() == expected


def test_the_cache_of_sampling_is_a_part_of_what_is_allowed(groups):
    from tiny import CONFIG

    groups("0::/\n", {"memory.max": 2**20})
    allowed = rollouts_memory.capacity_for(Transformer(CONFIG), 1000, 512, page=16)
    groups("0::/\n", {"memory.max": 2**21})
    assert 0 < allowed < rollouts_memory.capacity_for(Transformer(CONFIG), 1000, 512, page=16) <= 2 * allowed + 1
