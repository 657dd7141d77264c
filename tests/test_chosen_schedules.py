"""Whatever a strategy chooses is legal and right, as seen by code that knows nothing of searching.

Each choice is made at full size, where the verifier of schedules proves its capacity, slots and order. The same choice
is then made small: as many tiles along every dimension where these are few, three with a ragged last one where they
are many, with the same softmax, residency, slots, stages and use of the array; strips of several tiles are made of two.
That schedule is executed by the interpreter, which touches data through buffers and transfers only, catches what is
read before it arrives or is overwritten while it is needed, and compares the result with float64 attention.
"""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import dataclass, fields, replace
from typing import cast

import pytest

import flatc
from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, first, window
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping, Tiles
from flatc.passes.mapping.search import STRATEGIES, NothingFits
from tests.support import Shape, attention


@dataclass(frozen=True)
class Case:
    """One attention at its full size, and the sizes at which NumPy executes it."""

    name: str
    large: Shape
    small: Shape
    mask: MaskExpr | None = None
    small_mask: MaskExpr | None = None

    def __str__(self) -> str:
        return self.name


BERT = Shape(batch=64, heads=12, kv_heads=12, queries=512, keys=512, d_qk=64, d_v=64)
SMALL = Shape(batch=2, heads=3, kv_heads=3, queries=37, keys=37, d_qk=16, d_v=16)
LLAMA = Shape(batch=1, heads=32, kv_heads=8, queries=8192, keys=8192, d_qk=128, d_v=128)
GROUPED = Shape(batch=1, heads=8, kv_heads=2, queries=41, keys=41, d_qk=16, d_v=16)
CASES = [
    Case("bert 512", BERT, SMALL),
    Case("bert 64K", replace(BERT, queries=65536, keys=65536), SMALL),
    Case("llama prefill", LLAMA, GROUPED, causal(), causal()),
    Case("llama decode", replace(LLAMA, batch=16, queries=1), replace(GROUPED, batch=3, queries=1)),
    Case("window", LLAMA, GROUPED, causal() & window(1024), causal() & window(9)),
    Case("sinks", LLAMA, GROUPED, causal() & (window(512) | first(4)), causal() & (window(7) | first(4))),
    Case("latent", Shape(1, 16, 1, 2048, 2048, 576, 512), Shape(1, 4, 1, 19, 33, 18, 16)),
    Case("narrow 4K", replace(BERT, queries=4096, keys=4096, d_qk=32, d_v=32), SMALL),
    Case("llama 64K", replace(LLAMA, queries=65536, keys=65536), GROUPED, causal(), causal()),
    Case("cross", replace(BERT, queries=100, keys=1500), replace(SMALL, queries=11, keys=31)),
]
MAY_NOT_FIT = ("flat-m", "flat-b", "flat-h", "flat-r", "flat")
"""Strategies whose footprint grows with length."""

MANY = 3
"""Where there are more tiles than this, the small problem has so many."""


def dims(shape: Shape, kernel: str) -> Named[str, int]:
    """The extents that tiles of a kernel cut; a kernel without one of the products has 1 for what only that has.

    A kernel without any has no keys that query heads could share.
    """
    kv_heads = shape.heads if kernel == "softmax" else shape.kv_heads
    return {
        "batch": shape.batch,
        "kv_head": kv_heads,
        "group": shape.heads // kv_heads,
        "query": shape.queries,
        "key": shape.keys,
        "d_qk": shape.d_qk if kernel in ("attention", "logit") else 1,
        "d_v": shape.d_v if kernel in ("attention", "attend") else 1,
    }


def made_small(mapping: Mapping, case: Case, kernel: str) -> Mapping:
    """The mapping with the tiles of the small problem, and everything else as it is."""
    large, small = dims(case.large, kernel), dims(case.small, kernel)

    def tile(name: str) -> int:
        count = -(-large[name] // getattr(mapping.tiles, name))
        return -(-small[name] // min(count, MANY, small[name]))

    small_tiles = Tiles(**{field.name: tile(field.name) for field in fields(Tiles)})
    most = -(-small["key"] // small_tiles.key)
    # Of three tiles, one strip has two and the other one.
    every = min(mapping.softmax.rescaled_every, 2, most)
    return replace(mapping, tiles=small_tiles, softmax=replace(mapping.softmax, rescaled_every=every))


def with_room(accelerator: Accelerator) -> Accelerator:
    """An array that takes as many small pieces side by side as it took large ones, though their shape differs."""
    return replace(accelerator, array=replace(accelerator.array, rows=4096, columns=4096))


def check(case: Case, accelerator: str, strategy: str) -> None:
    """Compiles at full size, then executes the same choice at the small one."""
    try:
        chosen = flatc.compile(attention(case.large, case.mask, "bf16", "f32"), accelerator, strategy=strategy)
    except NothingFits:
        assert strategy in MAY_NOT_FIT
        return
    chosen.schedule.verify()
    assert 0 < chosen.report.peak_buffer_bytes <= load(accelerator).buffer.capacity_bytes
    mappings = {name: made_small(cast(Mapping, mapping), case, name) for name, mapping in chosen.mappings.items()}
    graph = attention(case.small, case.small_mask, "bf16", "f32")
    small = flatc.compile(graph, with_room(load(accelerator)), mapping=mappings).run()
    assert small.passed, f"{case} on {accelerator}, {strategy}: off by {small.max_abs_error}"


@pytest.mark.parametrize("strategy", ["unfused", "flat-r", "auto"])
def test_what_a_strategy_chooses_for_bert(strategy: str):
    check(CASES[0], "edge", strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accelerator", ["edge", "cloud", "fusemax"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_strategy_chooses(case: Case, accelerator: str, strategy: str):
    check(case, accelerator, strategy)
