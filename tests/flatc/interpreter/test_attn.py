"""The interpreter of graphs agrees with attention by its definition, on shapes chosen to be hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flatc.builder import (
    Graph,
    MaskExpr,
    alibi,
    causal,
    chunk,
    first,
    prefix,
    same,
    t5_relative,
    valid,
    window,
)
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.score_functions import t5_buckets
from flatc.interpreter import random_inputs, run_module
from flatc.interpreter.attn import alibi_slopes
from flatc.interpreter.reference import attention

Shape = tuple[int, int, int, int, int, int, int]  # batch, heads, kv heads, queries, keys, d_qk, d_v

SHAPES: list[Shape] = [
    (1, 1, 1, 1, 3, 4, 4),
    (1, 4, 4, 7, 3, 80, 80),
    (3, 4, 2, 7, 130, 80, 16),
    (1, 6, 1, 129, 130, 16, 24),
    (3, 2, 2, 129, 3, 8, 8),
    (1, 8, 2, 1, 130, 80, 80),
]

Rows = NDArray[np.int64]
Rule = Callable[[Rows, Rows, int], Any]
MASKS: dict[str, tuple[Callable[[], MaskExpr], Rule]] = {
    "causal": (causal, lambda q, k, o: k <= q + o),
    "causal(offset = 0)": (lambda: causal(0), lambda q, k, o: k <= q),
    "window": (lambda: causal() & window(5), lambda q, k, o: (k <= q + o) & (k > q + o - 5)),
    "window(3, 2)": (lambda: window(3, 2), lambda q, k, o: (k - q - o > -3) & (k - q - o <= 2)),
    "prefix": (lambda: causal() | prefix(4), lambda q, k, o: (k <= q + o) | (k < 4)),
    "sinks": (
        lambda: causal() & (window(5) | first(2)),
        lambda q, k, o: (k <= q + o) & ((k > q + o - 5) | (k < 2)),
    ),
    "chunk": (
        lambda: causal() & chunk(4),
        lambda q, k, o: (k <= q + o) & (np.floor((q + o) / 4) == np.floor(k / 4)),
    ),
}


def graph_of(shape: Shape, dtype: str = "f64") -> tuple[Graph, tuple[Any, Any, Any]]:
    batch, heads, kv_heads, queries, keys, d_qk, d_v = shape
    g = Graph("g", dtype=dtype)
    q = g.input("q", [batch, heads, queries, d_qk])
    k = g.input("k", [batch, kv_heads, keys, d_qk])
    return g, (q, k, g.input("v", [batch, kv_heads, keys, d_v]))


def positions(shape: Shape) -> tuple[Rows, Rows, int]:
    return np.arange(shape[3])[:, None], np.arange(shape[4])[None, :], shape[4] - shape[3]


def close(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_masks_on_hostile_shapes(shape: Shape, mask: str | None) -> None:
    g, qkv = graph_of(shape)
    g.output(g.attention(*qkv, mask=MASKS[mask][0]() if mask else None))
    module = g.module()
    inputs = random_inputs(module, 1)
    keep = MASKS[mask][1](*positions(shape)) if mask else None
    (output,) = run_module(module, inputs)
    close(output, attention(inputs["q"], inputs["k"], inputs["v"], keep=keep))


def test_fully_masked_rows_give_zeros_with_and_without_sink() -> None:
    shape = (1, 2, 2, 129, 3, 8, 8)
    g, qkv = graph_of(shape)
    sink = g.weight("sink", [2])
    g.output(g.attention(*qkv, mask=causal()), g.attention(*qkv, mask=causal(), sink=sink))
    for output in run_module(g.module(), random_inputs(g.module(), 0)):
        assert not output[:, :, :126].any()
        assert output[:, :, 126:].all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scale_softcap_bias_and_sink(shape: Shape) -> None:
    g, qkv = graph_of(shape)
    bias = g.input("bias", [shape[1], 1, shape[4]])
    sink = g.weight("sink", [shape[1]])
    g.output(g.attention(*qkv, scale=0.7, softcap=2.5, bias=bias, sink=sink, mask=causal()))
    inputs = random_inputs(g.module(), 2)
    q, k, offset = positions(shape)
    expected = attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        keep=k <= q + offset,
        scale=0.7,
        softcap=2.5,
        bias=inputs["bias"],
        sink=inputs["sink"],
    )
    close(run_module(g.module(), inputs)[0], expected)


def test_runtime_masks_combine_with_symbolic_ones() -> None:
    shape = (3, 4, 2, 7, 19, 8, 8)
    g, qkv = graph_of(shape)
    pads = [g.input(name, [3, 19], "bool") for name in ("pad", "pad2")]
    doc = g.input("doc", [3, 19], "i32")
    keep = g.input("keep", [4, 1, 19], "bool")
    g.output(g.attention(*qkv, mask=causal() & valid(pads[0]) & valid(pads[1]) & same(doc) & keep))
    inputs = random_inputs(g.module(), 3)
    q, k, offset = positions(shape)
    documents = inputs["doc"]
    rows = documents[:, np.arange(7) + offset]
    seen = (k <= q + offset) & (inputs["pad"] & inputs["pad2"])[:, None, None, :] & inputs["keep"]
    seen = seen & (rows[:, None, :, None] == documents[:, None, None, :])
    expected = attention(inputs["q"], inputs["k"], inputs["v"], keep=seen)
    close(run_module(g.module(), inputs)[0], expected)


def test_alibi_matches_the_paper() -> None:
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    shape = (1, 4, 2, 5, 9, 8, 8)
    g, qkv = graph_of(shape)
    g.output(g.attention(*qkv, bias=alibi(), mask=causal()))
    inputs = random_inputs(g.module(), 4)
    q, k, offset = positions(shape)
    bias = np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[:, None, None] * (k - q - offset)
    expected = attention(inputs["q"], inputs["k"], inputs["v"], bias=bias, keep=k <= q + offset)
    close(run_module(g.module(), inputs)[0], expected)


def test_t5_buckets_are_those_of_the_model() -> None:
    distances = np.array([-200, -128, -20, -8, -7, -1, 0, 1, 7, 8, 20, 128])
    assert t5_buckets(distances, 32, 128, True).tolist() == [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31]
    assert t5_buckets(distances, 32, 128, False).tolist() == [31, 31, 17, 8, 7, 1, 0, 0, 0, 0, 0, 0]


def test_t5_bias_reads_the_table_of_its_head() -> None:
    shape = (2, 4, 4, 5, 9, 8, 8)
    g, qkv = graph_of(shape)
    table = g.weight("table", [8, 4])
    g.output(g.attention(*qkv, bias=t5_relative(table, buckets=8, max_distance=16), scale=1))
    inputs = random_inputs(g.module(), 5)
    q, k, offset = positions(shape)
    bias = inputs["table"][t5_buckets(k - q - offset, 8, 16, True)].transpose(2, 0, 1)
    expected = attention(inputs["q"], inputs["k"], inputs["v"], bias=bias, scale=1)
    close(run_module(g.module(), inputs)[0], expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2e-2), ("f16", 2e-3), ("f32", 1e-5)])
def test_narrow_storage_with_f32_softmax(dtype: str, tolerance: float) -> None:
    g, qkv = graph_of((2, 4, 2, 33, 130, 80, 80), dtype)
    g.output(g.attention(*qkv, mask=causal()))
    inputs = random_inputs(g.module(), 6)
    q, k, offset = positions((2, 4, 2, 33, 130, 80, 80))
    expected = attention(inputs["q"], inputs["k"], inputs["v"], keep=k <= q + offset)
    (output,) = run_module(g.module(), inputs)
    (exact,) = run_module(g.module(), inputs, exact=True)
    np.testing.assert_allclose(output.astype(np.float64), expected, atol=tolerance)
    close(exact, expected)


def test_batch_and_heads_may_be_permuted() -> None:
    g, qkv = graph_of((3, 4, 4, 7, 9, 8, 8))
    g.output(g.attention(*qkv, mask=causal()))
    inputs = random_inputs(g.module(), 7)
    turned = {name: value[::-1, [2, 0, 3, 1]] for name, value in inputs.items()}
    expected = run_module(g.module(), inputs)[0][::-1, [2, 0, 3, 1]]
    np.testing.assert_array_equal(run_module(g.module(), turned)[0], expected)


def layer_result(build: Callable[[Graph, Any], Any], x: NDArray[Any]) -> NDArray[Any]:
    g = Graph("layer", dtype="f64")
    g.output(build(g, g.input("x", list(x.shape))))
    return run_module(g.module(), {"x": x})[0]


def test_norms() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 16))
    y = layer_result(lambda g, t: g.layernorm(t, epsilon=0.0), x)
    close(y, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True))
    y = layer_result(lambda g, t: g.rmsnorm(t, epsilon=0.5), x)
    close(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5))


def test_activations() -> None:
    x = np.array([-800.0, -3.0, -0.5, 0.0, 1.0, 2.0, 800.0])
    close(layer_result(lambda g, t: g.gelu(t), x)[3:6], np.array([0, 0.8413447460685429, 1.9544997361036416]))
    close(layer_result(lambda g, t: g.gelu_tanh(t), x)[4], np.array(0.8411919906082768))
    close(layer_result(lambda g, t: g.silu(t), x)[1:6], x[1:6] / (1 + np.exp(-x[1:6])))
    close(layer_result(lambda g, t: g.relu(t), x), np.maximum(x, 0))
    close(layer_result(lambda g, t: g.sigmoid(t), x)[[0, 3, 6]], np.array([0, 0.5, 1]))
    close(layer_result(lambda g, t: g.tanh(t), x), np.tanh(x))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_rotation_by_position(interleaved: bool) -> None:
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 10))
    y = layer_result(lambda g, t: g.rope(t, start=5, base=100.0, dims=8, interleaved=interleaved), x)
    for s, i in np.ndindex(3, 4):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
        turned = (x[..., s, a] + 1j * x[..., s, b]) * np.exp(1j * (5 + s) * 100.0 ** (-i / 4))
        close(y[..., s, a] + 1j * y[..., s, b], turned)
    close(y[..., 8:], x[..., 8:])


def test_prefill_and_decode_through_a_cache_agree() -> None:
    def layer(queries: int, cached: int) -> Graph:
        g = Graph("layer", dtype="f64")
        x = g.input("x", [1, queries, 32])
        caches = [g.cache(name, [1, 2, cached, 8]) for name in ("ck", "cv")]
        q = g.rope(g.heads(x @ g.weight("wq", [32, 32]), 4), start=cached)
        k = g.rope(g.heads(x @ g.weight("wk", [32, 16]), 2), start=cached)
        k, v = g.append(caches[0], k), g.append(caches[1], g.heads(x @ g.weight("wv", [32, 16]), 2))
        g.output(x + g.merge(g.attention(q, k, v, mask=causal())), k, v, names=["y", "k", "v"])
        return g

    inputs = random_inputs(layer(7, 0).module(), 8)
    y, k, v = run_module(layer(7, 0).module(), inputs)
    step = inputs | {"x": inputs["x"][:, 6:], "ck": k[:, :, :6], "cv": v[:, :, :6]}
    close(run_module(layer(1, 6).module(), step)[0], y[:, 6:])


def test_bias_of_a_projection_joins_its_sum() -> None:
    g = Graph("g", dtype="f64")
    x, w, b = g.input("x", [2, 3]), g.weight("w", [3, 4]), g.weight("b", [4])
    g.output(x @ w + b)
    assert str(g.module()).count("attn.add") == 0
    inputs = random_inputs(g.module(), 9)
    close(run_module(g.module(), inputs)[0], inputs["x"] @ inputs["w"] + inputs["b"])


def test_inputs_do_not_depend_on_order() -> None:
    def names(*order: str) -> dict[str, Any]:
        g = Graph("g")
        tensors = [g.input(name, [2, 3]) for name in order]
        g.output(*tensors, names=order)
        return random_inputs(g.module(), 1)

    left, right = names("a", "b"), names("b", "c", "a")
    np.testing.assert_array_equal(left["a"], right["a"])
    assert (left["a"] != left["b"]).any()


def test_wrong_inputs_are_named() -> None:
    g = Graph("g")
    g.output(g.relu(g.input("x", [2, 3])))
    with pytest.raises(FlatcError, match=r"input 'x' is float64\[2, 3\], the graph needs float32\[2, 3\]"):
        run_module(g.module(), {"x": np.zeros((2, 3))})
    with pytest.raises(FlatcError, match="no input 'y'"):
        run_module(g.module(), {"y": np.zeros((2, 3))})
    with pytest.raises(FlatcError, match="no value for input x"):
        run_module(g.module(), {})
