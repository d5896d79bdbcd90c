"""One decoder transformer in Flax Linen: Llama, SmolLM2, Mistral and Qwen by configuration alone.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU mlp, stacked by nn.scan, so that
every block parameter has a leading [L]. Collections: `params`; `lora`, optional; `cache`, of a block and only when
decoding (models/decoding.py). B rows, T positions, D embed, N query heads, K kv heads, H head dim,
F mlp, L layers.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from models.attention import attend
from models.config import SLIDING, ModelConfig
from models.embedding import look_up
from models.linear import add_up, aside, matmul
from models.lora import LoRAConfig
from models.paged_attention import PAGES, attend_to_pages, write_to_pages
from models.places import Places, SharedPrompt
from models.remat import LAYER_INPUT, MATMUL, POLICIES, computed_again
from models.rope import cos_sin, rotate
from sharding.layout import Layout, constrain


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32, given in compute dtype (Zhang & Sennrich 2019, arXiv:1910.07467).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("features",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(self.config.param_dtype))
        return computed_again(self._normed)(x, scale)

    def _normed(self, x: Float[Array, "... D"], scale: Float[Array, " D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.config.norm_eps)
        return (normed * scale.astype(jnp.float32)).astype(self.config.dtype)


class Linear(nn.Module):
    """x @ kernel (+ bias) (+ lora.scale * x @ A @ B, where the `lora` collection has this layer), x's dimensions behind
    the length being one to the kernel, and its columns `features`."""

    config: ModelConfig
    features: tuple[int, ...]
    axes: tuple[str, str]
    use_bias: bool = False
    lora: LoRAConfig | None = None
    training: bool = False
    layout: Layout | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T *inner"], beside: Float[Array, "B T *inner"] | None = None,
                 ) -> Float[Array, "B T *outer"]:
        """The adapter reads `beside`, which is x (models.linear.aside), where it is given."""
        shape, dtype = (math.prod(x.shape[2:]), math.prod(self.features)), jnp.dtype(self.config.dtype)
        stored = jnp.dtype(self.config.param_dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), self.axes)
        y = matmul(x, self.param("kernel", init, shape, stored), self.axes, self.layout, self.features)
        if self.use_bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:]),
                              shape[1:], stored)
            y = y + bias.astype(dtype).reshape(self.features)
        if self.lora is not None and (self.is_initializing() or self.has_variable("lora", "a")):
            y = y + self._adapter(x if beside is None else beside, shape)
        return checkpoint_name(y, MATMUL)

    def _adapter(self, x: Float[Array, "B T *inner"], shape: tuple[int, int]) -> Float[Array, "B T *outer"]:
        """A is uniform with variance 1 / (3 in), as torch's Linear and PEFT have it; B is zero."""
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def zeros(shape: tuple[int, ...]) -> Any:
            return nn.LogicallyPartitioned(jnp.zeros(shape, jnp.float32), ("rank", self.axes[1]))

        def random(shape: tuple[int, ...]) -> Any:
            value = uniform(self.make_rng("lora"), shape, jnp.float32)
            return nn.LogicallyPartitioned(value, (self.axes[0], "rank"))

        a = self.variable("lora", "a", random, (shape[0], self.lora.rank)).value
        b = self.variable("lora", "b", zeros, (self.lora.rank, shape[1])).value
        x = nn.Dropout(self.lora.dropout, deterministic=not self.training)(x)
        low = checkpoint_name(matmul(x, a, (self.axes[0], "rank"), self.layout), MATMUL)
        return matmul(low, b * self.lora.scale, ("rank", self.axes[1]), self.layout, self.features)


