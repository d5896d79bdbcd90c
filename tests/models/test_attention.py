"""Every kernel against a plain loop in float64; masks, packing, padding, windows, gradients, meshes.

The TPU's kernel runs interpreted. Of cuDNN, which needs a GPU, the mask is run by XLA and the lowered calls are read.
"""

import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from errors import InputError
from models import attention, attention_kernels
from models.attention import attend
from models.attention_kernels import cudnn_attention, flash_attention, xla_attention
from models.places import Places
from sharding.layout import COPIES
from sharding.mesh import MeshConfig, make_layout


def plain_attention(q, k, v, queries, keys, window):
    """softmax(q k / sqrt(H)) v, one query of one head at a time; 0 where a query sees nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, seen = np.zeros(q.shape), plain_mask(queries, keys, window)
    for row, time, head in np.ndindex(q.shape[:3]):
        group = head // (q.shape[2] // k.shape[2])
        weights = np.zeros(k.shape[1])
        for key in np.flatnonzero(seen[row, time]):
            weights[key] = np.exp(q[row, time, head] @ k[row, key, group] / np.sqrt(q.shape[3]))
        if weights.any():
            out[row, time, head] = weights @ v[row, :, group] / weights.sum()
    return out


def plain_mask(queries, keys, window):
    """True for keys of the query's segment, at its position or before, fewer than `window` back."""
    (at_q, segment_q), (at_k, segment_k) = ([np.asarray(x).tolist() for x in (side.positions, side.segment_ids)]
                                          for side in (queries, keys))
    mask = np.zeros((len(at_q), len(at_q[0]), len(at_k[0])), bool)
    for row, query, key in np.ndindex(mask.shape):
        if segment_q[row][query] == segment_k[row][key] != 0:
            back = at_q[row][query] - at_k[row][key]
            mask[row, query, key] = back >= 0 and (window is None or back < window)
    return mask


def packed(length, *rows):
    """Places of rows that hold segments of the given lengths, then padding."""
    positions, segment_ids = np.zeros((2, len(rows), length), np.int32)
    for row, parts in enumerate(rows):
        ends = np.cumsum(parts)
        for number, (part, end) in enumerate(zip(parts, ends, strict=True)):
            segment_ids[row, end - part : end] = number + 1
            positions[row, end - part : end] = np.arange(part)
    return Places(jnp.array(positions), jnp.array(segment_ids))


def random_qkv(places, heads=4, kv_heads=2, head_dim=8, seed=0):
    rng, shape = np.random.default_rng(seed), places.positions.shape
    return tuple(jnp.array(rng.normal(size=(*shape, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads))


def real(places):
    return (np.asarray(places.segment_ids) != 0)[:, :, None, None]


def output_and_grads(kernel, qkv, places, window=None):
    """Outputs at real tokens, and the gradients of a loss over these."""
    def loss(q, k, v):
        out = jnp.where(real(places), kernel(q, k, v, places, places, window), 0.0)
        return jnp.sum(jnp.sin(out + jnp.arange(out.shape[-1]))), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return out, *grads


def assert_close(found, expected, atol=2e-5):
    for each, other in zip(found, expected, strict=True):
        assert np.isfinite(each).all()
        np.testing.assert_allclose(each, other, atol=atol, rtol=1e-4)


@pytest.fixture
def interpreted(monkeypatch):
    """Lets flash run on a CPU, in blocks of 128."""
    make = splash_attention_kernel.make_splash_mqa_single_device
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa_single_device",
                        functools.partial(make, interpret=True))
    monkeypatch.setattr(attention_kernels, "FLASH_BLOCK", 128)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """Lets XLA compute what cuDNN is asked for."""
    function = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention",
                        lambda *args, implementation, **kwargs: function(*args, implementation="xla", **kwargs))


@pytest.fixture(params=["xla", "flash", "cudnn"])
def kernel(request, interpreted, cudnn_by_xla):
    return getattr(attention_kernels, f"{request.param}_attention")


