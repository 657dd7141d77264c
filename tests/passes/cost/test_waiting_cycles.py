"""Cycles of waiting of small pipelines, by hand."""

from __future__ import annotations

from flatc.passes.cost.waiting_cycles import Cycle, Graph, Step, Wait, cycles_of

LOAD, WORK, STORE = Step("load", "bus", 0), Step("work", "unit", 0), Step("store", "bus", 0)
TOKENS = (Wait("load", "work", 0), Wait("work", "store", 0))


def steps(cycle: Cycle) -> set[str]:
    return {name for name, _ in cycle.steps}


def test_what_shares_a_bus_waits_for_all_that_lies_between():
    """The next load comes behind the store on the bus, so the three alternate, and nothing is lost at the ends."""
    (cycle,) = cycles_of(Graph((LOAD, WORK, STORE), TOKENS))
    assert steps(cycle) == {"load", "work", "store"}
    assert (cycle.trips, cycle.lost) == (1, 0)


def test_a_store_of_its_own_channel_leaves_cycles_of_slots():
    store = Step("store", "out", 0)
    assert cycles_of(Graph((LOAD, WORK, store), TOKENS)) == ()
    one_slot = (*TOKENS, Wait("work", "load", 1))
    (cycle,) = cycles_of(Graph((LOAD, WORK, store), one_slot))
    assert steps(cycle) == {"load", "work"}
    # With two slots load and work overlap: what they take together, over 2, is less than the longer of them.
    assert cycles_of(Graph((LOAD, WORK, store), (*TOKENS, Wait("work", "load", 2)))) == ()


def test_a_later_stage_breaks_the_first_of_its_paths():
    """The store works one trip behind: load, work (0) | load, work (1), store (0) | store (1)."""
    work, store = Step("work", "unit", 0), Step("store", "bus", 1)
    waits = (Wait("load", "work", 0), Wait("work", "store", 1), Wait("work", "load", 1))
    found = cycles_of(Graph((LOAD, work, store), waits))
    assert [(steps(cycle), cycle.trips, cycle.lost) for cycle in found] == [({"load", "work"}, 1, 0)]


def test_a_wait_may_have_a_condition():
    waits = (*TOKENS, Wait("work", "load", 1, gate="full"))
    (cycle,) = cycles_of(Graph((LOAD, WORK, Step("store", "out", 0)), waits))
    assert cycle.gates == {"full"}


def test_a_pipeline_of_stages_comes_around_in_two_trips():
    """Trip by trip: load (i), product (i), softmax (i - 1), finish and store (i - 2); then the bus is free for a load.

    So softmax (i) follows load (i), one trip later; behind it come the store of i - 1 and then load (i + 2).
    """
    steps_ = (
        *(Step("load", "bus", 0), Step("product", "array", 0), Step("softmax", "vector", 1)),
        *(Step("finish", "vector", 2), Step("store", "bus", 2)),
    )
    waits = (Wait("load", "product", 0), Wait("product", "softmax", 1), Wait("finish", "store", 0))
    (cycle,) = cycles_of(Graph(steps_, waits))
    assert steps(cycle) == {"load", "product", "softmax", "finish", "store"}
    assert cycle.trips == 2
    # The first path has no store to wait for, and the last store of one path has no load behind it.
    assert cycle.lost > 0
