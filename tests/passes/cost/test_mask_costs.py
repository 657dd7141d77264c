"""What masks save at 64K tokens: tiles that are hidden cost nothing, whatever the mask, and none is counted twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, chunk, first, prefix, window
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.closed_form import ClosedForm, evaluate_mapping
from flatc.passes.kernels.problem import match_kernel
from tests.support import Shape, attention, fused

TOKENS, TILE = 65536, 256
SIDE = TOKENS // TILE
MAPPING = Mapping(
    Tiles(1, 1, 1, TILE, TILE, 128, 128),
    Keep(2, 2, 2, 2, 2),
    ArrayUse("output"),
    ArrayUse("output"),
    Softmax("online", "late"),
    Stages(0, 0, 1, 1, 2),
)


def costs(mask: MaskExpr | None) -> ClosedForm:
    shape = Shape(queries=TOKENS, keys=TOKENS, d_qk=128, d_v=128)
    (kernel,) = fused(attention(shape, mask, "bf16", "f32"))
    return evaluate_mapping(match_kernel(kernel).problem, load("cloud"), MAPPING)


def tiles(form: ClosedForm) -> int:
    """How many tiles are computed."""
    return int(form.work.macs[0]) // (TILE * TILE * 256)


VISITED: dict[str, tuple[Callable[[], MaskExpr], int]] = {
    "causal": (causal, SIDE * (SIDE + 1) // 2),
    "4K window": (lambda: window(4096), sum(min(row + 1, 17) for row in range(SIDE))),
    "two-sided window": (lambda: window(257, 256), 3 * SIDE - 2),
    "prefix": (lambda: causal() | prefix(1024), 4 * 3 // 2 + SIDE * (SIDE + 1) // 2),
    "chunk": (lambda: causal() & chunk(4096), 16 * (16 * 17 // 2)),
    "first and window": (
        lambda: causal() & (window(4096) | first(4)),
        sum(min(row + 1, 17) + (row > 16) for row in range(SIDE)),
    ),
}


@pytest.mark.parametrize("name", VISITED)
def test_only_live_tiles_are_computed_and_loaded(name: str):
    mask, visited = VISITED[name]
    form = costs(mask())
    assert tiles(form) == visited
    assert form.tensor_bytes["k"][0] == visited * TILE * 128 * 2


def test_causal_costs_half_the_tiles_and_the_diagonal():
    half = (SIDE * SIDE - SIDE) / 2 + SIDE
    full, masked = costs(None), costs(causal())
    for resource in ("array", "vector", "offchip"):
        ratio = float(masked.busy_cycles[resource][0]) / float(full.busy_cycles[resource][0])
        assert ratio == pytest.approx(half / (SIDE * SIDE), rel=0.02), resource
    assert masked.latency_cycles[0] / full.latency_cycles[0] == pytest.approx(half / (SIDE * SIDE), rel=0.02)


def test_a_window_of_4k_costs_about_4k_of_64k():
    ratio = costs(window(4096)).latency_cycles[0] / costs(None).latency_cycles[0]
    assert ratio == pytest.approx(4096 / 65536, rel=0.08)


def test_sinks_of_first_tokens_cost_one_tile_a_row_more_than_the_window():
    window_alone, with_first = costs(window(4096)), costs(causal() & (window(4096) | first(4)))
    assert tiles(with_first) - tiles(window_alone) == SIDE - 17
