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
    bits = {step.name: 1 << 2 * i for i, step in enumerate(graph.steps)}
    gates = {gate: 1 << i for i, gate in enumerate(sorted({gate for *_, gates in every for gate in gates}))}
    kept: list[tuple[_Masks, _Kind]] = []
    for kind in every:
        masks = _masks(kind, bits, gates)
        if not any(_implies(other, masks) for other, _ in kept):
            kept = [one for one in kept if not _implies(masks, one[0])] + [(masks, kind)]
    return tuple(_cycle(kind, found[kind], steps) for _, kind in kept)


_Kind = tuple[frozenset[tuple[str, bool]], int, frozenset[str]]
"""Steps, trips and gates of a cycle."""

_Masks = tuple[int, int, int, int]
"""Of a cycle: its steps, what its bound counts of them, its gates, as sets of bits; its trips."""


def _masks(kind: _Kind, bits: dict[str, int], gates: dict[str, int]) -> _Masks:
    """A step takes two bits: that it is awaited only in order, and that its results are."""
    timed, trips, open_ = kind
    steps = sum(bits[name] << awaited for name, awaited in timed)
    return (
        steps,
        steps | sum(bits[name] for name, awaited in timed if awaited),
        sum(gates[gate] for gate in open_),
        trips,
    )


def _implies(one: _Masks, other: _Masks) -> bool:
    """Whether the bound of a cycle is not below that of another, but for what is lost at the ends of the pipeline."""
    return not other[0] & ~one[1] and not one[2] & ~other[2] and one[3] <= other[3]


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
    stages = [steps[wait.earlier].stage for wait in path]
    low = min(stages)
    around = tuple((stage - low, wait.trips, not wait.awaited) for stage, wait in zip(stages, path, strict=True))
    lost = _lost(around)
    return Cycle(timed, trips, gates, lost, max(stages) - low + trips + 1 if lost else 0)


_Around = tuple[tuple[int, int, bool], ...]
"""A path around a cycle: of each step its stage above the lowest, trips to the next, whether that waits in order."""


@lru_cache(maxsize=1 << 12)
def _lost(around: _Around) -> int:
    """How many instances of a step the paths around a cycle miss at most, at the begin and at the end of a pipeline."""
    trips, high = sum(trips for _, trips, _ in around), max(stage for stage, *_ in around)
    if not high:
        return 0  # All begin and end in the same trip.
    rounds = high // trips + 3
    lost = [0] * len(around)
    for phase in range(trips):
        met = _met(around, phase - rounds * trips, 2 * rounds)
        has_begun = [trip >= stage for trip, stage, _ in met]
        for begins in (True, False):
            there = has_begun if begins else [not begun for begun in has_begun]
            breaks = _breaks(met, there)
            if not breaks:
                continue
            inside = range(breaks[-1] + 1) if begins else range(breaks[0], len(met))
            for i in inside:
                lost[i % len(around)] += there[i]
    return max(lost)


_Met = tuple[int, int, bool]


def _met(around: _Around, trip: int, rounds: int) -> list[_Met]:
    """(trip, stage of the step, whether the next waits in order) of a path that goes around so often."""
    met: list[_Met] = []
    for _ in range(rounds):
        for stage, trips, in_order in around:
            met.append((trip, stage, in_order))
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
