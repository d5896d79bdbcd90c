"""A program compiled in a process of its own: for simulated devices, and for TPUs."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from errors import InputError
from planning.compiling import Target, compile_for
from planning.facts import describe
from planning.program import Program
from sharding.mesh import make_layout
from sharding.settings import MeshConfig

pytestmark = pytest.mark.slow


def make(devices, size):
    if size < 0:
        raise InputError("a size is positive")
    layout = make_layout(MeshConfig(data=1, fsdp=len(devices)), devices)
    leaf = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=layout.sharding("embed", None))
    function = jax.jit(lambda a: jax.lax.scan(lambda a, _: (a @ a, None), a, None, length=3)[0])
    return Program("product", function, (leaf,), layout)


def test_for_simulated_devices(tmp_path):
    before = dict(jax.config.values)
    done = compile_for(Target(None), make, (64,), describe, tmp_path)
    assert "ENTRY" in done.text
    assert done.facts["flops"] == 3 * 2 * 64**3
    assert done.facts["arguments"] == 64 * 64 * 4 // 8
    assert len(done.facts["coords"]) == 8
    assert dict(jax.config.values) == before


def test_what_is_refused_there_is_said_here(tmp_path):
    with pytest.raises(InputError, match="a size is positive"):
        compile_for(Target(None), make, (-1,), describe, tmp_path)


def tpu():
    return Path(pytest.importorskip("libtpu").__file__).parents[1]


def test_for_tpus_with_machine_code_and_without(tmp_path):
    from planning.estimate import estimate

    target, folders = Target("v5e:2x2", 1, tpu()), [tmp_path / "quick", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
    quick, whole = (compile_for(target, make, (2048,), describe, folder, finish)
                    for folder, finish in zip(folders, (False, True)))
    assert quick.optimal_seconds is None
    least = 3 * 2 * 2048**3 / 4 / 197e12
    found = estimate(whole)
    assert least < found.times.core < 4 * least
    assert 0 < whole.optimal_seconds < 4 * least
    assert found.memory.temporaries == estimate(quick).memory.temporaries
    assert {row.kind for row in found.rows} >= {"all-gather"}


def test_there_is_no_such_topology(tmp_path):
    with pytest.raises(InputError, match="--topology v5e:3x3: there is none .*there are v5e: 1x1, 2x2"):
        compile_for(Target("v5e:3x3", 1, tpu()), make, (64,), describe, tmp_path)


def test_a_plan_is_printed_and_kept(tmp_path):
    flags = f"--topology v5e:2x2 --libtpu {tpu()} --quick --model smollm2-135m --batch-size 8 --max-length 256"
    command = [sys.executable, "-m", "scripts.plan", "sft", *flags.split(), "--json", str(tmp_path / "plan.json")]
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    runs = [subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2)]
    assert "update: fits: " in runs[0].stdout
    assert runs[0].stdout == runs[1].stdout
    assert (tmp_path / "plan.json").exists()
