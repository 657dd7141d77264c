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
from flatc.passes.cost.idle_ends import idle_ends
from flatc.passes.cost.pipeline_times import Case, pipeline_times
from flatc.passes.cost.strip_waits import cycles_of_waiting


def least_times(case: Case, busy: dict[str, Any]) -> list[Any]:
    """Times below which no latency lies."""
    idle = idle_ends(case)
    offchip = [time for name, time in busy.items() if name not in ("array", "vector")]
    ends = [busy["array"] + idle["array"], busy["vector"] + idle["vector"] + cycles_of_waiting(case)]
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
