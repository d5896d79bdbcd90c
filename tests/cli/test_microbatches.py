"""By default a step is computed in as many parts as the machine's memory asks for; flags that are given are kept."""

import dataclasses
import functools
import types

import jax
import pytest
from tiny import one_device

from cli import microbatches
from models.activations import bytes_of_position
from models.config import PRESETS
from models.settings import LoRAConfig
from sharding import memory
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement

SMOLLM2 = PRESETS["smollm2-135m"]


@dataclasses.dataclass(frozen=True)
class Flags:
    num_microbatches: int | None = None
    microbatch_tokens: int | None = None
    batch_size: int = 8
    dtype: str = "bfloat16"
    remat: str = "none"
    lora: LoRAConfig | None = LoRAConfig(rank=16)


@pytest.fixture
def machine(monkeypatch):
    def of(gibibytes):
        monkeypatch.setattr(memory, "machine_memory", lambda: gibibytes * 2**30)

    of(16)
    return of


def split(longest, objective=None, group=1, layout=None, **flags):
    return microbatches.with_microbatches_of(Flags(**flags), SMOLLM2, longest, objective, layout or one_device(),
                                             group).num_microbatches


def tokens(longest, objective=None, layout=None, **flags):
    return microbatches.with_microbatch_tokens(Flags(**flags), SMOLLM2, longest, objective,
                                               layout or one_device()).microbatch_tokens


def test_a_machine_splits_what_it_does_not_hold(machine, capsys):
    assert split(288) == 1
    assert not capsys.readouterr().out
    parts = split(2048)
    assert parts in (2, 4, 8)
    assert f"in {parts} parts" in capsys.readouterr().out
    assert parts <= split(2048, group=2) <= 8
    assert split(2048, lora=None) >= parts  # AdamW's moments lie beside it
    assert split(2048, remat="full") == 1
    machine(512)
    assert split(2048) == 1
    machine(1)  # holds no row: one at a time is all that can be done
    assert split(8192, batch_size=7) == 7


def test_no_part_has_more_empty_rows_than_the_whole(machine):
    """Rows are split over the mesh first: a part has one of each device at the least."""
    machine(1)
    layout = make_layout(MeshConfig(data=4, fsdp=2))
    assert [split(8192, layout=layout, batch_size=rows) for rows in (8, 16, 24, 7, 20)] == [1, 2, 3, 1, 3]
    # 17 rows are 24 on 8 devices; 2 parts of 16 would be 32, where 3 of 8 are no more
    assert microbatches.num_parts(Placement(17, 1, layout), 100, 2000) == 3
    machine(64)
    assert 1 < split(2048, layout=layout, batch_size=64) == split(2048, batch_size=64)  # all devices are this machine's


def test_what_is_given_is_kept_and_a_coupled_loss_is_whole(machine):
    machine(1)
    assert split(8192, num_microbatches=2) == 2
    assert split(8192, types.SimpleNamespace(couples_rows=True)) == 1
    assert tokens(8192, microbatch_tokens=99) == 99
    assert tokens(8192, types.SimpleNamespace(couples_rows=True)) == microbatches.MOST_TOKENS


def test_online_micro_batches_are_bounded_by_memory_on_cpus_alone(machine, monkeypatch):
    small = tokens(320)
    assert 2_000 < small < microbatches.MOST_TOKENS
    assert small * bytes_of_position(dataclasses.replace(SMOLLM2, dtype="bfloat16"), 320) < 8 * 2**30
    assert tokens(320, layout=make_layout(MeshConfig(data=8))) == small // 8
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert tokens(320) == microbatches.MOST_TOKENS
    assert split(8192) == 1


def test_less_is_kept_where_more_is_computed_again():
    order = [bytes_of_position(dataclasses.replace(SMOLLM2, dtype="bfloat16", remat=each), 288)
             for each in ("none", "dots", "full")]
    assert order == sorted(order, reverse=True)


def test_weights_of_attention_are_counted_of_rows_that_keep_them():
    """Scores of one row of 896 are few enough to be kept, those of 1024 are not."""
    of = functools.partial(bytes_of_position, dataclasses.replace(SMOLLM2, dtype="bfloat16"))
    assert of(896) - of(1024) == SMOLLM2.num_layers * 2 * SMOLLM2.num_heads * 896


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "rows", "length"), [
    ("none", 4, 256), ("none", 1, 896), ("none", 1, 1024), ("dots", 4, 256), ("full", 4, 256)])
def test_the_estimate_is_what_xla_takes(remat, rows, length):
    """Of the gradient of all weights, but for what does not grow with the number of layers."""
    import flax.linen as nn
    import jax.numpy as jnp

    from models.transformer import Transformer, init_variables

    def temporaries(layers):
        config = dataclasses.replace(SMOLLM2, num_layers=layers, vocab_size=64, dtype="bfloat16", remat=remat,
                                     param_dtype="bfloat16")
        model = Transformer(config)
        params = nn.meta.unbox(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))["params"]
        tokens = jnp.ones((rows, length), int)
        total = jax.grad(lambda params: model.apply({"params": params}, *[tokens] * 3).astype(float).sum())
        return jax.jit(total).lower(params).compile().memory_analysis().temp_size_in_bytes

    config = dataclasses.replace(SMOLLM2, dtype="bfloat16", remat=remat)
    grown = (temporaries(10) - temporaries(6)) / (rows * length)
    one, none = (bytes_of_position(dataclasses.replace(config, num_layers=number), length) for number in (1, 0))
    estimated = 4 * (one - none)
    assert 0.75 * grown < estimated < 1.35 * grown
