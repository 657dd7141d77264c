"""What a latency is expected to be, beyond the closed form: an estimate that orders what is simulated, nothing else.

    expected_cycles(case, form.busy_cycles, form.least_times)

The closed form is the largest of several times, each of which no schedule can beat. Four things make a latency longer:

- With whole rows, the array makes all scores of a query tile and only then works on values. In the one phase it waits
  for K alone and in the other for V alone, so that a wait in one is not made up for in the other.
- Where probabilities take the place of scores and there is no spare set of these, a logit waits until the attend before
  it has left the array: one skew for each attend, or for each query tile of whole rows.
- Off-chip memory is done when the last tile is there; what is computed of it comes after.
- Where several resources are busy nearly all the time, they wait for each other: here, the 16-norm of their times.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from flatc.passes.cost.least_times import Case
from flatc.passes.cost.primitive_costs import ceil_divide

_NORM = 16


def expected_cycles(case: Case, busy: dict[str, Any], times: Sequence[Any]) -> Any:
    """An estimate of the latency of each mapping of a column.

    `busy` are the cycles of its resources, `times` what no latency lies below (`closed_form.ClosedForm`).
    """
    import numpy as np

    array, tail = reduce(np.maximum, [busy["array"], *_array(case)]), _tail(case)
    channels = [busy[name] + tail for name in busy if name not in ("array", "vector")]
    resources = [array, busy["vector"], *channels]
    longest = reduce(np.maximum, resources)
    longest = longest + (longest == 0)
    crowded = sum((time / longest) ** _NORM for time in resources) ** (1 / _NORM) * longest
    return reduce(np.maximum, [crowded, *times])


def _tail(case: Case) -> Any:
    """What the array has left to do when the last tile has been loaded: its share of the last product."""
    p, s, c = case.problem, case.structure, case.columns
    product, level = ("attend", s.v_level) if p.has("attend") else ("logit", s.k_level)
    if not p.has(product):
        return 0
    loads = ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)
    if (s.k_level if level == "k" else level) == "key":
        loads = loads * ceil_divide(p.group, c.group) * ceil_divide(p.queries, c.query) * ceil_divide(p.keys, c.key)
    return case.counts.product[product] / loads


def _array(case: Case) -> list[Any]:
    """The array's time with what it waits for between its products; nothing where the kernel has only one of these."""
    p, s, c, counts = case.problem, case.structure, case.columns, case.counts
    if s.held or s.algorithm == "streamed" or not (p.has("logit") and p.has("softmax") and p.has("attend")):
        return []
    skew: Any = 0
    if not p.converts_probabilities:
        skew = counts.awaited_skew["attend"] * (c.score_slots <= c.attend - c.logit + 1)
    if s.algorithm == "online" and not s.in_strips:
        return [counts.array + skew]
    logit = _phase(case, "logit", "k", c.k_slots, streams=s.k_level == "key")
    attend = _phase(case, "attend", "v", c.v_slots, streams=s.v_level == "key")
    return [logit + attend + skew]


def _phase(case: Case, product: str, tensor: str, slots: Any, *, streams: bool) -> Any:
    """The array's time in all phases of a product whose tiles come one by one, or are all there."""
    import numpy as np

    counts = case.counts
    busy = counts.product[product]
    if not streams:
        return busy
    loads = case.transfer_cycles(tensor)
    return reduce(np.maximum, [busy, loads, (loads + busy + counts.skew[product]) / slots])