PACKED = packed(24, (9, 1, 10), (24,), (5, 12), ())


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, None), (4, 1, 1), (3, 3, 5), (4, 2, 100)])
def test_kernels_equal_the_plain_loop(kernel, heads, kv_heads, window):
    qkv = random_qkv(PACKED, heads, kv_heads)
    out = kernel(*qkv, PACKED, PACKED, window)
    assert np.isfinite(out).all()  # padding too
    np.testing.assert_allclose(np.where(real(PACKED), out, 0.0),
                               plain_attention(*qkv, PACKED, PACKED, window), atol=1e-5)


def test_gradients_equal_differences_of_the_plain_loop(kernel):
    places, window = packed(8, (5, 2)), 3
    qkv, step = [np.float64(x) for x in random_qkv(places, head_dim=4)], 1e-5

    def plain_loss(*qkv):
        return np.sum(np.sin(plain_attention(*qkv, places, places, window) + np.arange(4)))

    _, *grads = output_and_grads(kernel, [jnp.float32(x) for x in qkv], places, window)
    for index, grad in enumerate(grads):
        change = step * np.random.default_rng(1).normal(size=grad.shape)
        up, down = ([x + sign * change if n == index else x for n, x in enumerate(qkv)] for sign in (1, -1))
        np.testing.assert_allclose(np.sum(grad * change), (plain_loss(*up) - plain_loss(*down)) / 2, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["auto", "xla", "flash", "cudnn"])
def test_decoding_with_a_cache_takes_xla(implementation):
    slots = jnp.broadcast_to(jnp.arange(12), (2, 12))
    keys = Places(slots, jnp.ones_like(slots))
    queries = Places(jnp.array([[4, 5], [10, 11]]), jnp.array([[1, 1], [1, 0]]))
    (_, k, v), (q, _, _) = random_qkv(keys), random_qkv(queries, seed=1)
    out = attend(q, k, v, queries, keys, 4, implementation, None)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(jnp.where(real(queries), out, 0.0),
                               plain_attention(q, k, v, queries, keys, 4), atol=1e-5)


@pytest.mark.parametrize(("block", "window"), [(8, None), (10, 7)])
def test_blocks_of_queries_change_nothing(monkeypatch, block, window):
    qkv = random_qkv(PACKED)
    whole = output_and_grads(xla_attention, qkv, PACKED, window)
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", block)
    assert_close(output_and_grads(xla_attention, qkv, PACKED, window), whole)


@pytest.mark.parametrize(("part", "block", "window"), [(8, 512, None), (7, 5, None), (12, 512, 7)])
def test_parts_of_queries_with_the_keys_up_to_their_end_change_nothing(monkeypatch, part, block, window):
    qkv = random_qkv(PACKED)
    whole = output_and_grads(xla_attention, qkv, PACKED, window)
    monkeypatch.setattr(attention_kernels, "PART", part)
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", block)
    assert_close(output_and_grads(xla_attention, qkv, PACKED, window), whole)
    text = jax.jit(lambda *qkv: xla_attention(*qkv, PACKED, PACKED, window)).lower(*qkv).as_text()
    columns = PACKED.positions.shape[1]
    assert f"tensor<{len(PACKED.positions)}x2x2x{columns}x{columns}xf32>" not in text


def test_parts_of_rows_with_known_lengths(monkeypatch):
    row = packed(24, (20,), (24,))
    qkv = random_qkv(row)
    whole = output_and_grads(xla_attention, qkv, row)
    monkeypatch.setattr(attention_kernels, "PART", 8)
    known = row.replace(lengths=jnp.array([20, 24]), starts=jnp.zeros(2, jnp.int32))
    assert_close(output_and_grads(xla_attention, qkv, known), whole)


def test_packed_equals_separate(kernel):
    lengths = (9, 10)
    row = packed(24, lengths)
    qkv = random_qkv(row)
    together = output_and_grads(kernel, qkv, row)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        part = slice(end - length, end)
        alone = output_and_grads(kernel, [x[:, part] for x in qkv], packed(length, (length,)))
        assert_close([each[:, part] for each in together], alone)


