"""Cycles of waiting in a software pipeline: what operations wait for, and how long it takes to come around.

A pipeline repeats a few operations, trip after trip. In a trip, an operation of stage s works on instance trip - s
(see `flatc.dialects.pipeline`). It waits for operations of its own and of earlier trips, for three reasons:

    token   what it works on is made by another operation:                 stage - stage of the maker trips before
    order   its resource takes operations in the order of the text:        the same trip, or the one before
    slot    a buffer has so many slots, the oldest is still in use:        slots - (stage of the user - stage) before

All that is a graph whose edges reach over a number of trips. Following a cycle of it, over d trips, again and again
from d different trips on, one meets every operation on it in every trip once. The longest of these d paths is not
shorter than their mean, so no schedule takes less than

    (cycles that the operations on the cycle take in all trips) / d

whatever the single trips take: ragged tiles and triangular loops need no mean trip. At both ends of the pipeline, where
operations of other stages have no instance, a path may be interrupted; what lies before or behind is `lost` to it.

    graph = Graph((Step("Q", "read", 0), Step("L", "array", 0), ...), (Wait("Q", "L", 0), ...))
    cycles_of(graph)              # every cycle that may bind: its steps, d, and what is lost
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from flatc.dialects.frozen import frozen


@frozen
class Step:
    """An operation, in the order of the text; `in_waves`, if its results come after its resource is free."""

    name: str
    resource: str
    stage: int
    in_waves: bool = False


@frozen
class Wait:
    """`later` begins when `earlier`, so many trips before, is over: with its results, if these are `awaited`.

    `gate` names a condition without which it does not wait.
    """

    earlier: str
    later: str
    trips: int
    awaited: bool = True
    gate: str = ""


@frozen
class Graph:
    """The steps of a pipeline, and the waits for tokens and slots; those of order follow from the steps."""

    steps: tuple[Step, ...]
    waits: tuple[Wait, ...]


@frozen
class Cycle:
    """Steps that wait for each other around `trips` trips.

    `steps` are (name, whether its results are awaited); no more than `lost` instances of each step are lost; `reach` is
    more than the number of trips of a pipeline too short to say what is.
    """

    steps: frozenset[tuple[str, bool]]
    trips: int
    gates: frozenset[str]
    lost: int
    reach: int


@lru_cache(maxsize=1 << 10)
def cycles_of(graph: Graph) -> tuple[Cycle, ...]:
    """The cycles of a graph that may bind, but those that others imply.

    A cycle around d trips through no more than d resources does not, as the busiest of these takes no less; but where
    it awaits waves in the array, which last longer than the array is busy, d resources may do.
    """
    steps = {step.name: step for step in graph.steps}
    found: dict[_Kind, list[Wait]] = {}
    for path in _elementary(graph.steps, [*graph.waits, *_orders(graph.steps)]):
        trips = sum(wait.trips for wait in path)
        awaits_waves = any(wait.awaited and steps[wait.earlier].in_waves for wait in path)
        if 1 < len({steps[wait.earlier].resource for wait in path}) >= trips + (not awaits_waves):
            timed = frozenset((wait.earlier, wait.awaited) for wait in path)
            found[timed, trips, frozenset(wait.gate for wait in path if wait.gate)] = path
    every = sorted(found, key=lambda one: (one[1], -len(one[0]), sorted(one[0]), sorted(one[2])))
    kept: list[_Kind] = []
    for kind in every:
        if not any(_implies(other, kind) for other in kept):
            kept = [other for other in kept if not _implies(kind, other)] + [kind]
    return tuple(_cycle(kind, found[kind], steps) for kind in kept)


_Kind = tuple[frozenset[tuple[str, bool]], int, frozenset[str]]
"""Steps, trips and gates of a cycle."""


def _implies(one: _Kind, other: _Kind) -> bool:
    """Whether the bound of a cycle is not below that of another, but for what is lost at the ends of the pipeline."""
    steps, trips, gates = one
    less = steps | {(name, False) for name, _ in steps}
    return less >= other[0] and gates <= other[2] and trips <= other[1]


def _orders(steps: tuple[Step, ...]) -> Iterator[Wait]:
    """A resource takes its steps in the order of the text, and then those of the next trip."""
    for resource in dict.fromkeys(step.resource for step in steps):
        mine = [step.name for step in steps if step.resource == resource]
        for here, there in zip(mine, [*mine[1:], mine[0]], strict=True):
            yield Wait(here, there, int(there == mine[0]), awaited=False)


def _elementary(steps: tuple[Step, ...], waits: list[Wait]) -> Iterator[list[Wait]]:
    """Every cycle that meets no step twice, begun at its first step, around no more trips than there are resources."""
    most = len({step.resource for step in steps})
    place = {step.name: i for i, step in enumerate(steps)}
    leaving: dict[str, list[Wait]] = {step.name: [] for step in steps}
    for wait in waits:
        leaving[wait.earlier].append(wait)

    def follow(path: list[Wait], trips: int, met: set[str]) -> Iterator[list[Wait]]:
        start, here = path[0].earlier, path[-1].later
        if here == start:
            if trips > 0:
                yield list(path)
            return
        for wait in leaving[here]:
            if trips + wait.trips > most or (wait.later in met and wait.later != start):
                continue
            if place[wait.later] >= place[start]:
                yield from follow([*path, wait], trips + wait.trips, met | {wait.later})

    for step in steps:
        for wait in leaving[step.name]:
            if place[wait.later] >= place[step.name]:
                yield from follow([wait], wait.trips, {step.name, wait.later})


def _cycle(kind: _Kind, path: list[Wait], steps: dict[str, Step]) -> Cycle:
    timed, trips, gates = kind
    lost = max(_lost(path, steps, trips).values(), default=0)
    stages = [steps[wait.earlier].stage for wait in path]
    return Cycle(timed, trips, gates, lost, max(stages) - min(stages) + trips + 1 if lost else 0)


def _lost(path: list[Wait], steps: dict[str, Step], trips: int) -> Counter[str]:
    """How many instances of each step the paths around a cycle miss at the begin and at the end of a pipeline."""
    stages = [steps[wait.earlier].stage for wait in path]
    low, high = min(stages), max(stages)
    rounds = (high - low) // trips + 3
    lost: Counter[str] = Counter()
    for phase in range(trips):
        met = _around(path, steps, phase - rounds * trips, 2 * rounds)
        has_begun = [trip >= stage for _, trip, stage, _ in met]
        for begins in (True, False):
            there = has_begun if begins else [not begun for begun in has_begun]
            breaks = _breaks(met, there)
            if not breaks:
                continue
            inside = range(breaks[-1] + 1) if begins else range(breaks[0], len(met))
            for i in inside:
                if there[i]:
                    lost[met[i][0]] += 1
    return lost


_Met = tuple[str, int, int, bool]


def _around(path: list[Wait], steps: dict[str, Step], trip: int, rounds: int) -> list[_Met]:
    """(step, trip, its stage, whether the next waits in order) of a path that goes around so often."""
    met: list[_Met] = []
    around = [(wait.earlier, wait.trips, steps[wait.earlier].stage, not wait.awaited) for wait in path]
    for _ in range(rounds):
        for name, trips, stage, in_order in around:
            met.append((name, trip, stage, in_order))
            trip += trips
    return met


def _breaks(met: list[_Met], there: list[bool]) -> list[int]:
    """Where a path is interrupted: from an instance that is there to the next that is, not all the way in order."""
    broken: list[int] = []
    last: int | None = None
    for i, is_there in enumerate(there):
        if not is_there:
            continue
        if last is not None and i > last + 1 and not all(in_order for *_, in_order in met[last:i]):
            broken.append(last)
        last = i
    return broken
