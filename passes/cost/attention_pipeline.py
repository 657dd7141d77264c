"""The pipeline that a mapping of attention makes, as a graph: its steps in order, and which waits for which.

It is the loop nest of `kernel_schedule`, without its numbers. A trip is a query tile where whole rows stay on chip, a
strip of key tiles where it rescales in strips, and else a (query, key) tile. Steps, in the order of the text:

    Hk, Hv           loads of K and V for a whole tile of heads, where they stay that long
    Q                load of Q
    K, Kn            loads of key tiles: the first of a trip, the others
    L, Ln            logit: all key tiles of a trip but the last, the last
    P                load of scores, where the kernel has no logit
    X                softmax
    V, Vn            loads of tiles of V: the first of a trip, those that wait for slots
    A, Am, An        attend: the first key tile, the others, the last
    D, S             division or conversion of the outputs, their store

Where a trip is one key tile, K, L, V and A are all of it. What is there in some trips only (Hk, Hv, and where a query
tile has several trips Q, D and S) is waited for in the order of its resource; results of Q and D are, where each query
tile has one trip: the gate `single`. The gate `many` is open where every trip has more key tiles than V has slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from flatc.dialects.frozen import frozen
from flatc.passes.cost.waiting_cycles import Cycle, Graph, Step, Wait, cycles_of

SELDOM = ("Hk", "Hv")
"""Steps that most trips do not have."""


@frozen
class PipelineShape:
    """All that the graph depends on: a trip is whole `rows`, or one of `strips`, or a key tile; `stages` are those of
    load, logit, softmax, attend and store, `slots` of Q, K, V, scores and outputs."""

    rows: bool
    strips: bool
    has: frozenset[str]
    k_level: str
    v_level: str
    shares_channel: bool
    converts_probabilities: bool
    converts_output: bool
    finishes: bool
    stages: tuple[int, int, int, int, int]
    slots: tuple[int, int, int, int, int]


@lru_cache(maxsize=1 << 10)
def pipeline_cycles(shape: PipelineShape) -> tuple[Cycle, ...]:
    """The cycles of waiting of a pipeline."""
    return cycles_of(Graph(tuple(pipeline_steps(shape)), tuple(_waits(shape))))


def _load_v(shape: PipelineShape) -> int:
    load, logit, _, attend, _ = shape.stages
    return load + (attend - logit if "logit" in shape.has else 0)


def pipeline_steps(shape: PipelineShape) -> Iterator[Step]:
    """The steps of a pipeline, in the order of the text."""
    load, logit, softmax, attend, store = shape.stages
    write = "read" if shape.shares_channel else "write"
    several = shape.rows or shape.strips
    keyed, valued = (logit, attend) if several else (load, _load_v(shape))
    parts = ("", "n") if several else ("",)
    if "logit" in shape.has and shape.k_level == "kv_head":
        yield Step("Hk", "read", load)
    if "attend" in shape.has and shape.v_level == "kv_head":
        yield Step("Hv", "read", _load_v(shape))
    if "logit" in shape.has:
        yield Step("Q", "read", load)
        yield from (Step(f"K{part}", "read", keyed) for part in parts if shape.k_level == "key")
        yield from (Step(f"L{part}", "array", logit, in_waves=True) for part in parts)
    else:
        yield Step("P", "read", keyed)
    if "softmax" in shape.has:
        yield Step("X", "vector", softmax)
    if "attend" in shape.has:
        yield from (Step(f"V{part}", "read", valued) for part in parts if shape.v_level == "key")
        yield from (Step(f"A{part}", "array", attend, in_waves=True) for part in (("", "m", "n") if several else ("",)))
    if shape.finishes:
        yield Step("D", "vector", store)
    yield Step("S", write, store)


def _waits(shape: PipelineShape) -> Iterator[Wait]:
    """Tokens and slots. The steps of a key loop inside a trip are of one stage, that of the loop."""
    stage = {step.name: step.stage for step in pipeline_steps(shape)}
    q_slots, k_slots, v_slots, score_slots, output_slots = shape.slots
    last = "n" if shape.rows or shape.strips else ""
    once = "" if shape.rows else "single"

    def token(earlier: str, later: str, gate: str = "") -> Iterator[Wait]:
        if earlier in stage and later in stage:
            yield Wait(earlier, later, stage[later] - stage[earlier], gate=gate)

    def slot(user: str, later: str, slots: int, gate: str = "") -> Iterator[Wait]:
        if user in stage and later in stage:
            yield Wait(user, later, slots + stage[later] - stage[user], gate=gate)

    source, first = (f"L{last}", "L") if "logit" in shape.has else ("P", "P")
    sink = f"A{last}" if "attend" in shape.has else "S"
    made = "X" if "softmax" in shape.has else source
    yield from token("Q", "L", once)
    for load, use, slots in (("K", "L", k_slots), ("V", "A", v_slots)):
        yield from token(load, use)
        yield from token(f"{load}n", f"{use}n")
        yield from slot(f"{use}{last}", load, slots)
    yield from slot("A", "Vn", 0, "many")
    if shape.v_level == "k" and shape.k_level == "key":
        yield from slot(f"A{last}", "K", k_slots)
    yield from token(source, "X") if made == "X" else ()
    yield from token(made, "A" if "attend" in shape.has else "S")
    yield from token(f"A{last}", "D" if shape.finishes else "S", once)
    yield from token("D", "S", once)
    yield from slot(f"L{last}", "Q", q_slots, once)
    converts = shape.converts_probabilities and made == "X"
    yield from slot("X" if converts else sink, first, score_slots)
    if "attend" in shape.has:
        yield from slot("D" if shape.converts_output else "S", "A", output_slots, once)
        yield from slot("S", "D", output_slots, once) if shape.converts_output else ()
