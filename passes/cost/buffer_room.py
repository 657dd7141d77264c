"""The room that mappings take on chip: bytes of buffers, and of the registers of PEs that hold scores."""

from __future__ import annotations

from typing import Any

from flatc.dialects.accelerator import Array
from flatc.passes.cost.arrays import Ints, smaller
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.kernels.keyed_storage import PAGE_BYTES
from flatc.passes.kernels.problem import AttentionProblem


def peak_buffer_bytes(problem: AttentionProblem, structure: Structure, columns: Columns, widest: Ints) -> Any:
    """Bytes of all buffers, as `lower-to-spatial` will declare them; `widest` are the keys of the longest rows."""
    p, c, s = problem, columns, structure
    heads = c.batch * c.kv_head
    rows = heads * c.group * c.query
    d_qk = s.d_qk or p.d_qk
    online = s.algorithm == "online"
    block = rows * s.interleave
    total = c.q_slots * (block if online else rows) * d_qk * p.q_bytes
    k_rows = c.key if s.k_level == "key" else p.keys
    v_rows = p.keys if s.v_level == "kv_head" else c.key
    passes = 2 if s.algorithm == "streamed" else 1
    total = total + heads * k_rows * d_qk * p.k_bytes * c.k_slots * (1 if s.k_level == "kv_head" else passes)
    outputs = p.d_v + s.sums_in_attend
    if s.v_level != "k":
        total = total + heads * v_rows * outputs * p.v_bytes * c.v_slots
    total = total + c.k_slots * c.batch * p.pages * PAGE_BYTES
    scores = rows if online else block
    if not s.held:
        width = widest if s.algorithm == "rows" else c.key
        if s.in_strips:
            width = smaller(c.key * c.rescaled_every, widest)
        element = p.score_bytes * passes + (p.probability_bytes if p.converts_probabilities else 0)
        total = total + c.score_slots * scores * width * element
    if p.has("softmax"):
        of_block, of_tile = _statistic_slots(s, c)
        total = total + (block * of_block + scores * of_tile) * p.score_bytes
    if p.has("attend"):
        total = total + c.output_slots * block * outputs * p.accumulator_bytes
        if p.converts_output:
            total = total + c.output_slots * block * p.d_v * p.output_bytes
        if s.add == "vector":
            total = total + c.score_slots * (2 if s.held else 1) * rows * outputs * p.accumulator_bytes
    return total + ScoreCosts(p, s.algorithm, s.k_level, c).footprint_bytes()


def _statistic_slots(s: Structure, c: Columns) -> tuple[Any, Any]:
    """Slots of what is kept for each row: the running maximum and sum, and what belongs to one tile of scores."""
    sums = (c.store - (c.attend if s.held else c.softmax) + 1) * (not s.sums_in_attend)
    if s.algorithm == "online":
        held = (2 if s.sums_in_attend else 4) * c.score_slots if s.held else 0
        return 1 + sums, c.attend - c.softmax + 1 + held
    if s.algorithm == "rows":
        return 1 + sums, 0
    return (1 + c.attend - c.logit) + (1 + c.attend), 1


def register_bytes_per_pe(problem: AttentionProblem, structure: Structure, columns: Columns, array: Array) -> Any:
    """Bytes that score tiles take in the registers of each PE."""
    p, c = problem, columns
    if not structure.held:
        return c.batch * 0
    fold = (c.attend_fold_rows, c.attend_fold_columns)
    tiles = array.passes(c.batch * c.kv_head, c.key, c.group * c.query, fold) * c.score_slots
    return tiles * (p.score_bytes + (p.probability_bytes if p.converts_probabilities else 0))
