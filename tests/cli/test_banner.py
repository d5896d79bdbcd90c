"""What a run says of itself when it starts."""

import dataclasses
import types

import numpy as np
import pytest

from cli import banner
from data.sources import DataSource
from scripts import grpo, sft
from sharding.settings import MeshConfig

NAMES = ["model", "devices", "data", "batch", "steps", "compiled", "writes"]
LAYOUT = types.SimpleNamespace(mesh=types.SimpleNamespace(
    devices=np.asarray([types.SimpleNamespace(device_kind="TPU v5p")] * 8), shape={"slice": 1, "data": 2, "fsdp": 4}))


def model(rank):
    return types.SimpleNamespace(lora=rank and types.SimpleNamespace(rank=rank),
                                 config=types.SimpleNamespace(dtype="bfloat16"))


def state(lora):
    params = {"w": np.zeros((1000, 1000), np.float32)}
    return types.SimpleNamespace(params=params, lora=lora, trainable=params if lora is None else lora)


def streams(packing, length=32, sources=(range(180),), row_tokens=20.0, record_rows=1.0):
    return types.SimpleNamespace(packing=packing, length=length, sources=sources, row_tokens=row_tokens,
                                 record_rows=record_rows, lengths=(8, 24, 32))


@pytest.fixture
def flags():
    return sft.Config(model="smol", data=(DataSource("d.jsonl"),), output_dir="runs/a", max_steps=45, save_every=9)


def test_of_rows(flags, capsys):
    told = banner.of_rows(flags, streams("none"), model(4), LAYOUT, state({"a": np.zeros((10, 2000))}))
    banner.tell_banner(told)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES == [*told]
    assert told == {
        "model": "smol: 1.02 M parameters, 0.02 M trained (LoRA of rank 4); weights in float32, matmuls in bfloat16",
        "devices": "8 x TPU v5p; mesh slice 1 data 2 fsdp 4", "data": "180 rows, about 3,600 tokens: d.jsonl",
        "batch": "8 rows, about 160 tokens, in 1 micro-batch", "steps": "45, about 2 epochs",
        "compiled": "a train step for each length of rows that comes up, of 8 24 32",
        "writes": "runs/a: metrics.jsonl, checkpoints every 9 steps"}


def test_rules_are_told(flags):
    flags = dataclasses.replace(flags, mesh=MeshConfig(rules=("residual_length=tensor", "vocab=none")))
    assert banner.of_rows(flags, streams("none"), model(0), LAYOUT, state(None))["devices"] == (
        "8 x TPU v5p; mesh slice 1 data 2 fsdp 4 with residual_length=tensor vocab=none")


def test_of_packed_rows_and_of_a_mixture(flags):
    told = banner.of_rows(flags, streams("first-fit"), model(0), LAYOUT, state(None))
    assert told["model"].startswith("smol: 1.00 M parameters, 1.00 M trained (all); ")
    assert (told["batch"], told["steps"]) == ("8 rows of 32 tokens, in 1 micro-batch", "45, about 3.2 epochs")
    assert told["compiled"] == "one train step, of rows of 32 tokens"
    assert banner.of_rows(flags, streams("none", sources=(range(3), range(4))), model(0), LAYOUT, state(None))[
        "steps"] == "45"


@pytest.mark.parametrize(("steps", "told"), [(1, "1, about 0.0444 epochs"), (60_000, "60,000, about 2,667 epochs")])
def test_steps_and_epochs_are_plain_numbers(flags, steps, told):
    flags = dataclasses.replace(flags, max_steps=steps)
    assert banner.of_rows(flags, streams("none"), model(0), LAYOUT, state(None))["steps"] == told


def test_epochs_are_of_the_rows_that_are_made(flags):
    """A record may be left out, or be several rows."""
    told = banner.of_rows(flags, streams("none", record_rows=0.5), model(0), LAYOUT, state(None))
    assert (told["data"], told["steps"]) == ("180 rows, about 1,800 tokens: d.jsonl", "45, about 4 epochs")
    assert told["batch"].startswith("8 rows, about 160 tokens")


def test_of_prompts():
    flags = grpo.Config(model="smol", data=(DataSource("d.jsonl"),), output_dir="r", max_steps=5, rewards="length",
                        save_every=0)
    told = banner.of_prompts(flags, types.SimpleNamespace(sources=[[1, 2], [3]], eval_prompts=[4]), model(0), LAYOUT,
                             state(None))
    assert [*told] == NAMES
    assert told["data"] == "3 prompts, 1 held out: d.jsonl"
    assert told["batch"] == "8 prompts, 64 completions of up to 256 tokens"
    assert told["writes"] == "r: metrics.jsonl, checkpoints after the last step"
