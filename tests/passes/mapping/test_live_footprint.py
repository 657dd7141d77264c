"""FLAT's live footprint: the formula of the paper at its corners, and how it grows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flatc.builder import causal
from flatc.dialects.mapping import ArrayUse, Keep, Level, Mapping, Softmax, Stages, Tiles
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.mapping.live_footprint import beyond_strategies, granularity, live_elements
from tests.support import UNFUSED, Shape, attention, fused

B, H, N, D = 4, 6, 512, 64
SHAPE = Shape(batch=B, heads=H, kv_heads=H, queries=N, keys=N, d_qk=D, d_v=D)


def problem(shape: Shape = SHAPE) -> AttentionProblem:
    (kernel,) = fused(attention(shape))
    return match_kernel(kernel).problem


def rows(batch: int, heads: int, query: int, *, level: Level = "kv_head", group: int = 1, key: int = N) -> Mapping:
    """Whole rows of scores, K and V kept for all rows of a head unless they are streamed."""
    return Mapping(
        Tiles(batch, heads, group, query, key, D, D),
        Keep(2, 2, 2, 2, 2, level, level),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("rows", "late"),
        Stages(0, 0, 1, 1, 2),
    )


@pytest.mark.parametrize(
    ("name", "mapping", "elements"),
    [
        ("flat-m", rows(B, H, N), B * H * (8 * N * D + N * N)),
        ("flat-b", rows(1, H, N), H * (8 * N * D + N * N)),
        ("flat-h", rows(1, 1, N), 8 * N * D + N * N),
        ("flat-r", rows(1, 1, 32), 4 * 32 * D + 4 * N * D + 32 * N),
    ],
)
def test_the_papers_formula_at_its_granularities(name: str, mapping: Mapping, elements: int):
    """Section 4.3: double buffers of Q, K, V and the output, one slice of scores, for what is in a tile."""
    assert live_elements(problem(), mapping) == elements
    assert granularity(problem(), mapping) == name


def test_streamed_keys_count_by_their_tile():
    """Online softmax keeps no whole row; rows of scores stay whole even where K and V are streamed."""
    streamed = rows(1, 1, 32, level="key", key=16)
    online = replace(streamed, softmax=Softmax("online", "late"))
    assert live_elements(problem(), streamed) == 4 * 32 * D + 4 * 16 * D + 32 * N
    assert live_elements(problem(), online) == 4 * 32 * D + 4 * 16 * D + 32 * 16
    assert granularity(problem(), online) == "online"


def test_what_no_named_strategy_does_is_named():
    mapping = rows(1, 1, 32)
    ones = replace(mapping, softmax=Softmax("rows", "late", total="attend"))
    held = replace(mapping, softmax=Softmax("online", "late", "array", "array", "array"), interleave=2)
    assert beyond_strategies(problem(), mapping) == ()
    assert beyond_strategies(problem(), ones) == ("a column of ones",)
    assert beyond_strategies(problem(), held) == ("softmax in the PEs", "interleaved query tiles")
    assert granularity(problem(), ones) == granularity(problem(), mapping) == "flat-r"


def test_kernels_of_two_parts_are_named_by_them():
    (kernel, _) = fused(attention(SHAPE, causal()), ("logit+mask+softmax", "attend"))
    assert granularity(match_kernel(kernel).problem, rows(1, 1, 32)) == "logit and softmax fused"


def test_query_heads_of_a_group_share_their_keys():
    shape = replace(SHAPE, heads=6, kv_heads=2)
    together = live_elements(problem(shape), rows(1, 1, 32, group=3))
    assert together == 3 * (4 * 32 * D + 32 * N) + 4 * N * D
    assert granularity(problem(shape), rows(1, 1, N, group=3)) == "flat"  # none of the corners: some heads of a batch


def test_slots_do_not_change_it():
    """It compares mappings by what they keep alive; what a schedule occupies is its peak of buffer bytes."""
    mapping = rows(1, 1, 32)
    assert live_elements(problem(), replace(mapping, keep=Keep(1, 1, 1, 1, 1, "kv_head", "kv_head"))) == live_elements(
        problem(), mapping
    )


def test_with_length_rows_grow_linearly_heads_with_the_square_and_online_not_at_all():
    short, long = problem(), problem(replace(SHAPE, queries=2 * N, keys=2 * N))
    online = replace(rows(1, 1, 32, level="key", key=16), softmax=Softmax("online", "late"))
    assert live_elements(long, online) == live_elements(short, online)

    def slice_of(p: AttentionProblem, query: int) -> int:
        elements = live_elements(p, rows(1, 1, query, key=p.keys))
        assert elements is not None
        return elements - 4 * query * D - 4 * p.keys * D

    assert slice_of(long, 32) == 2 * slice_of(short, 32)
    assert slice_of(long, 2 * N) == 4 * slice_of(short, N)


def test_kernels_that_are_no_whole_attention_have_none():
    for kernel in fused(attention(SHAPE), UNFUSED):
        part = match_kernel(kernel).problem
        assert live_elements(part, rows(1, 1, 32)) is None
        assert granularity(part, rows(1, 1, 32)) == "unfused"
