"""Kernels that differ in their tensors only are found to be the same, and others are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

import flatc
from flatc.builder import Graph
from flatc.compiler import Compilation
from flatc.dialects.product_mapping import ProductMapping
from flatc.passes.cost.kernel_costs import all_kernel_costs, kernel_costs
from flatc.passes.kernels.same_kernel import likeness
from flatc.report.build import schedule_of


def projections() -> Compilation:
    """Three products: two alike, one with a bias."""
    graph = Graph("projections", dtype="bf16", softmax="f32")
    x, wq, wk = graph.input("x", [40, 32]), graph.input("wq", [32, 64]), graph.input("wk", [32, 64])
    bias = graph.input("b", [64])
    outputs = [graph.linear(x, wq), graph.linear(x, wk), graph.linear(x, wk, bias=bias)]
    graph.output(*outputs, names=["q", "k", "biased"])
    return flatc.compile(graph, "edge")


def test_projections_of_one_shape_are_the_same_kernel():
    first, second, biased = schedule_of(projections().schedule).kernels()
    found = likeness(first, second)
    assert found is not None
    assert found.tensors == {"x": "x", "wq": "wk", "q": "k"}
    assert [type(op) for op in found.ops] == [type(op) for op in found.ops.values()]
    assert likeness(first, biased) is None


def test_costs_are_found_once_and_told_under_each_kernels_names():
    module = projections().schedule
    kernels = schedule_of(module).kernels()
    accelerator = projections().report.accelerator
    assert all_kernel_costs(kernels, accelerator) == [kernel_costs(kernel, accelerator) for kernel in kernels]


@pytest.mark.parametrize("field", ["tiles", "array", "stages"])
def test_another_mapping_is_another_kernel(field: str):
    compiled = projections()
    (name, mapping), *rest = compiled.mappings.items()
    assert isinstance(mapping, ProductMapping)
    others = {
        "tiles": replace(mapping, tiles=replace(mapping.tiles, m=mapping.tiles.m - 1)),
        "array": replace(mapping, array=replace(mapping.array, stationarity="input", fold_rows=1, fold_columns=1)),
        "stages": replace(mapping, stages=replace(mapping.stages, store=0)),
    }
    assert others[field] != mapping
    graph = projections().graph
    assert graph is not None
    again = flatc.compile(graph, "edge", mapping={name: others[field], **dict(rest)})
    first, second, _ = schedule_of(again.schedule).kernels()
    assert likeness(first, second) is None
