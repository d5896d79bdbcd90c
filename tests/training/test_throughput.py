"""FLOPs against the sizes of real parameters, peaks by device kind, memory."""

import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import CONFIG, LORA, boxed_variables

from models.config import PRESETS
from models.lora import LoRAConfig
from training.throughput import device_memory, flops_per_token, peak_flops, throughput_metrics


def _elements(tree, *names):
    return sum(leaf.size for path, leaf in flatten_dict(nn.meta.unbox(tree)).items() if path[-1] in names)


@pytest.mark.parametrize("tie", [True, False])
def test_every_matmul_weight_counts_six_times(tie):
    config = dataclasses.replace(CONFIG, tie_embeddings=tie)
    in_blocks = _elements(boxed_variables(config=config)["params"]["layers"], "kernel")
    weights = in_blocks + config.vocab_size * config.embed_dim
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * 100
    assert flops_per_token(config, 100) == 6 * weights + attention


def test_lora_saves_the_gradients_of_frozen_weights_and_pays_for_its_own():
    adapters = _elements(boxed_variables(LORA)["lora"], "a", "b")
    frozen = flops_per_token(CONFIG, 0) / 6 * 4
    assert flops_per_token(CONFIG, 0, LORA) == frozen + 6 * adapters
    assert flops_per_token(CONFIG, 0, LoRAConfig(rank=0)) == flops_per_token(CONFIG, 0)


def test_attention_looks_no_further_than_the_window():
    windowed = dataclasses.replace(CONFIG, sliding_window=16)
    assert flops_per_token(windowed, 100) == flops_per_token(CONFIG, 16)


def test_a_known_model():
    """Llama 3.1 8B: 7.50e9 matmul weights (8.03e9 parameters less the 0.525e9 of the lookup)."""
    assert flops_per_token(PRESETS["llama3.1-8b"], 0) == pytest.approx(6 * 7.504e9, rel=1e-3)


def _device(kind):
    return types.SimpleNamespace(device_kind=kind)


def test_peaks_by_device_kind():
    assert peak_flops(_device("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak_flops(_device("TPU v5 lite")) == 197e12
    assert peak_flops(_device("NVIDIA A100-SXM4-80GB MIG 1g.10gb")) is None
    assert peak_flops(jax.devices()[0]) is None


def test_utilisation_is_of_all_devices_and_only_where_the_peak_is_known():
    known = [_device("TPU v4")] * 4
    metrics = throughput_metrics(1e9, tokens=550_000, seconds=1.0, devices=known)
    assert metrics == {"tflops_per_second": pytest.approx(550.0), "mfu": pytest.approx(0.5)}
    assert "mfu" not in throughput_metrics(1e9, 100, 1.0, [*known, _device("cpu")])


def test_cpus_report_the_memory_of_the_process():
    before = device_memory()
    block = np.ones(2**26)  # 0.5 GiB
    grown = device_memory()["host_memory_gib"]
    assert list(before) == ["host_memory_gib"]
    assert block.nbytes / 2**30 < grown < 1000


def test_accelerators_report_their_fullest_device(monkeypatch):
    devices = [types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak * 2**30})
               for peak in (1, 3, 2)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"device_memory_gib": 3.0}
