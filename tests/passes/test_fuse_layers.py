"""`fuse-layers`: which vector operators share a kernel, and that the graph computes what it did."""

from __future__ import annotations

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import Graph
from flatc.dialects.attn import SplitHeadsOp
from flatc.dialects.flat import FusedOp
from flatc.interpreter import random_inputs, run_module
from flatc.passes.fuse_layers import FuseLayersPass


def kernels(graph: Graph) -> list[str]:
    """The names of the kernels; the fused module is verified and gives the numbers of the graph."""
    module = graph.module()
    fused = fuse(module)
    inputs = random_inputs(module, 0)
    for output, expected in zip(run_module(fused, inputs), run_module(module, inputs), strict=True):
        np.testing.assert_array_equal(output, expected)
    return [op.kernel.data for op in fused.walk() if isinstance(op, FusedOp)]


def fuse(module: ModuleOp) -> ModuleOp:
    copy = module.clone()
    FuseLayersPass().apply(Context(), copy)
    copy.verify()
    return copy


def test_a_chain_goes_on_past_operators_that_it_has_nothing_to_do_with():
    graph = Graph("gate", dtype="f64")
    x, w, u = graph.input("x", [3, 4]), graph.weight("w", [4, 6]), graph.weight("u", [4, 6])
    gate = graph.silu(x @ w)
    graph.output(gate * (x @ u))
    assert kernels(graph) == ["linear_w", "linear_u", "silu_multiply"]


def test_of_two_chains_that_meet_the_first_goes_on():
    graph = Graph("meet", dtype="f64")
    x, y = graph.input("x", [3, 4]), graph.input("y", [3, 4])
    graph.output(graph.relu(x) + graph.tanh(y))
    assert kernels(graph) == ["tanh", "relu_add"]


def test_what_is_used_later_is_a_result_too():
    graph = Graph("residual", dtype="f64")
    x, h, w = graph.input("x", [3, 4]), graph.input("h", [3, 4]), graph.weight("w", [4, 4])
    total = x + h
    graph.output(total + graph.rmsnorm(total) @ w)
    assert kernels(graph) == ["add_rmsnorm", "linear_w", "add"]
    fused = [op for op in fuse(graph.module()).walk() if isinstance(op, FusedOp)]
    assert [len(op.results) for op in fused] == [2, 1, 1]


def test_a_chain_ends_where_moving_it_would_come_too_late():
    """The product needs the sum before the norm can run behind it."""
    graph = Graph("early", dtype="f64")
    x, w = graph.input("x", [3, 4]), graph.weight("w", [4, 4])
    scaled = graph.relu(x)
    product = scaled @ w
    graph.output(graph.multiply(scaled, product))
    assert kernels(graph) == ["relu", "linear_w", "multiply"]


def test_a_chain_ends_where_the_shape_changes():
    graph = Graph("broadcast", dtype="f64")
    x, row = graph.input("x", [3, 4]), graph.input("row", [4])
    graph.output(x + graph.tanh(row))
    assert kernels(graph) == ["tanh", "add"]


def test_the_second_kernel_of_a_name_is_numbered():
    graph = Graph("twice", dtype="f64")
    x, w = graph.input("x", [3, 4]), graph.weight("w", [4, 4])
    graph.output((x @ w) @ w)
    assert kernels(graph) == ["linear_w", "linear_w_1"]


def test_heads_stay_outside():
    """Splitting and merging heads moves nothing: it is no work of a kernel."""
    graph = Graph("heads", dtype="f64")
    x, w = graph.input("x", [2, 3, 4]), graph.weight("w", [4, 4])
    graph.output(graph.heads(x @ w, 2))
    assert kernels(graph) == ["linear_w"]
    heads = [op for op in fuse(graph.module()).walk() if isinstance(op, SplitHeadsOp)]
    assert not any(isinstance(op.parent_op(), FusedOp) for op in heads)