def test_padding_has_no_influence(kernel):
    places = packed(20, (8, 6), (20,), (3,), ())
    qkv = random_qkv(places)
    junk = [jnp.where(real(places), x, 1e3 * noise) for x, noise in zip(qkv, random_qkv(places, seed=1), strict=True)]
    found = output_and_grads(kernel, junk, places)
    assert_close(found, output_and_grads(kernel, qkv, places))
    assert all(np.all(np.where(real(places), 0.0, grad) == 0.0) for grad in found[1:])


@pytest.mark.parametrize("window", [1, 128, 129])
def test_a_query_sees_exactly_its_window(kernel, window):
    places = packed(160, (150, 10))
    q = jnp.zeros((1, 160, 1, 160))  # all scores equal: each seen key has the same weight,
    v = jnp.eye(160)[None, :, None]  # and the output says which
    weights = kernel(q, q, v, places, places, window)[:, :, 0]
    np.testing.assert_array_equal(weights > 0, plain_mask(places, places, window))


@pytest.mark.parametrize(("block", "length", "window"), [(128, 300, 130), (384, 400, None)])
def test_flash_equals_xla_over_several_blocks(monkeypatch, interpreted, block, length, window):
    monkeypatch.setattr(attention_kernels, "FLASH_BLOCK", block)
    places = packed(length, (length // 2, length // 3), (length - 7,))
    qkv = random_qkv(places, head_dim=64)
    assert_close(output_and_grads(flash_attention, qkv, places, window),
                 output_and_grads(xla_attention, qkv, places, window))


@pytest.mark.parametrize(("heads", "kv_heads", "rows"), [
    (8, 4, 4),  # a kv head a device
    (8, 2, 4),  # kv heads are repeated for the devices
    (6, 3, 4),  # heads do not divide: all on every device
    (4, 4, 3),  # rows do not divide
])
def test_shards_equal_the_whole(heads, kv_heads, rows):
    places = packed(12, *[(5 + row, 2) for row in range(rows)])
    qkv = random_qkv(places, heads, kv_heads)

    layout = make_layout(MeshConfig(data=1, fsdp=2, tensor=4))

    def shards(q, k, v, places, _, window):
        return attention_kernels._on_shards(layout, lambda q, k, v, p: xla_attention(q, k, v, p, p, window), q, k, v,
                                    places)

    expected = output_and_grads(xla_attention, qkv, places)
    assert_close(output_and_grads(shards, qkv, places), expected)


def test_flash_on_a_mesh_equals_xla(interpreted):
    places = packed(40, (30, 4), (40,))
    qkv = random_qkv(places, head_dim=64)
    expected = output_and_grads(xla_attention, qkv, places, 9)
    flash = functools.partial(flash_attention, layout=make_layout(MeshConfig(data=2, fsdp=1, tensor=4)))
    assert_close(output_and_grads(flash, qkv, places, 9), expected)


def test_cudnn_is_given_a_key_for_every_query(monkeypatch):
    masks = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, mask, **_: masks.append(mask) or q)
    monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)
    cudnn_attention(*random_qkv(PACKED), PACKED, PACKED, 5)
    assert np.tril(masks[0]).any(axis=-1).all()


@pytest.mark.parametrize(("block", "window"), [
    (10, 7), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, None), (10, 1)))])
def test_blocks_of_masks_change_nothing(cudnn_by_xla, monkeypatch, block, window):
    qkv = random_qkv(PACKED)
    expected = output_and_grads(xla_attention, qkv, PACKED, window)
    monkeypatch.setattr(attention_kernels, "MASKED_QUERIES", block)
    assert_close(output_and_grads(cudnn_attention, qkv, PACKED, window), expected)


def of_one_segment(places, starts=False):
    """The places, with what is known where every row holds one segment."""
    used = np.asarray(places.segment_ids) != 0
    return places.replace(lengths=jnp.asarray(used.sum(axis=1), jnp.int32),
                          starts=jnp.asarray(used.argmax(axis=1)) if starts else None)


ONE_SEGMENT = of_one_segment(packed(24, (24,), (5,), (1,), ()))
MOVED = of_one_segment(jax.tree.map(lambda x: jnp.roll(x, 3, axis=1), packed(24, (21,), (5,), (1,), ())), starts=True)


