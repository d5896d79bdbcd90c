"""All checks of a machine, in the order of the table: what is right first, then what is fast."""

import importlib
from collections.abc import Sequence
from typing import Any

from checks.verdicts import Check

PARTS = {"hardware": "checks.hardware", "attention": "checks.attention", "paged attention": "checks.paged",
         "scorer": "checks.scorer", "train step": "checks.steps", "sampling": "checks.sampling",
         "links": "checks.collectives", "training speed": "checks.training_speed",
         "decoding speed": "checks.decoding_speed", "lowering": "checks.lowering"}
"""part -> its module, which is imported where it is wanted"""


def make_checks(quick: bool, parts: Sequence[str]) -> tuple[dict[str, Any], list[Check]]:
    """(the machine as JSON has it, its checks of these parts, or of all)."""
    from checks.machine import described, this_machine

    machine = this_machine(quick)
    modules = [importlib.import_module(PARTS[part]) for part in PARTS if not parts or part in parts]
    return described(machine), [check for module in modules for check in module.checks(machine)]