class Attention(nn.Module):
    """Grouped-query attention; with a `cache` collection, through the pages of the cache."""

    config: ModelConfig
    lora: LoRAConfig | None
    training: bool
    layout: Layout | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], slides: Bool[Array, ""] | None, rope: Any,
                 places: Places) -> Float[Array, "B T D"]:
        config, bias, beside = self.config, self.config.qkv_bias, aside(self.layout, x)
        q = _linear(self, "q", (config.num_heads, config.head_dim), ("embed", "heads"), bias)(x, beside)
        k = _linear(self, "k", (config.num_kv_heads, config.head_dim), ("embed", "kv_heads"), bias)(x, beside)
        v = _linear(self, "v", (config.num_kv_heads, config.head_dim), ("embed", "kv_heads"), bias)(x, beside)
        if config.qk_norm:
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        q = constrain(self.layout, q, "batch", "query_length", "heads", "head_dim")
        k, v = (constrain(self.layout, each, "batch", "key_length", "kv_heads", "head_dim") for each in (k, v))
        if self.has_variable("cache", "keys"):
            out = self._through_pages(q, k, v, places)
        else:
            out = self._attend(q, k, v, places, slides)
        out = constrain(self.layout, out, "batch", "query_length", "heads", "head_dim")
        out = _linear(self, "o", (config.embed_dim,), ("heads", "embed"), config.o_bias)(out)
        return checkpoint_name(add_up(self.layout, out), MATMUL)

    def _attend(self, q: Array, k: Array, v: Array, places: Places, slides: Array | None = None) -> Array:
        """`slides` tells whether this layer has the window, where layers of one scan differ."""
        def through(window: int | None, *arrays: Any) -> Array:
            q, k, v, places = arrays
            return attend(q, k, v, places, places, window, self.config.attention, self.layout)

        window = self.config.sliding_window
        if slides is None:
            return through(window, q, k, v, places)
        return jax.lax.cond(slides, functools.partial(through, window), functools.partial(through, None),
                            q, k, v, places)

    def _through_pages(self, q: Array, k: Array, v: Array, places: Places) -> Array:
        """Writes k and v into the pages where their positions lie, and attends to all of a row's up to its own.

        Keys not after the query are seen: so neither what is not written yet, nor what another context left behind in
        a page.
        """
        held = []
        for name, new in (("keys", k), ("values", v)):
            cached = self.variable("cache", name, lambda: None)
            pages = write_to_pages(cached.value, new, places.table, places.positions, self.config.attention,
                                   self.layout)
            cached.value = constrain(self.layout, pages, *PAGES)
            held.append(cached.value)
        return attend_to_pages(q, *held, places, self.config.sliding_window, self.config.attention, self.layout)


class MLP(nn.Module):
    """SwiGLU: (silu(x gate) * (x up)) down (Shazeer 2020, arXiv:2002.05202)."""

    config: ModelConfig
    lora: LoRAConfig | None
    training: bool
    layout: Layout | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config, beside = self.config, aside(self.layout, x)
        gate = _linear(self, "gate", (config.mlp_dim,), ("embed", "mlp"))(x, beside)
        up = _linear(self, "up", (config.mlp_dim,), ("embed", "mlp"))(x, beside)
        hidden = computed_again(lambda gate, up: nn.silu(gate) * up)(gate, up)
        hidden = constrain(self.layout, hidden, "batch", "query_length", "mlp")
        out = _linear(self, "down", (config.embed_dim,), ("mlp", "embed"))(hidden)
        return add_up(self.layout, out)


def _linear(owner: Attention | MLP, name: str, features: tuple[int, ...], axes: tuple[str, str],
            bias: bool = False) -> Linear:
    """A linear layer of a block, with its adapter where the LoRA configuration names it."""
    lora = owner.lora if owner.lora is not None and name in owner.lora.targets else None
    return Linear(owner.config, features, axes, bias, lora, owner.training, owner.layout, name=name, parent=owner)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a scan body, hence the (carry, None).

    x, the residual stream, is float32: rounded to bfloat16 at each addition, it is most of what sampler and trainer
    differ by (docs/measured.md). It may be split by length between attention and mlp, which see whole rows.
    """

    config: ModelConfig
    lora: LoRAConfig | None
    training: bool
    layout: Layout | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], slides: Bool[Array, ""] | None, rope: Any,
                 places: Places) -> tuple[Float[Array, "B T D"], None]:
        parts = (self.config, self.lora, self.training, self.layout)
        x = checkpoint_name(x, LAYER_INPUT)
        normed = whole_rows(self.layout, RMSNorm(self.config, name="attn_norm")(x))
        x = x + Attention(*parts, name="attn")(normed, slides, rope, places)
        normed = whole_rows(self.layout, RMSNorm(self.config, name="mlp_norm")(x))
        x = x + MLP(*parts, name="mlp")(normed)
        return constrain(self.layout, x, "batch", "residual_length", "features"), None


def whole_rows(layout: Layout | None, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """x as the columns of a layer's first matrices need it, which `tensor` splits."""
    return constrain(layout, x, "batch", "query_length", "features")


