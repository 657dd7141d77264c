"""Trips from states that were met before: query tiles of different lengths, against taking every trip."""

from __future__ import annotations

import random

import pytest

from flatc.passes.cost.recurrence import Recurrence, Rounds, Work
from flatc.passes.cost.trip_states import Ends, TripStates
from flatc.passes.cost.trip_steps import EDGE, FIRST, HEAD, HEADS, KEY, LAST, QUERY, Pipeline, Step, Wait


def test_rounds_that_come_again_end_where_those_before_them_did():
    """From the second state on, two rounds of 5 and 7 come again and again."""
    states = TripStates[str]()
    one, two, three = (states.find((ahead,), ((), (), (), ())) for ahead in range(3))
    ends = Ends(one)
    for state, later in ((two, 10), (three, 15), (two, 22)):
        assert ends.after(3) is None
        ends.add(state, later)
    assert [ends.after(count) for count in range(5)] == [(one, 0), (two, 10), (three, 15), (two, 22), (three, 27)]
    assert ends.after(2001) == (two, 10 + 1000 * 12)


def test_a_state_is_found_again():
    states = TripStates[str]()
    flight = ("work",), (0,), ((KEY,),), ()
    state = states.find((0, 3, -1), flight)
    assert states.find((0, 3, -1), flight) is state
    assert states.find((0, 3, 0), flight) is not state


def drawn(rng: random.Random, write: str = "bus") -> Pipeline:
    """An attention in small: queries, keys, a product, a mask at the edge, and a store once for a query tile."""
    stages = sorted(rng.randint(0, 2) for _ in range(3))
    slots = rng.randint(1, 3) + stages[1] - stages[0]
    return Pipeline(
        (
            Step("query", "bus", 0, QUERY, (Wait("work", rng.randint(1, 2), QUERY),), only=FIRST),
            Step("load", "bus", stages[0], KEY, (Wait("work", slots),)),
            Step("work", "array", stages[1], KEY, (Wait("query", level=QUERY), Wait("load"))),
            Step("mask", "vector", stages[1], KEY, (Wait("work"),), only=EDGE),
            Step("add", "vector", stages[2], KEY, (Wait("work"),)),
            Step("store", write, stages[2], QUERY, (Wait("add", level=QUERY),), only=LAST),
        )
    )


@pytest.mark.parametrize("write", ["bus", "another bus"])
@pytest.mark.parametrize("seed", range(25))
def test_streams_of_any_lengths_end_as_if_every_trip_was_taken(seed: int, write: str):
    """Where only stores use a bus, it falls behind between them, and states do not come again: rounds are compared."""
    rng = random.Random(seed)
    pipeline = drawn(rng, write)
    ticks = tuple((busy := rng.randint(1, 9), busy + rng.choice([0, 6])) for _ in pipeline.steps)
    inner, edge = Work(ticks), Work(ticks, EDGE)
    walk, plain = Recurrence(pipeline), Recurrence(pipeline)
    for length in (rng.randint(1, 40) for _ in range(60)):
        walk.enter(QUERY)
        walk.stream([Rounds(length, inner), Rounds(2, edge)], FIRST, KEY)
        plain.enter(QUERY)
        for work, kind in ((inner, FIRST), *[(inner, 0)] * (length - 1), (edge, 0), (edge, LAST)):
            plain.enter(KEY)
            plain.trip(work, kind)
    found, exact = walk.finish(), plain.finish()
    assert found <= exact
    assert found == exact or not walk.evenly
    assert walk.evenly or write != "bus"


def test_most_trips_of_alike_streams_are_not_taken():
    """Query tiles that visit one key tile more each: what is new of each is the way to an end that is known."""
    pipeline = drawn(random.Random(1))
    ticks = tuple((busy, busy) for busy in (4, 3, 5, 2, 4, 3))
    walk, taken, inner, edge = Recurrence(pipeline), 0, Work(ticks), Work(ticks, EDGE)
    trip = walk.trip

    def counted(work: Work, kind: int = 0) -> None:
        nonlocal taken
        taken += 1
        trip(work, kind)

    walk.trip = counted
    for length in range(1, 200):
        walk.enter(QUERY)
        walk.stream([Rounds(length, inner), Rounds(1, edge)], FIRST, KEY)
    assert taken < 100


def test_a_walk_goes_back_to_a_moment():
    """What was done since is as if it had not been."""
    pipeline, rng = drawn(random.Random(2)), random.Random(3)
    ticks = tuple((busy := rng.randint(1, 9), busy) for _ in pipeline.steps)
    walk, work = Recurrence(pipeline), Work(ticks)

    def query_tile(length: int) -> None:
        walk.enter(QUERY)
        walk.stream([Rounds(length, work)], FIRST, KEY)

    query_tile(7)
    moment, times = walk.moment(), walk.all_times()
    for length in (9, 3, 20):
        query_tile(length)
    later = walk.all_times()
    walk.go_to(*moment)
    assert walk.all_times() == times
    for length in (9, 3, 20):
        query_tile(length)
    assert walk.all_times() == later


@pytest.mark.parametrize("seed", range(20))
def test_a_nest_ends_as_if_every_round_was_taken(seed: int):
    """Tiles of heads, in each the same query tiles: the first trip of the first one also loads for all of them."""
    rng = random.Random(seed)
    head = Step("head", "bus", 0, HEADS, (Wait("work", rng.randint(1, 2), HEADS),), only=HEAD)
    pipeline = Pipeline((head, *drawn(rng).steps))
    work = Work(tuple((busy := rng.randint(1, 9), busy + rng.choice([0, 6])) for _ in pipeline.steps))
    heads, queries, length = (rng.randint(1, 12) for _ in range(3))
    walk, plain = Recurrence(pipeline), Recurrence(pipeline)
    begins = 0

    def query_tile() -> None:
        nonlocal begins
        walk.enter(QUERY)
        kind, begins = begins | FIRST, 0
        walk.stream([Rounds(length, work)], kind, KEY)

    def head_tile() -> None:
        nonlocal begins
        walk.enter(HEADS)
        begins = HEAD
        walk.repeat(queries, query_tile, QUERY, length)

    walk.repeat(heads, head_tile, HEADS, length)
    for _ in range(heads):
        plain.enter(HEADS)
        for tile in range(queries):
            plain.enter(QUERY)
            for index in range(length):
                plain.enter(KEY)
                first = FIRST | HEAD * (not tile) if not index else 0
                plain.trip(work, first | LAST * (index == length - 1))
    found, exact = walk.finish(), plain.finish()
    assert found <= exact
    assert found == exact or not walk.evenly


@pytest.mark.parametrize("seed", range(10))
def test_what_is_not_in_a_state_is_waited_for_by_nobody(seed: int):
    """All other times may be anything, once there were enough tiles."""
    rng = random.Random(seed)
    pipeline = drawn(rng)
    work = Work(tuple((busy := rng.randint(1, 9), busy + rng.choice([0, 6])) for _ in pipeline.steps))
    walks = Recurrence(pipeline), Recurrence(pipeline)
    lengths = [rng.randint(3, 9) for _ in range(10)]
    for count in range(2):
        for walk in walks:
            for length in lengths:
                walk.enter(QUERY)
                for index in range(length):
                    walk.enter(KEY)
                    walk.trip(work, FIRST * (not index) | LAST * (index == length - 1))
        if not count:
            all_times = walks[0].all_times()
            times = walks[0]._times  # pyright: ignore[reportPrivateUsage]
            times[:] = [10**9] * len(times)
            walks[0].move_to(all_times)
    assert walks[0].finish() == walks[1].finish()