@pytest.mark.parametrize("window", [5, *(pytest.param(window, marks=pytest.mark.slow) for window in (None, 1))])
@pytest.mark.parametrize("places", [ONE_SEGMENT, MOVED], ids=["from column 0", "moved"])
def test_cudnn_by_length_equals_xla(monkeypatch, places, window):
    """Even where what it leaves out is filled with NaN."""
    function = jax.nn.dot_product_attention

    def cudnn(q, k, v, *, implementation, query_seq_lengths, **kwargs):
        out = function(q, k, v, implementation="xla", query_seq_lengths=query_seq_lengths, **kwargs)
        return jnp.where(jnp.arange(q.shape[1])[:, None, None] < query_seq_lengths[:, None, None, None], out, jnp.nan)

    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    qkv = random_qkv(places)
    out = cudnn_attention(*qkv, places, places, window)
    np.testing.assert_allclose(out, plain_attention(*qkv, places, places, window), atol=1e-5)
    junk = [jnp.where(real(places), x, jnp.inf) for x in qkv]
    assert_close(output_and_grads(cudnn_attention, junk, places, window),
                 output_and_grads(xla_attention, qkv, places, window))


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Finds cuDNN's calls and the shape of their q, their settings, and shapes of masks in what a gradient through
    `attend` lowers to for CUDA."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91000)

    def find(places, heads, kv_heads, layout=None, window=20, mapped=False):
        qkv = [x.astype(jnp.bfloat16) for x in random_qkv(places, heads, kv_heads, head_dim=64)]

        def attended(places, *qkv):
            return attend(*qkv, places, places, window, "cudnn", layout.without(*COPIES) if mapped else layout)

        def total(*qkv):
            function = jax.vmap(attended, spmd_axis_name=COPIES) if mapped else attended
            return function(places, *qkv).astype(jnp.float32).sum()

        text = jax.jit(jax.grad(total, (0, 1, 2))).trace(*qkv).lower(lowering_platforms=("cuda",)).as_text()
        calls = re.findall(r"@__cudnn\$(\w+)\(.*: \(tensor<([\dx]+)xbf16>", text)
        settings = re.findall(r"mask_type': '(\w+)|sliding_window_length': (\d+)", text.replace("\\22", "'"))
        masks = re.findall(r"fmhaScaleBiasSoftmax\(.*?: \((?:tensor<\S+>, ){3}tensor<([\dx]+)xbf16>", text)
        return calls, {"".join(each) for each in settings}, {*masks}

    return find


@pytest.mark.parametrize(("places", "window", "settings"), [
    (of_one_segment(packed(64, (60,), (64,))), 20, {"PADDING_CAUSAL", "20"}), (MOVED, None, {"PADDING_CAUSAL", "0"})],
    ids=["from column 0", "moved"])
def test_cudnn_is_told_lengths_and_window_where_it_can_be(cudnn_calls, places, window, settings):
    calls, found, masks = cudnn_calls(places, 6, 2, window=window)
    assert [name for name, _ in calls] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert (found, masks) == (settings, set())


def test_cudnn_has_masks_of_blocks(cudnn_calls, monkeypatch):
    monkeypatch.setattr(attention_kernels, "MASKED_QUERIES", 32)
    calls, _, masks = cudnn_calls(packed(64, (40, 20), (64,)), 6, 2)
    assert calls == [("fmhaScaleBiasSoftmax", "2x32x6x64")] * 2 + [("fmhaScaleBiasSoftmaxBackward", "2x32x6x64")] * 2
    assert masks == {"2x1x32x32", "2x1x32x56"}  # of keys from 8 on: the first of the block sees those from 13 on


def test_cudnn_runs_on_shards(cudnn_calls):
    calls, _, _ = cudnn_calls(packed(64, (40, 20), (64,)), 8, 2, make_layout(MeshConfig(data=1, fsdp=2, tensor=4)))
    assert {shape for _, shape in calls} == {"1x64x2x64"}


