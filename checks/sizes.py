"""The three models whose speed is measured: presets of 0.1 to 1.7 B parameters."""

import dataclasses

from checks.machine import Machine
from models.config import PRESETS, ModelConfig

SIZES = ("smollm2-135m", "qwen3-0.6b", "qwen3-1.7b")
SMALL = dict(zip(SIZES, (64, 128, 256)))
"""of a preset, how wide it is where the machine is to be quick"""


def sized(preset: str, machine: Machine) -> ModelConfig:
    """The preset, or a model as small as a CPU computes in a moment, with the preset's heads and norms."""
    config = dataclasses.replace(PRESETS[preset], dtype="bfloat16")
    if not machine.quick:
        return config
    width = SMALL[preset]
    return dataclasses.replace(config, embed_dim=width, mlp_dim=2 * width, num_heads=2, num_kv_heads=1, num_layers=2,
                               vocab_size=2048, max_length=1024)


def shown_size(preset: str, machine: Machine) -> str:
    return f"{preset} made small ({SMALL[preset]} wide, 2 layers)" if machine.quick else preset
