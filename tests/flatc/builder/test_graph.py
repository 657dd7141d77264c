"""The builder gives verified modules, and errors that show both shapes and the dims that disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, FileLineColLoc, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser

from flatc.builder import (
    Graph,
    Tensor,
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
from flatc.dialects.attn import Attn, AttnOp, MaskOp, shape_of
from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.masks import And, Causal, Chunk, FirstN, Or, Prefix, Window

AT = Position("bad.flat", 5, 3, 4)


def reparsed(module: ModuleOp) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Func, Attn):
        context.load_dialect(dialect)
    return Parser(context, str(module)).parse_module()


def op_names(module: ModuleOp) -> list[str]:
    return [op.name.removeprefix("attn.") for op in module.walk() if isinstance(op, AttnOp)]


def qkv(g: Graph, keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    q = g.input("q", [1, 4, 7, 8])
    return q, g.input("k", [1, 2, keys, 8]), g.input("v", [1, 2, keys, 16])


def llama(sequence: int, cached: int) -> ModuleOp:
    g = Graph("llama", dtype="bf16", softmax="f32", dims={"S": sequence, "P": cached})
    x = g.input("x", [1, sequence, 64])
    caches = [g.cache(name, [1, 2, cached, 8]) for name in ("ck", "cv")]
    wq, wk, wv, wo = (
        g.weight(n, [64, size]) for n, size in zip(("wq", "wk", "wv", "wo"), (64, 16, 16, 64), strict=True)
    )
    n = g.rmsnorm(x)
    q = g.rope(g.heads(n @ wq, 8), start=cached, base=500000)
    k = g.append(caches[0], g.rope(g.heads(n @ wk, 2), start=cached, base=500000))
    v = g.append(caches[1], g.heads(n @ wv, 2))
    g.output(x + g.merge(g.attention(q, k, v, mask=causal())) @ wo, names=["y"])
    return g.module()


@pytest.mark.parametrize(("sequence", "cached"), [(13, 0), (1, 13)])
def test_a_layer_in_two_phases(sequence: int, cached: int) -> None:
    module = llama(sequence, cached)
    assert module.is_structurally_equivalent(reparsed(module))
    text, keys = str(module), sequence + cached
    assert f'%ck: tensor<1x2x{cached}x8xbf16> {{flat.name = "ck", flat.kind = "cache"}}' in text
    assert 'flat.names = ["y"]' in text
    assert f"flat.dims = {{S = {sequence} : i64, P = {cached} : i64}}" in text
    assert f"by <causal(offset = {cached})>" in text
    assert f"(tensor<1x8x{sequence}x8xbf16>, tensor<1x2x{keys}x8xbf16>) -> tensor<1x8x{sequence}x{keys}xf32>" in text


def test_variants_and_the_order_of_score_ops() -> None:
    g = Graph("variants", dtype="bf16")
    q, k, v = qkv(g)
    table, sink = g.weight("table", [8, 4]), g.weight("sink", [4])
    pad, doc = g.input("pad", [1, 9], "bool"), g.input("doc", [1, 9], "i32")
    bias = alibi() + t5_relative(table, buckets=8) + g.input("b", [7, 9])
    g.output(g.attention(q, k, v, mask=causal() & valid(pad) & same(doc), bias=bias, softcap=50.0, sink=sink, scale=1))
    module = g.module()
    assert op_names(module) == ["logit", "softcap", "alibi", "t5_relative", "bias", "mask", "softmax", "attend"]
    assert module.is_structurally_equivalent(reparsed(module))


def test_masks_resolve_their_offset_to_keys_minus_queries() -> None:
    g = Graph("masks")
    q, k, v = qkv(g)
    g.output(
        g.attention(q, k, v, mask=causal() & (window(5, 1) | first(2) | prefix(3)) & chunk(4)),
        g.attention(q, k, v, mask=causal(0) | window(5, offset=7) & chunk(4, offset=1)),
    )
    found = [op.symbolic.data for op in g.module().walk() if isinstance(op, MaskOp) and op.symbolic]
    assert found == [
        And((Causal(2), Or((Window(5, 1, 2), FirstN(2), Prefix(3))), Chunk(4, 2))),
        Or((Causal(0), And((Window(5, 0, 7), Chunk(4, 1))))),
    ]


def test_a_bool_tensor_is_a_mask_and_alone_or_with_others() -> None:
    g = Graph("masks")
    q, k, v = qkv(g)
    keep = [g.input(f"keep{i}", [7, 9], "bool") for i in range(2)]
    g.output(g.attention(q, k, v, mask=keep[0]), g.attention(q, k, v, mask=causal() & keep[0] & keep[1]))
    assert op_names(g.module()).count("mask") == 3


def test_element_types_of_each_stage() -> None:
    g = Graph("types", dtype="f16", softmax="f32")
    q, k, v = qkv(g)
    scores = g.logit(q, k)
    assert (scores.dtype, g.attention(q, k, v).dtype, g.cast(q, "f8E4M3FN").dtype) == ("f32", "f16", "f8E4M3FN")
    k8, v8 = g.input("k8", [1, 2, 9, 8], "i8"), g.input("v8", [1, 2, 9, 16], "i8")
    assert g.attention(q, k8, v8).dtype == "f16"
    assert Graph("x", dtype="f64").softmax == "f64"


def test_accumulators_may_differ_from_scores_and_outputs_take_the_wider_type() -> None:
    g = Graph("types", dtype="f16", softmax="bf16", accumulate="f32")
    q, k, v = (g.input(n, [1, 1, 3, 8], t) for n, t in (("q", "bf16"), ("k", "f8E5M2"), ("v", "f8E4M3FN")))
    g.output(g.attention(q, k, v), g.attention(k, k, q), names=["a", "b"])
    text = str(g.module())
    assert text.count("accumulate f32") == 4
    assert text.count("tensor<1x1x3x3xbf16> -> tensor<1x1x3x3xbf16>") == 2  # scores to probabilities


def test_layer_functions() -> None:
    g = Graph("layer")
    x, w, b = g.input("x", [2, 3, 8]), g.weight("w", [8, 8]), g.weight("b", [8])
    for y in (
        g.layernorm(x, w_norm := g.weight("n", [8]), b, epsilon=1e-3),
        g.rmsnorm(x, w_norm),
        g.linear(x, w, b),
        0.5 * x * 2 * x + b,
        *(getattr(g, kind)(x) for kind in ("gelu", "gelu_tanh", "silu", "relu", "sigmoid", "tanh")),
        g.merge(g.rope(g.heads(x, 2), dims=2, interleaved=True)),
    ):
        assert y.shape == (2, 3, 8)
        g.output(y)
    module = g.module()
    assert module.is_structurally_equivalent(reparsed(module))
    assert 'flat.names = ["out0", "out1"' in str(module)
    assert g.module() is module


def test_a_projection_takes_its_bias_along_unless_it_is_read_elsewhere() -> None:
    g = Graph("g")
    x, w, b = g.input("x", [2, 8]), g.weight("w", [8, 4]), g.weight("b", [4])
    kept = x @ w
    g.output(b + x @ w, kept, kept + b)
    assert op_names(g.module()) == ["linear", "linear", "add"]


def test_positions_and_names_reach_the_ops() -> None:
    g = Graph("g")
    q, k, v = qkv(g)
    a = g.bind("a", g.attention(q, k, v, mask=causal(at=Position("g.flat", 9, 2)), at=Position("g.flat", 8, 1)))
    g.output(a)
    lines = {
        op.name: op.location.line.data
        for op in g.module().walk()
        if isinstance(op, AttnOp) and isinstance(op.location, FileLineColLoc)
    }
    assert lines == {"attn.logit": 8, "attn.mask": 9, "attn.softmax": 8, "attn.attend": 8}
    assert "%a = attn.attend" in str(g.module())
    assert 'flat.names = ["a"]' in str(g.module())
    assert shape_of(a.value) == (1, 4, 7, 16)


Wrong = Callable[[Graph, Tensor, Tensor, Tensor, Tensor], Any]
WRONG: dict[str, Wrong] = {
    "cannot multiply [2, 8, 64] by [2, 8, 64]\n   = note: the last dim of the left side is 64,"
    " the first of the right side is 8": lambda g, x, q, k, v: g.linear(x, x, at=AT),
    "k [1, 2, 9, 8] and v [1, 2, 5, 8] differ in the number of keys": lambda g, x, q, k, v: g.attention(
        q, k, g.input("v5", [1, 2, 5, 8]), at=AT
    ),
    "q [1, 4, 7, 8] and k [1, 2, 9, 16] differ in d_qk\n   = note: d_qk is 8 in q (dim 3)": (
        lambda g, x, q, k, v: g.attention(q, v, v, at=AT)
    ),
    "q [1, 2, 9, 8] has 2 heads, which is no multiple of the 4 heads of": lambda g, x, q, k, v: g.logit(k, q, at=AT),
    "use heads(x, H) to split": lambda g, x, q, k, v: g.attention(x, k, v, at=AT),
    "the cap is -1.0": lambda g, x, q, k, v: g.attention(q, k, v, softcap=-1, at=AT),
    "the scale is inf": lambda g, x, q, k, v: g.attention(q, k, v, scale=float("inf"), at=AT),
    "bias [2, 8, 64] does not broadcast to scores [1, 4, 7, 9]": lambda g, x, q, k, v: g.attention(
        q, k, v, bias=x, at=AT
    ),
    "sink has shape [2, 8, 64], expected [4]": lambda g, x, q, k, v: g.attention(q, k, v, sink=x, at=AT),
    "use bool (i1)": lambda g, x, q, k, v: g.attention(q, k, v, mask=valid(g.input("p", [1, 9])), at=AT),
    "cannot be combined with |": lambda g, x, q, k, v: causal(at=AT) | valid(x),
    "shows no key to any row": lambda g, x, q, k, v: window(0, at=AT),
    "make the size at least 1": lambda g, x, q, k, v: chunk(0, at=AT),
    "make the count at least 1": lambda g, x, q, k, v: first(-1, at=AT),
    "make the length at least 1": lambda g, x, q, k, v: prefix(0, at=AT),
    "expected [32, query heads]": lambda g, x, q, k, v: t5_relative(x, buckets=32, at=AT),
    "cannot split [2, 8, 64] into 5 heads": lambda g, x, q, k, v: g.heads(x, 5, at=AT),
    "cannot split [2, 8, 64] into 0 heads": lambda g, x, q, k, v: g.heads(x, 0, at=AT),
    "rope cannot rotate 3 features": lambda g, x, q, k, v: g.rope(q, dims=3, at=AT),
    "positions count from 0": lambda g, x, q, k, v: g.rope(q, start=-1, at=AT),
    "did you mean 'gelu'": lambda g, x, q, k, v: g.activation("glu", x, at=AT),
    "dim -3 is 2 on the left side and 4 on the right side": lambda g, x, q, k, v: g.add(x, q, at=AT),
    "mixes element types f32 and f16": lambda g, x, q, k, v: g.add(x, g.cast(x, "f16"), at=AT),
    "unknown element type 'fp16'": lambda g, x, q, k, v: g.cast(x, "fp16", at=AT),
    "'q' is declared twice": lambda g, x, q, k, v: g.weight("q", [1], at=AT),
    "dim 1 of [2, 0] is 0": lambda g, x, q, k, v: g.input("z", [2, 0], at=AT),
    "dim 0 of [-2] is -2": lambda g, x, q, k, v: g.input("z", [-2], at=AT),
    "the largest dim is 2**40": lambda g, x, q, k, v: g.input("z", [2**40 + 1], at=AT),
    "the largest tensor has 2**62": lambda g, x, q, k, v: g.input("z", [2**40, 2**23], at=AT),
    "only the length of a rank-4 cache": lambda g, x, q, k, v: g.cache("z", [1, 0, 0, 8], at=AT),
    "dim 2 of [1, 2, 0, 8] is 0": lambda g, x, q, k, v: g.attention(
        q, g.cache("z", [1, 2, 0, 8]), g.cache("zz", [1, 2, 0, 8]), at=AT
    ),
    "scores cannot be computed in i8": lambda g, x, q, k, v: Graph("z", softmax="i8", at=AT),
    "'x' is already an output": lambda g, x, q, k, v: g.output(x, x, at=AT),
    "a tensor of graph 'other' is used in graph 'g'": lambda g, x, q, k, v: g.output(
        Graph("other").input("o", [1]), at=AT
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_are_explained_where_they_are(message: str) -> None:
    g = Graph("g")
    x = g.input("x", [2, 8, 64])
    q, k, v = g.input("q", [1, 4, 7, 8]), g.input("k", [1, 2, 9, 8]), g.input("v", [1, 2, 9, 16])
    with pytest.raises(FlatcError) as caught:
        WRONG[message](g, x, q, k, v)
    assert str(caught.value).startswith("bad.flat:5:3: error: ")
    assert message in str(caught.value)


def test_a_graph_needs_an_output_and_is_closed_by_module() -> None:
    g = Graph("g", at=AT)
    x = g.input("x", [2])
    with pytest.raises(FlatcError, match="graph 'g' has no output"):
        g.module()
    g.output(x)
    g.module()
    with pytest.raises(FlatcError, match="graph 'g' is closed"):
        g.relu(x)


def test_what_no_output_needs_is_dropped_except_cache_writes() -> None:
    g = Graph("g")
    q, k, v = qkv(g)
    with pytest.raises(FlatcError):
        g.attention(q, k, v, softcap=-1)
    g.append(g.cache("c", [1, 2, 3, 8]), g.rope(k))
    g.relu(g.gelu(q))
    g.output(g.attention(q, k, v))
    assert op_names(g.module()) == ["rope", "append", "logit", "softmax", "attend"]
