"""Appending to a cache: one load and one store for every tile, on any machine, and a form that is close to both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flatc
from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.append_mapping import AppendMapping
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.kernel_mapping import parse_kernel_mapping
from flatc.interpreter import random_inputs, run_schedule
from flatc.passes.kernels.append_rows import AppendProblem
from flatc.passes.kinds.append import APPEND
from flatc.passes.kinds.registry import kernel_part
from tests.support import kernels_of


def cache(problem: AppendProblem, old: int) -> Graph:
    """A graph that appends to a cache of `old` rows and gives all of it."""
    graph = Graph("grow", dtype="bf16")
    rows = graph.input("x", problem.shape)
    old_rows = graph.cache("c", [problem.batch, problem.heads, old, problem.width])
    graph.output(graph.append(old_rows, rows), names=["all"])
    return graph


def machine(separate: bool, latency: int) -> Accelerator:
    edge = load("edge")
    channels = "separate" if separate else "shared"
    return replace(
        edge, offchip=replace(edge.offchip, channels=channels, latency_cycles=latency, overhead_cycles=latency // 2)
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    tiles=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    slots=st.integers(1, 3),
    old=st.integers(0, 4),
    separate=st.booleans(),
    latency=st.sampled_from([0, 7, 100]),
)
def test_numbers_bytes_and_cycles(
    sizes: tuple[int, int, int], tiles: tuple[int, int, int], slots: int, old: int, separate: bool, latency: int
):
    problem = AppendProblem(*sizes, 5, 2)
    batch, head, row = (min(tile, size) for tile, size in zip(tiles, sizes, strict=True))
    mapping, accelerator = AppendMapping(batch, head, row, slots), machine(separate, latency)
    result = flatc.compile(cache(problem, old), accelerator, mapping={"append_c": mapping}, simulate="always")
    inputs = random_inputs(result.schedule, 0)
    run = run_schedule(result.schedule, inputs)
    np.testing.assert_array_equal(run.outputs[0], np.concatenate([inputs["c"], inputs["x"]], axis=2))
    (report,) = result.report.kernels
    form = APPEND.price(problem, accelerator, mapping)
    assert run.offchip_bytes == {"c": (0, problem.bytes), "x": (problem.bytes, 0)}
    assert report.work.offchip_read_bytes == form.work.offchip_read_bytes[0] == problem.bytes
    assert report.work.buffer_write_bytes == form.work.buffer_write_bytes[0] == problem.bytes
    assert report.peak_buffer_bytes == form.peak_buffer_bytes[0]
    assert float(report.latency_cycles) >= form.latency_cycles[0] * (1 - 1e-12)
    (kernel,) = kernels_of(result.schedule)
    part = kernel_part(kernel)
    assert part is not None
    assert part.problem == problem
    assert part.tensors == {"new": "x", "result": "c"}


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(1, 9)),
    tiles=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    slots=st.integers(1, 3),
    separate=st.booleans(),
    latency=st.sampled_from([0, 7, 100]),
)
def test_one_head_is_loaded_once_and_stored_for_all(
    sizes: tuple[int, int, int], tiles: tuple[int, int], slots: int, separate: bool, latency: int
):
    problem = AppendProblem(*sizes, 5, 2, repeated=True)
    mapping = AppendMapping(min(tiles[0], sizes[0]), 1, min(tiles[1], sizes[2]), slots)
    graph = Graph("shared", dtype="bf16")
    shared = graph.input("x", problem.loaded_shape)
    graph.output(graph.concat(graph.input("y", [*problem.shape[:3], 3]), shared), names=["all"])
    accelerator, mappings = machine(separate, latency), {"copy_x": mapping, "copy_y": AppendMapping(1, 1, 1, 1)}
    result = flatc.compile(graph, accelerator, mapping=mappings, simulate="always")
    inputs = random_inputs(result.schedule, 0)
    run = run_schedule(result.schedule, inputs)
    np.testing.assert_array_equal(run.outputs[0][..., 3:], np.broadcast_to(inputs["x"], problem.shape))
    report = next(kernel for kernel in result.report.kernels if kernel.name == "copy_x")
    form = APPEND.price(problem, accelerator, mapping)
    assert run.offchip_bytes["x"] == (problem.loaded_bytes, 0)
    for count in ("offchip_read_bytes", "offchip_write_bytes", "buffer_read_bytes", "buffer_write_bytes"):
        assert getattr(report.work, count) == getattr(form.work, count)[0], count
    assert report.work.offchip_write_bytes == problem.bytes == sizes[1] * problem.loaded_bytes
    assert report.peak_buffer_bytes == form.peak_buffer_bytes[0]
    assert float(report.latency_cycles) >= form.latency_cycles[0] * (1 - 1e-12)
    kernel = next(kernel for kernel in kernels_of(result.schedule) if kernel.label.data == "copy_x")
    part = kernel_part(kernel)
    assert part is not None
    assert part.problem == problem


def test_one_head_has_no_tile_of_several():
    graph = Graph("shared")
    graph.output(graph.concat(graph.input("y", [1, 4, 3, 2]), graph.input("x", [1, 1, 3, 2])))
    mapping = AppendMapping(1, 2, 3, 1)
    with pytest.raises(FlatcError, match="copy_x: one head is loaded, and the tile of head is 2"):
        flatc.compile(graph, "edge", mapping={"copy_x": mapping, "copy_y": mapping})


def test_the_mapping_reads_back_from_its_text():
    from xdsl.context import Context
    from xdsl.parser import Parser

    mapping = AppendMapping(1, 2, 3, 4)
    assert mapping.to_text() == "append tiles(batch 1, head 2, row 3, slots 4)"
    assert parse_kernel_mapping(Parser(Context(), mapping.to_text())) == mapping


def test_a_tile_larger_than_the_rows_is_refused():
    problem = AppendProblem(1, 2, 3, 5, 2)
    with pytest.raises(FlatcError, match="append_c: the tile of row is 4, and there are only 3"):
        flatc.compile(cache(problem, 1), "edge", mapping={"append_c": AppendMapping(1, 1, 4, 1)})


def test_rows_that_do_not_fit_at_once_are_appended_in_pieces():
    problem = AppendProblem(2, 8, 4096, 128, 2)
    (report,) = flatc.compile(cache(problem, 8), "edge").report.kernels
    assert report.work.offchip_read_bytes == report.work.offchip_write_bytes == problem.bytes
    assert report.peak_buffer_bytes <= load("edge").buffer.capacity_bytes
    assert report.latency_cycles <= report.mapping_bounds.cycles * 1.01
