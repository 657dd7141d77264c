"""Rounds that are passed over: small pipelines by hand, and against taking every round."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from flatc.passes.cost.recurrence import Recurrence, Rounds, Work
from flatc.passes.cost.trip_steps import KEY, Pipeline, Step, Wait


def ticks(*busy: int, latency: int = 0) -> tuple[tuple[int, int], ...]:
    return tuple((time, time + latency) for time in busy)


def run(steps: Sequence[Step], tile: tuple[tuple[int, int], ...], count: int) -> tuple[int, int]:
    """(ticks, trips taken) of so many alike tiles."""
    walk, taken, work = Recurrence(Pipeline(steps)), list[int](), Work(tile)

    def trip() -> None:
        taken.append(0)
        walk.enter(KEY)
        walk.trip(work)

    walk.repeat(count, trip, KEY, 1)
    return walk.finish(), len(taken)


LOAD, WORK = Step("load", "bus", 0, KEY, (Wait("work", 2),)), Step("work", "unit", 0, KEY, (Wait("load"),))
"""With two slots between them."""


def test_the_slower_of_two_resources_binds():
    """Loads take 3, work 5: one load, then a million works."""
    found, taken = run((LOAD, WORK), ticks(3, 5), 10**6)
    assert found == 3 + 5 * 10**6
    assert taken < 10


def test_one_slot_makes_loads_and_work_alternate():
    load = Step("load", "bus", 0, KEY, (Wait("work", 1),))
    found, _ = run((load, WORK), ticks(3, 5), 1000)
    assert found == 8 * 1000


def test_a_later_stage_works_on_the_tile_before():
    """Store follows the load of the next tile on the bus: load 0, then load and store in turn, and the last store."""
    store = Step("store", "bus", 1, KEY, (Wait("work"),))
    found, _ = run((LOAD, WORK, store), ticks(3, 1, 2), 1000)
    assert found == 3 + 5 * 999 + 1 + 2 - 1


def test_a_result_that_comes_later_is_waited_for():
    """A load and its work take 13 + 11, and two of them are under way."""
    found, _ = run((LOAD, WORK), ticks(3, 1, latency=10), 100)
    assert found == 24 * 50 + 3


def test_a_loop_inside_a_trip_is_passed_over_too():
    """A trip: a loop of loads and works with one slot, then one work on all of it."""
    steps = (
        Step("load", "bus", 0, KEY, (Wait("work", 1),), loop="fill"),
        Step("work", "unit", 0, KEY, (Wait("load"),), loop="fill"),
        Step("use", "unit", 0, 1, (Wait("work", level=1),)),
    )
    walk = Recurrence(Pipeline(steps))
    tile = ticks(3, 5, 7)
    walk.trip(Work(tile, 0, {"fill": (Rounds(10**9, Work(tile)),)}))
    assert walk.finish() == 8 * 10**9 + 7


@pytest.mark.parametrize("seed", range(20))
def test_rounds_in_a_row_are_as_long_as_one_after_the_other(seed: int):
    """A loop on one resource waits for loads before it, and so for no round of its own: two of its rounds are issued.

    Here it has so many rounds, and there as many loops of one round.
    """
    rng = random.Random(seed)
    wait = (Wait("load", rng.randint(0, 1), 1),)
    steps = (
        Step("load", "bus", 0, 1, (Wait("last", rng.randint(1, 2), 1),)),
        Step("first", "unit", 1, KEY, wait, loop="use"),
        Step("last", "unit", 1, KEY, wait, loop="use"),
    )
    pipeline = Pipeline(steps)
    assert pipeline.loop_plan("use", 0).in_a_row
    together, apart = Recurrence(pipeline), Recurrence(pipeline)
    for _ in range(20):
        count = rng.randint(0, 5)
        work = Work(tuple((busy := rng.randint(1, 9), busy + rng.choice([0, 20])) for _ in steps))
        for walk, rounds in ((together, [count] * (count > 0)), (apart, [1] * count)):
            walk.enter(1)
            walk.trip(Work(work.ticks, 0, {"use": tuple(Rounds(some, work) for some in rounds)}))
    assert together.finish() == apart.finish()


def test_a_loop_whose_rounds_wait_for_each_other_is_not_in_a_row():
    """For a round before, or for what another resource does in the round."""
    own = Step("work", "unit", 0, KEY, (Wait("work", 1),), loop="use")
    assert not Pipeline((own,)).loop_plan("use", 0).in_a_row
    both = (Step("load", "bus", 0, KEY, loop="use"), Step("work", "unit", 0, KEY, (Wait("load"),), loop="use"))
    assert not Pipeline(both).loop_plan("use", 0).in_a_row


def test_a_resource_that_runs_ahead_makes_the_bound_loose_and_no_more():
    """Loads that wait for nothing move on by 3 a round, the works by 5, so the bound takes the least."""
    found, _ = run((Step("load", "bus", 0, KEY), WORK), ticks(3, 5), 1000)
    assert 3 * 1000 <= found <= 3 + 5 * 1000


@pytest.mark.parametrize("seed", range(40))
def test_passing_over_rounds_never_gives_more_than_taking_them(seed: int):
    """A random pipeline, whose first step waits for slots of its last; what is lost is a ripple, if anything."""
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(rng.randint(2, 5))]
    stages = sorted(rng.randint(0, 2) for _ in names)
    steps = [
        Step(
            name,
            rng.choice(["bus", "unit", "other"]),
            stage,
            KEY,
            (
                *(Wait(earlier) for earlier in names[max(0, i - 1) : i]),
                *(Wait(later, rng.randint(1, 3) + 2) for later in names[i:] if not i or rng.random() < 0.4),
            ),
        )
        for i, (name, stage) in enumerate(zip(names, stages, strict=True))
    ]
    tile = tuple((busy := rng.randint(1, 9), busy + rng.choice([0, 0, 6])) for _ in names)
    count = rng.randint(30, 300)
    found, taken = run(steps, tile, count)
    plain = Recurrence(Pipeline(steps))
    for _ in range(count):
        plain.enter(KEY)
        plain.trip(Work(tile))
    exact = plain.finish()
    assert found <= exact
    assert found >= exact - sum(latency for _, latency in tile)
    assert taken <= count


def test_a_late_result_does_not_hide_the_rounds_behind_it():
    """The first result comes 1000 ticks late; of a thousand products of 2 behind it, each is there at once."""
    late, work = Step("late", "unit", 0, KEY, only=1), Step("work", "unit", 0, KEY, never=1)
    walk, taken = Recurrence(Pipeline((late, work))), [0]

    def trip(kind: int) -> None:
        taken[0] += 1
        walk.enter(KEY)
        walk.trip(Work(((1, 1001), (2, 2)), kind))

    trip(1)
    walk.repeat(1000, lambda: trip(0), KEY, 1)
    assert walk.finish() == 1 + 2 * 1000
    assert taken[0] < 100


def test_rounds_that_begin_in_a_state_met_before_are_not_taken_again():
    """A second stream of the same trips, as long or longer, is passed over behind what of the first is in flight."""
    tile = ticks(3, 5, latency=2)
    pipeline = Pipeline((LOAD, WORK))

    def finish(lengths: Sequence[int], *, remembers: bool) -> tuple[int, int]:
        walk, issued, work = Recurrence(pipeline), [0], Work(tile)
        plain = walk.trip

        def trip(work: Work, kind: int = 0) -> None:
            issued[0] += 1
            plain(work, kind)

        walk.trip = trip
        for length in lengths:
            if remembers:
                walk.stream([Rounds(length, work)], 0, KEY)
            else:
                for _ in range(length):
                    walk.enter(KEY)
                    walk.trip(work)
        return walk.finish(), issued[0]

    lengths = (100, 100, 250, 100, 1000)
    found, few = finish(lengths, remembers=True)
    exact, many = finish(lengths, remembers=False)
    assert found == exact
    assert few < 40 < many