class Transformer(nn.Module):
    """Tokens to the last hidden states (after the final norm); models/scoring.py turns them into scores."""

    config: ModelConfig
    lora: LoRAConfig | None = None
    training: bool = False
    """dropout is on; needs the rng `dropout`"""
    layout: Layout | None = None
    """where its arrays lie; None: on one device"""

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"],
                 segment_ids: Int[Array, "B T"],
                 shared: SharedPrompt | None = None, lengths: Int[Array, " B"] | None = None) -> Float[Array, "B T D"]:
        """`shared` and `lengths`: see models.places.Places."""
        config = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        embedding = self.param("embedding", init, (config.vocab_size, config.embed_dim), jnp.dtype(config.param_dtype))
        x = look_up(embedding, tokens, config.dtype, self.layout)
        x = constrain(self.layout, x, "batch", "residual_length", "features")
        layers = _stacked_blocks(config)(config, self.lora, self.training, self.layout, name="layers")
        slides = None if config.layer_types is None else jnp.array([kind == SLIDING for kind in config.layer_types])
        x, _ = layers(x, slides, cos_sin(config, positions), Places(positions, segment_ids, shared, lengths))
        if config.reward_head:
            self._reward_head()
        elif not config.tie_embeddings:
            head = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed", "vocab"))
            self.param("lm_head", head, (config.embed_dim, config.vocab_size), jnp.dtype(config.param_dtype))
        return whole_rows(self.layout, RMSNorm(config, name="final_norm")(x))

    def _reward_head(self) -> None:
        """The scalar head that models/heads.py applies; under LoRA, what is learnt is added to a frozen one."""
        shape = (self.config.embed_dim, 1)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("features", "features"))
        self.param("reward_head", zeros, shape, jnp.dtype(self.config.param_dtype))
        if self.lora is not None and (self.is_initializing() or self.has_variable("lora", "reward_head")):
            self.variable("lora", "reward_head", zeros, None, shape, jnp.float32)


def _stacked_blocks(config: ModelConfig) -> Any:
    block = Block
    if config.remat != "none":
        block = nn.remat(Block, prevent_cse=False, policy=POLICIES[config.remat])
    return nn.scan(
        block, variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "lora": True, "dropout": True}, length=config.num_layers,
        in_axes=(0, nn.broadcast, nn.broadcast),  # whether a layer slides is its own
        metadata_params={nn.PARTITION_NAME: "layers"})


def output_head(config: ModelConfig, params: dict[str, Any]) -> tuple[Float[Array, "a b"], bool]:
    """The vocabulary projection as it is stored, and whether it is the embedding: [V, D] if so, else the lm_head's
    [D, V]."""
    return (params["embedding"], True) if config.tie_embeddings else (params["lm_head"], False)


def output_kernel(config: ModelConfig, params: dict[str, Any]) -> Float[Array, "D V"]:
    """The vocabulary projection, as a matrix that hidden states are multiplied with."""
    head, tied = output_head(config, params)
    return head.T if tied else head


def init_variables(model: Transformer, key: jax.Array) -> dict[str, Any]:
    """Random `params` (and `lora`, B zero) with their axis names (Linen boxes)."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    params_key, lora_key = jax.random.split(key)
    alone = model.clone(layout=None)  # what cannot be laid out is named later, by its place in the tree
    return alone.init({"params": params_key, "lora": lora_key}, tokens, tokens, tokens + 1)
