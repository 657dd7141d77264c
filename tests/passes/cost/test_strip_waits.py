"""Waits of the vector unit where rows end in short strips: below the simulator, and most of what it finds."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, window
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.closed_form import busy_cycles, evaluate_mapping
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.least_times import Case
from flatc.passes.cost.mapping_columns import columns_of, structure_of
from flatc.passes.cost.shared_counts import count_all
from flatc.passes.cost.strip_waits import cycles_of_waiting
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Shape, attention, fused, only


def machine(lanes: int, skew: Any = "none") -> Accelerator:
    """Cloud with a small array, little to wait for off chip, and a vector unit of so many lanes."""
    cloud = load("cloud")
    array, vector = replace(cloud.array, rows=8, columns=8, skew=skew), replace(cloud.vector, lanes=lanes)
    offchip = replace(cloud.offchip, read_bytes_per_second=1 << 50, write_bytes_per_second=1 << 50)
    return replace(cloud, array=array, vector=vector, offchip=offchip)


def strips(query: int, key: int, every: int) -> Mapping:
    return Mapping(
        Tiles(1, 1, 1, query, key, 8, 8),
        Keep(2, 2, 2, 2, 2, k_level="key", v_level="key"),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online", rescaled_every=every),
        Stages(0, 0, 1, 1, 2),
    )


def kernel(queries: int, keys: int, mask: MaskExpr, softmax: str = "f32", heads: int = 2) -> FusedOp:
    shape = Shape(heads=heads, kv_heads=heads, queries=queries, keys=keys, d_qk=8, d_v=8)
    (found,) = fused(attention(shape, mask, "bf16", softmax))
    return found


def waiting(kernel: FusedOp, mapping: Mapping, accelerator: Accelerator) -> tuple[float, float]:
    """Cycles that the vector unit works, and that it waits at the least."""
    problem, structure, columns = match_kernel(kernel).problem, structure_of(mapping), columns_of(mapping)
    geometry = key_geometry(problem, columns.query, columns.key, columns.rescaled_every)
    counts = count_all(problem, accelerator, structure, columns, geometry)
    busy = busy_cycles(TransferPrices(accelerator, problem.on_chip), counts)
    waits = cycles_of_waiting(Case(problem, accelerator, structure, columns, counts))
    return float(busy["vector"][0]), float(np.sum(waits))


def test_rows_that_end_in_strips_of_one_to_four_tiles():
    """A triangle in which each query tile sees a key tile more: most of what the simulator finds beyond busy time.

    While the vector unit works on the last tile of a row, the array has a whole strip of attends and logits to do.
    """
    accelerator, mapping, one = machine(lanes=12), strips(32, 32, 4), kernel(1024, 1024, causal(), heads=1)
    busy, waits = waiting(one, mapping, accelerator)
    simulated = float(simulate_kernel(lower_kernel_alone(one, mapping), accelerator).latency_cycles)
    assert waits > 0.03 * busy
    assert 0.7 * (simulated - busy) < waits <= simulated - busy


def test_nobody_waits_where_all_strips_are_whole():
    """Query tiles that see a strip of four tiles more each."""
    assert waiting(kernel(1024, 1024, causal(), heads=1), strips(128, 32, 4), machine(lanes=12))[1] == 0


def test_without_a_mask_nobody_waits():
    accelerator, mapping = machine(lanes=12), strips(32, 8, 4)
    (one,) = fused(attention(Shape(heads=1, kv_heads=1, queries=64, keys=776, d_qk=8, d_v=8), None, "bf16", "f32"))
    assert waiting(one, mapping, accelerator)[1] == 0


@pytest.mark.parametrize("seed", range(30))
def test_no_latency_lies_below(seed: int):
    """Drawn triangles and windows, key tiles that do not divide, lanes that bind and that do not."""
    rng = random.Random(seed)
    queries, ahead = rng.choice([96, 130, 256]), rng.choice([0, 8, 24, 100])
    mask = causal(offset=ahead) if rng.random() < 0.7 else causal(offset=ahead) & window(rng.choice([60, 90]), ahead)
    one = kernel(
        queries, queries + ahead - rng.choice([0, 0, 3]), mask, rng.choice(["f32", "bf16"]), rng.choice([1, 3])
    )
    mapping = strips(rng.choice([4, 8, 24, 32]), rng.choice([4, 8, 12]), rng.choice([2, 3, 4, 8]))
    mapping = replace(mapping, softmax=replace(mapping.softmax, total=rng.choice(["vector", "attend"])))
    accelerator = machine(rng.choice([5, 9, 12, 16]), rng.choice(["none", "exposed", "overlapped"]))
    simulated = simulate_kernel(lower_kernel_alone(one, mapping), accelerator).latency_cycles
    closed = only(evaluate_mapping(match_kernel(one).problem, accelerator, mapping).latency_cycles)
    assert Fraction(closed) <= simulated * (1 + Fraction(1, 10**12))
