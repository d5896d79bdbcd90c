"""The three models whose speed is measured: presets of 0.1 to 1.7 B parameters."""

import dataclasses

from checks.machine import Machine
from models.config import PRESETS, ModelConfig

SIZES = ("smollm2-135m", "qwen3-0.6b", "qwen3-1.7b")
SMALL = 128
"""how wide a preset is where the machine is to be quick"""


def sizes(machine: Machine) -> tuple[str, ...]:
    """All, or the second one made small where the machine is to be quick."""
    return SIZES[1:2] if machine.quick else SIZES


def sized(preset: str, machine: Machine) -> ModelConfig:
    """The preset, or a model as small as a CPU computes in a moment, with the preset's heads and norms."""
    config = dataclasses.replace(PRESETS[preset], dtype="bfloat16")
    if not machine.quick:
        return config
    return dataclasses.replace(config, embed_dim=SMALL, mlp_dim=2 * SMALL, num_heads=2, num_kv_heads=1, num_layers=2,
                               vocab_size=2048, max_length=1024)


def shown_size(preset: str, machine: Machine) -> str:
    return f"{preset} made small ({SMALL} wide, 2 layers)" if machine.quick else preset
