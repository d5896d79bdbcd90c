"""Whether CPUs compute, by the environment, the devices of a machine and JAX's plugins."""

import importlib.metadata
import importlib.util

import pytest

from sharding import accelerators


@pytest.fixture
def machine(tmp_path, monkeypatch):
    def make(device, installed):
        monkeypatch.setattr(accelerators, "DEVICES", tmp_path)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == installed else None)
        monkeypatch.setattr(importlib.metadata, "entry_points",
                            lambda group: [group] if installed == "jax_plugins" == group else [])
        if device:
            (tmp_path / device).parent.mkdir(exist_ok=True)
            (tmp_path / device).touch()

    return make


@pytest.mark.parametrize(("device", "installed", "expected"), [
    (None, "libtpu", True), (None, "jax_plugins", True), ("null", "jax_plugins", True), ("accel0", None, True),
    ("accel0", "libtpu", False), ("vfio/12", "libtpu", False), ("vfio/vfio", "libtpu", True),
    ("nvidia0", "jax_plugins", False), ("nvidia0", None, True), ("nvidia0", "libtpu", True),
    ("nvidiactl", "jax_plugins", True), ("kfd", "jax_plugins", False), ("dxg", "jax_plugins", False)])
def test_an_accelerator_computes_where_it_is_there_and_its_plugin_is_installed(machine, device, installed, expected):
    machine(device, installed)
    assert accelerators.on_cpus({}) is expected


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("JAX_PLATFORMS", "cpu", True), ("JAX_PLATFORMS", "cuda,cpu", False), ("JAX_PLATFORMS", "cpu,cuda", True),
    ("JAX_PLATFORM_NAME", "CPU", True), ("JAX_PLATFORMS", "", False), ("CUDA_VISIBLE_DEVICES", "", True),
    ("CUDA_VISIBLE_DEVICES", "-1", True), ("CUDA_VISIBLE_DEVICES", "1", False)])
def test_the_environment_says_otherwise(machine, name, value, expected):
    machine("nvidia0", "jax_plugins")
    assert accelerators.on_cpus({name: value}) is expected


def test_jax_platforms_holds_without_devices(machine):
    machine(None, None)
    assert accelerators.on_cpus({"JAX_PLATFORMS": "tpu"}) is False
