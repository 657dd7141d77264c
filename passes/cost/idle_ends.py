"""How long array and vector unit are idle at both ends of a kernel, at the least: for a column of mappings.

    idle_ends(case)["vector"]     # cycles before its first operation, and after its last one

Before anything can be computed, Q and the first keys are loaded, and the vector unit waits for the first scores. After
the last operation of either the last results are stored. With a softmax on whole rows more is known, as there is one
trip for each query tile: the last attends come after all other vector work, and the last division after them.
"""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.arrays import larger, smaller
from flatc.passes.cost.pipeline_times import Case
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.visited_keys import every_row_sees_keys


def idle_ends(case: Case) -> dict[str, Any]:
    """Cycles that the array, and the vector unit, wait before their first operation and after their last one."""
    loaded = _first_load_cycles(case)
    stored = _last_store_bytes(case) * case.prices.rate("result")
    # A sink waits for nothing: it is the vector unit's first operation.
    sink = case.problem.sink is not None
    if not _knows_rows(case):
        return {"array": loaded + stored, "vector": stored + (0 if sink else loaded)}
    ends = case.counts.ends
    scores = 0 if sink else loaded + ends["logit"]
    return {
        "array": loaded + ends["waves"] + ends["finish"] + stored,
        "vector": scores + _last_attends(case) + stored,
    }


def _knows_rows(case: Case) -> bool:
    """Whether each trip is a query tile with logits, a softmax of whole rows and attends, and each has keys."""
    p, s = case.problem, case.structure
    has_all = all(p.has(name) for name in ("logit", "softmax", "attend"))
    return s.algorithm == "rows" and has_all and s.interleave == 1 and every_row_sees_keys(p)


def _last_attends(case: Case) -> Any:
    """What the vector unit waits for the last attends. Divisions of the query tiles before may be due only then."""
    p, c, counts = case.problem, case.columns, case.counts
    tiles = (p.batch // c.batch) * (p.kv_heads // c.kv_head) * (p.group // c.group) * (p.queries // c.query)
    before = _heads(case) * ceil_divide(p.group, c.group) * ceil_divide(p.queries, c.query) - 1
    late = smaller(c.store - c.softmax, before)
    return larger(counts.ends["attend"] - late * counts.vector_finish / tiles, 0)


def _heads(case: Case) -> Any:
    """How many tiles of kv heads there are."""
    p, c = case.problem, case.columns
    return ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)


def _first_load_cycles(case: Case) -> Any:
    """Cycles of what is loaded before anything can be computed; a mask may leave the first tiles without work."""
    p, c, s = case.problem, case.columns, case.structure
    if not every_row_sees_keys(p):
        return 0
    heads = c.batch * c.kv_head
    if p.has("logit"):
        # Under a mask the first key tile that is visited may be the last one.
        first = c.key if p.mask is None else _last(p.keys, c.key)
        keys = first if s.k_level == "key" else p.keys
        rows = c.query if s.algorithm != "online" else smaller(c.query * s.interleave, p.queries)
        width = heads * (s.d_qk or p.d_qk)
        loads = {"q": width * (c.group * rows * p.q_bytes), "k": width * (keys * p.k_bytes)}
        if p.has("attend") and s.v_level == "kv_head":
            # Where no other heads follow, all values are loaded before the pipeline begins.
            loads["v"] = heads * (_heads(case) == 1) * (p.keys * p.d_v * p.v_bytes)
        return case.prices.cycles(loads)
    if p.mask is not None:
        return 0
    scores = c.group * c.query * (p.keys if s.algorithm == "rows" else c.key) * (heads * p.score_bytes)
    if p.has("softmax"):
        return case.prices.cycles({"scores": scores})
    values = heads * ((c.key if s.v_level == "key" else p.keys) * p.d_v * p.v_bytes)
    return case.prices.cycles({"scores": scores, "v": values})


def _last_store_bytes(case: Case) -> Any:
    """Bytes of the last tile of results; the last tile of each dimension may be ragged."""
    p, c, s = case.problem, case.columns, case.structure
    rows = _last(p.batch, c.batch) * _last(p.kv_heads, c.kv_head) * _last(p.group, c.group)
    rows = rows * _last(p.queries, c.query * (s.interleave if s.algorithm == "online" else 1))
    if p.has("attend"):
        return rows * p.d_v * p.output_bytes
    if p.mask is not None or s.is_product_rows(p):
        return 0
    return rows * (p.keys if s.algorithm == "rows" else _last(p.keys, c.key)) * p.probability_bytes


def _last(size: int, tile: Any) -> Any:
    ragged = size % tile
    return ragged + tile * (ragged == 0)