def test_cudnn_runs_for_each_copy_of_the_weights(cudnn_calls):
    """As a train step has it, mapped over mesh axes."""
    layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
    places = jax.tree.map(lambda x: jnp.stack([x, x]), packed(32, (20, 10), (32,)))
    calls, _, masks = cudnn_calls(places, 8, 2, layout, mapped=True)
    assert {shape for _, shape in calls} == {"1x32x4x64"}
    assert masks == {"1x4x32x32"}  # of each head


@pytest.mark.parametrize(("backend", "capability", "dtype", "length", "head_dim", "expected"), [
    ("cpu", None, "bfloat16", 256, 64, "xla"),
    ("tpu", None, "bfloat16", 256, 64, "flash"),
    ("tpu", None, "float32", 1000, 80, "flash"),
    ("tpu", None, "bfloat16", 64, 64, "xla"),
    ("gpu", "8.0", "bfloat16", 256, 64, "cudnn"),
    ("gpu", "12.0", "float16", 130, 128, "cudnn"),
    ("gpu", "7.5", "bfloat16", 256, 64, "xla"),
    ("gpu", "gfx942", "bfloat16", 256, 64, "xla"),
    ("gpu", "9.0", "float32", 256, 64, "xla"),
    ("gpu", "9.0", "bfloat16", 255, 64, "xla"),
    ("gpu", "9.0", "bfloat16", 256, 60, "xla"),
    ("gpu", "8.9", "bfloat16", 256, 256, "xla"),
    ("gpu", "9.0", "bfloat16", 256, 256, "cudnn"),
    ("gpu", "9.0", "bfloat16", 256, 264, "xla"),
    ("gpu", "9.0", "bfloat16", 1, 64, "xla"),
])
def test_auto_picks_by_platform(monkeypatch, backend, capability, dtype, length, head_dim, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    q = jnp.zeros((1, length, 2, head_dim), dtype)
    assert attention._choose_kernel("auto", q, q) == expected


@pytest.mark.parametrize("implementation", ["auto", "xla", "flash", "cudnn"])
def test_one_position_takes_xla(implementation):
    q = jnp.zeros((1, 1, 2, 8))  # as in the batch that parameters are initialised with
    assert attention._choose_kernel(implementation, q, q) == "xla"


def test_what_cannot_be_done_is_an_input_error():
    places = packed(6, (6,))
    qkv = random_qkv(places)
    with pytest.raises(InputError, match="unknown attention 'fast'"):
        attend(*qkv, places, places, None, "fast", None)
    with pytest.raises(InputError, match="not float32, 6 and 8"):
        attend(*qkv, places, places, None, "cudnn", None)


def test_the_cpus_program_transposes_no_scores():
    """Nor copies them into another order."""
    q, k, v = (jnp.zeros((2, 48, heads, 16), jnp.bfloat16) for heads in (6, 2, 2))
    at = Places(jnp.tile(jnp.arange(48), (2, 1)), jnp.ones((2, 48), int))
    text = jax.jit(lambda *qkv: xla_attention(*qkv, at, at, None)).lower(q, k, v).compile().as_text()
    moved = re.findall(r" = \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    assert moved  # q, k, v and what comes out
    assert max(math.prod(map(int, shape.split(","))) for shape in moved) < 2 * 6 * 48 * 48


def test_the_gradient_multiplies_scores_in_the_operands_dtype():
    """A float32 factor would have XLA's CPU backend convert the other one, too."""
    q, k, v = (jnp.zeros((2, 48, heads, 16), jnp.bfloat16) for heads in (6, 2, 2))
    at = Places(jnp.tile(jnp.arange(48), (2, 1)), jnp.ones((2, 48), int))
    gradient = jax.grad(lambda qkv: jnp.sum(xla_attention(*qkv, at, at, None).astype(jnp.float32) ** 2))
    products = re.findall(r"dot_general .*: \((.*)\) ->", jax.jit(gradient).lower((q, k, v)).as_text())
    assert sum("x48x48xbf16" in factors for factors in products) == 4  # w v, and to v, to q, to k
    assert not any("f32" in factors for factors in products)
