"""A tiny model, rows and batches that the tests share."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from batch import Row, pad
from models.config import ModelConfig
from models.lora import LoRAConfig
from models.scoring import score
from models.transformer import Transformer, init_variables
from sharding.mesh import MeshConfig, make_layout
from sharding.placement import Placement

CONFIG = ModelConfig(vocab_size=64, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=8,
                     max_length=256, qk_norm=True, qkv_bias=True, tie_embeddings=True, family="qwen3")
LORA = LoRAConfig(rank=4, alpha=8.0)


def one_device():
    return make_layout(MeshConfig(), jax.devices()[:1])


def random_variables(lora=None, seed=0, config=CONFIG):
    """Unboxed variables, every entry random, LoRA's B too, and large enough that nothing is flat."""
    return jax.tree.map(jnp.asarray, _on_the_host(lora, seed, config))


@functools.cache
def _on_the_host(lora, seed, config):
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.15 * random.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed_variables(lora, config)))


@functools.cache
def boxed_variables(lora=None, config=CONFIG):
    """Shapes and axis names of the variables."""
    return jax.eval_shape(lambda: init_variables(Transformer(config, lora), jax.random.key(0)))


def variables_on(layout, lora=None):
    """random_variables, laid over the mesh as loading lays them."""
    copies = jax.tree.map(np.array, _on_the_host(lora, 0, CONFIG))  # a train step may donate what it is given
    return jax.device_put(copies, layout.tree_shardings(boxed_variables(lora)))


jitted_score = jax.jit(score, static_argnums=0)


def rows(lengths, seed=0, vocab=64):
    """Random rows; about half of the tokens are targets, never the first."""
    random = np.random.default_rng(seed)
    made = []
    for length in lengths:
        mask = (random.random(length) < 0.5).astype(np.float32)
        mask[0], mask[-1] = 0.0, 1.0
        made.append(Row(random.integers(0, vocab, length).astype(np.int32), mask))
    return made


def padded(some_rows, length=None):
    """One [B, T] batch."""
    longest = max(len(row.tokens) for row in some_rows)
    return on_device(pad([row.columns() for row in some_rows], [length or longest]))


def on_device(batch):
    return jax.tree.map(jax.numpy.asarray, batch)


def packed(some_rows, length):
    """The same rows, first-fit into rows of `length`, as one [B, T] batch."""
    bins = []
    for row in some_rows:
        place = next((each for each in bins if sum(len(r.tokens) for r in each) + len(row.tokens) <= length), None)
        if place is None:
            bins.append(place := [])
        place.append(row)
    batch = {name: np.zeros((len(bins), length), np.int32) for name in ("tokens", "positions", "segment_ids")}
    batch["loss_mask"] = np.zeros((len(bins), length), np.float32)
    for at, members in enumerate(bins):
        start = 0
        for segment, row in enumerate(members, 1):
            stop = start + len(row.tokens)
            batch["tokens"][at, start:stop], batch["loss_mask"][at, start:stop] = row.tokens, row.loss_mask
            batch["positions"][at, start:stop] = np.arange(stop - start)
            batch["segment_ids"][at, start:stop] = segment
            start = stop
    return on_device(batch)


def put(batch, layout, num_microbatches=None, group=1):
    """A host batch onto the mesh, as the loop puts it."""
    batch = jax.device_get(batch)
    records = len(batch["tokens"]) // group
    return Placement(records, num_microbatches, layout, group).put(batch, list(range(records)))
