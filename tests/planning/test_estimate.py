"""What a compiled text comes to: time, what bounds it, what to change; printed and as JSON."""

import json

import pytest

from planning.advice import advice
from planning.compiling import Compiled
from planning.estimate import Times, estimate
from planning.report import as_json, printed

TEXT = """HloModule jit_step, num_partitions=4

ENTRY %main (p: f32[64,64]) -> f32[256,64] {
  %p = f32[64,64]{1,0} parameter(0)
  %n = f32[64,64]{1,0} negate(%p), backend_config={"estimated_cycles":"1750000"}
  ROOT %all = f32[256,64]{1,0} all-gather(%n), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(step)/gather"}
}
"""  # noqa: E501

GIB = 2**30
FACTS = {"name": "update", "device_kind": "TPU v5", "platform": "tpu", "coords": [[0, 0, 0], [1, 0, 0], [0, 1, 0],
         [1, 1, 0]], "slices": [0] * 4, "mesh": {"slice": 1, "data": 2, "fsdp": 2, "tensor": 1}, "flops": 4 * 459e9,
         "kernel_flops": 2 * 459e9, "model_flops": 4 * 459e9, "times": 1, "of": 1, "tokens": 1000, "arguments": 2 * GIB,
         "largest_arguments": [["params/embedding", "float32[8]", GIB]], "resident": GIB, "largest_resident": [],
         "jax": "0"}
FLAGS = {"remat": "dots", "num_microbatches": 2}


def made(error="", optimal=1.0, temporaries=GIB, **facts):
    buffers = f"allocation 0: size 16384, page 0, parameter 0, x:\nallocation 1: size {temporaries}, page 0, " \
              f"preallocated-temp:\n"
    return estimate(Compiled(TEXT, buffers, "", FACTS | facts, error, 9.0, optimal))


def test_time_is_cycles_kernels_and_what_is_exchanged_in_turn():
    found = made()
    exchange, memory = 64 * 64 * 4 * 3 / (2 * 90e9), (2 + 1 + 4) * 64 * 64 * 4 / 2765e9
    assert found.times == pytest.approx(Times(1e-3, 0.5e-3 / 0.64, exchange, exchange, 1e-3, memory, True))
    assert found.times.total == pytest.approx(1e-3 + 0.5e-3 / 0.64 + exchange)
    assert found.mfu == pytest.approx(1e-3 / found.times.total)
    assert found.times.bound == "compute"


def test_without_machine_code_time_is_by_the_chips_figures():
    times = made(optimal=None).times
    assert not times.by_compiler
    assert times.core == pytest.approx(1e-3 / 0.85 + times.memory)


def test_an_overlapped_exchange_hides_behind_computing():
    times = Times(2.0, 1.0, 5.0, 0.5, 1.0, 1.0, True)
    assert times.total == 5.0
    assert times.bound == "exchange"
    assert times._replace(exchange=1.0).total == 3.5


def test_what_fits_counts_what_else_is_there():
    assert made().need == 4 * GIB
    assert made().fits
    assert made(resident=92 * GIB).fits
    assert not made(resident=93 * GIB).fits
    refused = made(error="Ran out of memory. Used 96.00G of 94.00G hbm.")
    assert not refused.fits
    assert refused.limit == 94 * GIB
    assert refused.need >= 96 * GIB  # not what was laid out before it was refused


@pytest.mark.parametrize(("facts", "flags", "expected"), [
    ({"temporaries": 96 * GIB}, {}, "--remat full keeps least"),
    ({"temporaries": 96 * GIB}, {}, "--num-microbatches 4 halves"),
    ({"arguments": 96 * GIB}, {}, "--mesh.data 1 --mesh.fsdp 4 splits them"),
    ({"arguments": 96 * GIB, "mesh": FACTS["mesh"] | {"data": 1, "fsdp": 4}}, {}, "a larger topology"),
    ({"flops": 8 * 459e9}, {}, "--remat none recomputes less than dots"),
    ({}, {}, "--num-microbatches 1: larger parts"),
    ({}, {"num_microbatches": 1}, "a larger --batch-size"),
    ({"flops": 1.0, "kernel_flops": 0.0}, {}, "most is exchanged by all-gather over data+fsdp")])
def test_what_to_change(facts, flags, expected):
    assert any(expected in line for line in advice(made(**facts), FLAGS | flags))


def test_it_is_printed_and_written():
    text = printed([made(of=2), made(name="reference", temporaries=100 * GIB)], FLAGS, "scripts.dpo on v5p:2x2x1")
    assert text.startswith("scripts.dpo on v5p:2x2x1: 4 x TPU v5, data 2, fsdp 2\n")
    for line in ("update: fits: 4.00 GiB of 95.00 GiB", "  params/embedding", "computing 1.0 ms (the compiler's cycles",
                 "of the chip's peak)", "bound by compute", "all-gather  data+fsdp", "change: ",
                 "reference: does not fit: 103.00 GiB are needed of 95.00 GiB on each chip, 8.00 GiB too much"):
        assert line in text
    figures = json.loads(json.dumps(as_json(made(), FLAGS)))
    assert figures["fits"] is True
    assert figures["bytes_needed"] == 4 * GIB
    assert figures["exchange"][0]["bytes"] == 64 * 64 * 4 * 3
