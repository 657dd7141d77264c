"""How long one tile of a mapping takes from its loads to its store, alone on the machine.

Schedules that do the same but begin or end in another way differ by no more than such a tile.
"""

from __future__ import annotations

from dataclasses import replace

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.mapping_columns import columns_of, structure_of
from flatc.passes.cost.shared_counts import count_all
from flatc.passes.cost.transfer_prices import TransferPrices, split
from flatc.passes.kernels.problem import AttentionProblem


def fill_cycles(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> float:
    """Cycles of one tile of a mapping: its loads, products with their skew, vector work and stores, one by one.

    A tile is what the pipeline works on in a trip: a query tile with all its keys where whole rows stay on chip,
    else a query tile with one key tile, or one strip of them. K and V that stay on chip for a tile of heads are loaded
    whole.
    """
    t, p = mapping.tiles, problem
    by_rows = mapping.softmax.algorithm == "rows" or p.block is not None
    one = replace(
        p,
        batch=min(t.batch, p.batch),
        kv_heads=min(t.kv_head, p.kv_heads),
        group=min(t.group, p.group),
        queries=min(t.query * mapping.interleave, p.queries),
        keys=p.keys if by_rows else min(t.key * mapping.softmax.rescaled_every, p.keys),
        mask=None,
    )
    structure, columns = structure_of(mapping), columns_of(mapping)
    geometry = key_geometry(one, columns.query, columns.key, columns.rescaled_every)
    counts = count_all(one, accelerator, structure, columns, geometry)
    beyond = p.keys - one.keys
    loaded, stored = split(counts.tensor_bytes)
    if mapping.keep.k_level != "key" and "k" in loaded:
        loaded["k"] = loaded["k"] + beyond * one.batch * one.kv_heads * p.d_qk * p.k_bytes
    if mapping.keep.v_level == "kv_head" and "v" in loaded:
        loaded["v"] = loaded["v"] + beyond * one.batch * one.kv_heads * p.d_v * p.v_bytes
    prices = TransferPrices(accelerator, p.on_chip)
    transfers = prices.cycles(loaded) + prices.cycles(stored)
    loads, stores = counts.transfers
    transfers = transfers + (loads + stores) * (
        accelerator.offchip.overhead_cycles + accelerator.offchip.latency_cycles
    )
    return float((transfers + counts.array + sum(counts.skew.values()) + counts.vector)[0])
