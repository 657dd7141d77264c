"""Times below which the latency of a mapping cannot lie: the closed form's latency is the largest of them.

The latency is at least

- each resource's busy time, plus the shortest time until it can start and from its end to the last result;
- each cycle of waiting, divided by how many instances may be under way in it. A set of scores is made, turned into
  probabilities and used before its slot is free again, and the array's program order lets `attend` fall behind
  `logit` by its stages only; a tile of Q, K, V or of the output likewise is loaded, used and released. These are below;
- each cycle through the steps of a whole trip, which wait for each other for these reasons and because a resource takes
  them in the order of the text (`pipeline_times`): a load, say, for the store before it on the same channel.
"""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.arrays import smaller
from flatc.passes.cost.pipeline_times import Case, pipeline_times


def least_times(case: Case, busy: dict[str, Any]) -> list[Any]:
    """Times below which no latency lies."""
    to_array, to_vector, last_store = _ends(case)
    offchip = [time for name, time in busy.items() if name not in ("array", "vector")]
    ends = [busy["array"] + to_array + last_store, busy["vector"] + to_vector + last_store]
    return [*offchip, *ends, *_waiting_cycles(case), *pipeline_times(case)]


def _waiting_cycles(case: Case) -> list[Any]:
    """Total length of each cycle of waiting over the instances that may be under way in it."""
    p, c, s, counts = case.problem, case.columns, case.structure, case.counts
    logit, attend = counts.product["logit"], counts.product["attend"]
    found: list[Any] = []
    if p.has("logit"):
        k_slots = c.k_slots if s.k_level == "key" else c.k_slots * 0 + _NEVER
        skew = counts.skew["logit"] if s.interleave == 1 else 0
        used = case.transfer_cycles("k") + logit + skew + (attend if s.v_level == "k" else 0)
        found.append(used / k_slots)
        found.append((case.transfer_cycles("q") + logit) / c.q_slots)
    if p.has("attend"):
        v_slots = c.v_slots if s.v_level == "key" else c.v_slots * 0 + _NEVER
        skew = counts.skew["attend"] if s.interleave == 1 else 0
        found.append((case.transfer_cycles("v") + attend + skew) / v_slots)
        if s.chains_attends:
            found.append(attend + counts.rescaling)
        if s.interleave == 1 and not p.converts_output:
            # Interleaved tiles share a slot: one may be stored while another is in work. So may a converted output.
            found.append((case.transfer_cycles("result") + attend) / c.output_slots)
    if s.held:
        # The array takes the next logit after the attend of its stages, which waits for the vector unit in between.
        made = logit + attend + counts.product["softmax"] + counts.vector_between
        found.append((made + counts.awaited_skew["softmax"]) / (c.attend - c.logit + 1))
    elif p.has("logit") and p.has("attend") and s.algorithm != "streamed":
        under_way = smaller(c.score_slots, c.attend - c.logit + 1)
        found.append((logit + attend + counts.awaited_skew["logit"] + counts.vector_between) / under_way)
    return found


_NEVER = 1 << 40
"""Stands for slots that never bind: the tensor is loaded too seldom to count."""


def _ends(case: Case) -> tuple[Any, Any, Any]:
    """Cycles at the least: of the loads before the first array operation, before the first vector operation, and of the
    store after the last one of either."""
    loaded = _first_load_cycles(case)
    # A sink waits for nothing: it is the vector unit's first operation.
    to_vector = 0 if case.problem.sink is not None else loaded
    return loaded, to_vector, _last_store_bytes(case) * case.prices.rate("result")


def _first_load_cycles(case: Case) -> Any:
    """Cycles of what is loaded before anything can be computed; a mask may leave the first tiles without work."""
    p, c, s = case.problem, case.columns, case.structure
    if p.mask is not None:
        return 0
    heads = c.batch * c.kv_head
    if p.has("logit"):
        keys = c.key if s.k_level == "key" else p.keys
        rows = c.query if s.algorithm != "online" else smaller(c.query * s.interleave, p.queries)
        width = heads * (s.d_qk or p.d_qk)
        return case.prices.cycles({"q": width * (c.group * rows * p.q_bytes), "k": width * (keys * p.k_bytes)})
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
