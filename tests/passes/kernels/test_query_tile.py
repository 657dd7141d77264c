"""Where the work of a softmax runs: every placement gives the numbers of attention, whatever the tiles and masks.

`test_kernel_schedule` shows the nests; here it is which unit does what, and that all three readings agree on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typing_extensions import override
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import causal, first, prefix, window
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import ArrayUse, Mapping, Softmax, Tiles
from flatc.dialects.spatial import BufferOp, VectorOp
from flatc.interpreter import ScheduleError, random_inputs, run_module
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Choice, Shape, attention, kernels_of, lower, run_checked, schedule_of, strict_machine

FULL = 1 << 30
FUSEMAX = Softmax("online", "late", maximum="array", exponential="array", total="array")


@cache
def machine() -> Accelerator:
    """The strict machine with an array of 4 x 4 PEs that also do max, exp and add; waves take time to come out."""
    array = replace(load("fusemax").array, rows=4, columns=4)
    return replace(strict_machine(), array=array)


@dataclass(frozen=True)
class Placed(Choice):
    """A choice whose softmax says where its work runs, and which may interleave query tiles."""

    softmax: Softmax = FUSEMAX
    attend: ArrayUse = ArrayUse("input")  # noqa: RUF009
    parts: int = 1

    @override
    def __str__(self) -> str:
        return f"{self.softmax.to_text()}, add on {self.attend.add}, {self.parts} parts"

    @override
    def mapping(self, problem: AttentionProblem) -> Mapping:
        found = super().mapping(problem)
        parts = 1 if problem.mask else min(self.parts, -(-problem.queries // found.tiles.query))
        every = min(self.softmax.rescaled_every, -(-problem.keys // found.tiles.key))
        softmax = replace(self.softmax, rescaled_every=every)
        return replace(found, softmax=softmax, attend=self.attend, interleave=parts)


STRIP_TILES = Tiles(1, 1, 2, 5, 2, FULL, FULL)
"""Tiles of so few keys that the shapes below have several strips of them."""


def placements() -> list[Placed]:
    """Every place of max, exp and sum; products added by both units in turn, rescaled at the first tile or not."""
    found: list[Placed] = []
    for i, units in enumerate(product(("vector", "array"), ("vector", "array"), ("vector", "array", "attend"))):
        softmax = Softmax("online", "late", *units, rescales_first=i % 3 == 0)  # pyright: ignore[reportArgumentType]
        found.append(Placed(softmax=softmax, attend=ArrayUse("input", add=("array", "vector")[i % 2]), parts=1 + i % 3))
    rows = Softmax("rows", "late", total="attend")
    strips = Placed(softmax=Softmax("online", rescaled_every=2), tiles=STRIP_TILES)
    ones = replace(strips, softmax=Softmax("online", total="attend", rescales_first=True, rescaled_every=3))
    return [*found, Placed("rows", softmax=rows, attend=ArrayUse("weight")), strips, ones]


SHAPES = (Shape(2, 4, 2, 7, 11, 3, 5), Shape(1, 1, 1, 9, 4, 5, 3), Shape(1, 2, 1, 1, 3, 2, 2))
MASKS = (None, causal(), window(3), first(2) | window(2), prefix(4))


def made(placed: Placed, shape: Shape = SHAPES[0], dtype: str = "f64") -> tuple[ModuleOp, ModuleOp]:
    """A graph and its schedule."""
    graph = attention(shape, None, dtype)
    return graph, lower(graph, placed, machine=machine())


@cache
def graphs_with_numbers() -> list[tuple[ModuleOp, dict[str, NDArray[Any]], NDArray[Any]]]:
    """Graphs, inputs and what they give: of every mask, and of every shape."""
    graphs = [attention(SHAPES[0], mask) for mask in MASKS] + [attention(shape) for shape in SHAPES[1:]]
    inputs = [random_inputs(graph, 0) for graph in graphs]
    outputs = [run_module(graph, arrays, exact=True)[0] for graph, arrays in zip(graphs, inputs, strict=True)]
    return list(zip(graphs, inputs, outputs, strict=True))


@pytest.mark.parametrize("placed", placements(), ids=str)
def test_every_placement_gives_attention(placed: Placed):
    for graph, inputs, expected in graphs_with_numbers():
        run = run_checked(lower(graph, placed, machine=machine()), inputs, exact=True)
        np.testing.assert_allclose(run.outputs[0], expected, rtol=1e-10, atol=1e-10)


def test_narrow_types_are_rounded_once_on_every_unit():
    """Probabilities of bf16 come from scores of f32, in registers of their own."""
    shape = Shape(1, 2, 1, 7, 11, 4, 4)
    for placed in (Placed(), Placed(softmax=replace(FUSEMAX, total="attend"))):
        graph = attention(shape, causal(), "bf16", "f32")
        inputs = random_inputs(graph, 0)
        run = run_checked(lower(graph, placed, machine=machine()), inputs)
        (expected,) = run_module(graph, inputs, exact=True)
        np.testing.assert_allclose(run.outputs[0].astype(np.float64), expected, atol=0.03)


def units(module: ModuleOp) -> dict[str, str]:
    """Which resource does each vector operation, in order."""
    (kernel,) = kernels_of(module)
    return {op.kind.data: op.resource for op in kernel.walk() if isinstance(op, VectorOp)}


def test_what_belongs_to_scores_is_told_apart_from_what_belongs_to_rows():
    _, schedule = made(Placed(attend=ArrayUse("input", add="vector")))
    assert units(schedule) == {
        "tile_max": "array",
        "merge_max": "vector",
        "exp": "array",
        "tile_sum": "array",
        "merge_sum": "vector",
        "rescale": "vector",
        "add": "vector",
        "divide": "vector",
    }


def test_a_column_of_ones_beside_v_takes_the_place_of_row_sums():
    _, schedule = made(Placed(softmax=Softmax("online", "late", total="attend")))
    assert units(schedule) == dict.fromkeys(["row_max", "exp", "rescale", "divide_by_last"], "vector")
    shapes = {op.label.data: op.type.dims for op in kernels_of(schedule)[0].buffers()}
    assert shapes["V"] == (1, 1, 6, 6)
    assert shapes["output"] == (1, 1, 2, 5, 6)
    assert "sum" not in shapes


def test_score_tiles_in_registers_take_no_memory():
    _, held = made(Placed())
    _, plain = made(Placed(softmax=Softmax("online", "late", total="vector")))
    buffers = {op.label.data: op for op in kernels_of(held)[0].walk() if isinstance(op, BufferOp)}
    assert buffers["scores"].total_bytes == 0
    assert buffers["scores"].address is None
    # 10 rows and 6 keys, on 4 x 4 PEs: 3 x 2 pieces of f64 in each of 3 slots.
    assert buffers["scores"].bytes_per_pe(machine().array) == 3 * 6 * 8
    assert simulate_kernel(kernels_of(held)[0], machine()).work.register_bytes > 0
    assert simulate_kernel(kernels_of(plain)[0], machine()).work.register_bytes == 0


def test_interleaved_tiles_share_keys_and_values():
    """Each of 4 parts of 2 rows uses a tile of K and V before the next one is loaded: they are read once."""
    tiles = Tiles(1, 1, 2, 2, 6, FULL, FULL)
    sizes = {parts: run_bytes(Placed(tiles=tiles, parts=parts)) for parts in (1, 2, 4)}
    size = 2 * 2 * 11 * 3 * 8  # of K, in f64
    assert [sizes[parts]["k"][0] for parts in (1, 2, 4)] == [4 * size, 2 * size, size]


def run_bytes(placed: Placed) -> dict[str, tuple[int, int]]:
    """The bytes that a schedule moves."""
    graph, schedule = made(placed)
    return run_checked(schedule, random_inputs(graph, 0), exact=True).offchip_bytes


def test_registers_are_not_handed_over_before_the_vector_unit_is_done_with_them():
    """Nothing waits for registers, so the schedule must: attend waits for a row sum on the vector unit."""
    graph, schedule = made(Placed(softmax=replace(FUSEMAX, total="vector"), attend=ArrayUse("input", add="vector")))
    text = str(schedule)
    assert text.count("after(%tile_sum_1, %load_v)") == 1
    hasty = schedule_of(text.replace("after(%tile_sum_1, %load_v)", "after(%load_v)"))
    with pytest.raises(ScheduleError, match="takes over the registers"):
        run_checked(hasty, random_inputs(graph, 0), exact=True)
