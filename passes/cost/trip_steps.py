"""The steps of a software pipeline, and where in a list of times the results of each are found.

A trip of a nest works on one tile of its innermost level in several stages, each a trip behind the one before. What a
trip issues depends on the kinds of the tiles under way only, and so does which times it reads and writes. All that is
worked out once for a pipeline (`Pipeline`) and serves any number of walks through it (`recurrence`).

    load = Step("load", "bus", 0, KEY, (Wait("work", 2),))     # two slots: waits for the work two tiles before
    work = Step("work", "array", 0, KEY, (Wait("load"),))
    Pipeline((load, work))

The list has for each resource when it is free, and when all its results so far are there; then a ring for each (step,
level) that somebody waits for: when the step was over, by the number of the tile of that level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

from flatc.dialects.frozen import frozen

HEADS, QUERY, STRIP, KEY = LEVELS = 0, 1, 2, 3
"""Levels of a nest: what happens once for a tile of heads, a query tile, a strip of key tiles, a tile of scores."""

FIRST, LAST, HEAD, EDGE, BEGIN = 1, 2, 4, 8, 16
"""Kinds of a trip: first and last one of its query tile, first one of its tile of heads, crossed by a mask's edge; the
first one of all that is alike."""

NOTHING = -1
"""The kind of a trip before the first and behind the last."""

Ticks = tuple[tuple[int, int], ...]
"""For each step of a pipeline: how long its resource is taken, and when the result is there."""

Place = Sequence[int]
"""The number of a tile of heads, of a query tile, of a strip, and of a tile of scores: what each level counts."""


@frozen
class Wait:
    """A step waits until `earlier` is over: its last instance in the same tile of a level, or so many before it."""

    earlier: str
    back: int = 0
    level: int = KEY


@frozen
class Step:
    """An operation of each tile of its level, in trips of the kind `only` and not of the kind `never`.

    In trip i it works on tile i - stage. Steps of one `loop` are a loop inside of a trip; one that was alone in its
    loop and is `folded` into the trip takes there what all rounds of the loop take.
    """

    name: str
    resource: str
    stage: int
    level: int
    waits: tuple[Wait, ...] = ()
    only: int = 0
    never: int = 0
    loop: str = ""
    folded: bool = False

    def takes_part(self, kind: int) -> bool:
        """Whether a trip of a kind has it."""
        return kind & self.only == self.only and not kind & self.never


Issue = tuple[int, int, tuple[tuple[int, int, int], ...], tuple[tuple[int, int], ...]]
"""A step as it is issued: its number, its resource, (ring, level, back) of waits, (ring, level) of results."""


class LoopPlan(NamedTuple):
    """The steps of a round of a loop; `in_a_row` if all use one resource, and none waits for a round before."""

    issues: list[Issue]
    in_a_row: bool


def _is_in_a_row(issues: Sequence[Issue]) -> bool:
    resources = {resource for _, resource, _, _ in issues}
    written = {ring for _, _, _, results in issues for ring, _ in results}
    awaited = {ring for _, _, waits, _ in issues for ring, _, _ in waits}
    counted = any(level == KEY for _, _, waits, results in issues for _, level, *_ in (*waits, *results))
    return len(resources) <= 1 and not counted and not written & awaited


Turn = tuple[int, str, list[Issue]]
"""What follows on each other in a trip: steps of one stage, or a loop."""

Pick = Callable[[list[int]], tuple[int, ...]]
"""Takes some of all times."""


def _folded(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps, where those that are alone in a loop of which only the first round waits are part of the trip."""
    loops = [step.loop for step in steps]
    awaited = {wait.earlier for step in steps for wait in step.waits if wait.level == KEY}

    def folds(step: Step) -> bool:
        waits_inside = any(wait.level == KEY or wait.earlier == step.name for wait in step.waits)
        return loops.count(step.loop) == 1 and step.name not in awaited and not waits_inside

    return tuple([replace(step, loop="", folded=True) if step.loop and folds(step) else step for step in steps])


class Pipeline:
    """Steps in the order in which each resource takes them."""

    def __init__(self, steps: Iterable[Step]):
        self.steps = _folded(tuple(steps))
        names = dict.fromkeys(step.resource for step in self.steps)
        self.resources = {name: index for index, name in enumerate(names)}
        self.deepest = max(step.stage for step in self.steps)
        far = max((wait.back for step in self.steps for wait in step.waits), default=0)
        self.ring_size = 1 << (far + self.deepest + 2).bit_length()
        self._named = {step.name: step for step in self.steps}
        self._waits: dict[tuple[str, int], list[tuple[int, int]]] = {}
        """For each (step, level) that somebody waits for: in which stages, and for how many tiles before."""
        for step in self.steps:
            for wait in step.waits:
                self._waits.setdefault((wait.earlier, wait.level), []).append((step.stage, wait.back))
        first = 2 * len(names)
        self.rings = {key: first + index * self.ring_size for index, key in enumerate(self._waits)}
        """Where the ring of (step, level) begins."""
        later = {step.name for step in self.steps if step.stage}
        self.later_rings = [
            [r for (name, of), r in self.rings.items() if of == level and name in later] for level in LEVELS
        ]
        """The rings of each level whose steps are in later stages than the first."""
        self.size = first + len(self._waits) * self.ring_size
        self.loops = {step.loop: index for index, step in reversed(list(enumerate(self.steps))) if step.loop}
        """The number of each loop's first step."""
        self._issues = [self._issue(index, step) for index, step in enumerate(self.steps)]
        self._plans: dict[tuple[int, ...], list[Turn]] = {}
        self._loop_plans: dict[tuple[str, int], LoopPlan] = {}
        self._scopes: dict[int, Scope] = {}
        self._loop_scopes: dict[str, Scope] = {}

    def _issue(self, index: int, step: Step) -> Issue:
        waits = tuple((self.rings[wait.earlier, wait.level], wait.level, wait.back) for wait in step.waits)
        results = tuple((ring, level) for (name, level), ring in self.rings.items() if name == step.name)
        return index, self.resources[step.resource], waits, results

    def plan(self, kinds: tuple[int, ...]) -> list[Turn]:
        """The steps and loops of a trip, given the kinds of the tiles that its stages work on."""
        plan = self._plans.get(kinds)
        if plan is not None:
            return plan
        plan = self._plans[kinds] = []
        for index, step in enumerate(self.steps):
            kind = kinds[step.stage]
            if kind == NOTHING or (self.loops[step.loop] != index if step.loop else not step.takes_part(kind)):
                continue
            if step.loop or not plan or plan[-1][:2] != (step.stage, ""):
                plan.append((step.stage, step.loop, []))
            plan[-1][2].append(self._issues[index])
        return plan

    def loop_plan(self, loop: str, kind: int) -> LoopPlan:
        """The steps of a round of a loop."""
        plan = self._loop_plans.get((loop, kind))
        if plan is None:
            steps = zip(self._issues, self.steps, strict=True)
            issues = [issue for issue, step in steps if step.loop == loop and step.takes_part(kind)]
            plan = self._loop_plans[loop, kind] = LoopPlan(issues, _is_in_a_row(issues))
        return plan

    def awaited(self, name: str, level: int) -> range:
        """How many tiles of a level before the last one entered are those whose instances of a step may be waited for
        by trips to come, or, where the step is in a loop, by rounds of it to come.

        In the next trip stage s works on the tile that was entered s trips ago, counting from that trip. Every trip
        enters a tile of scores; of other levels a tile may go on for many trips.
        """
        step, waits = self._named[name], self._waits[name, level]
        if level < KEY:
            return range(max([max(stage - 1, 0) + back for stage, back in waits]) + 1)
        if step.loop:
            return range(max([back for _, back in waits]))
        return range(step.stage, max([stage + back for stage, back in waits]))

    def scope(self, level: int) -> Scope:
        """What rounds of the tiles of a level read and write."""
        found = self._scopes.get(level)
        if found is None:
            steps = [step for step in self.steps if step.level >= level]
            found = self._scopes[level] = Scope(self, steps, level)
        return found

    def loop_scope(self, loop: str) -> Scope:
        """What rounds of a loop inside of trips read and write."""
        found = self._loop_scopes.get(loop)
        if found is None:
            steps = [step for step in self.steps if step.loop == loop]
            found = self._loop_scopes[loop] = Scope(self, steps, KEY, inside=True)
        return found


class Scope:
    """The times that rounds of some steps read and write, of tiles of a level or below.

    `inside` says that the rounds are those of a loop inside of a trip, whose tiles are counted at the level `KEY`.
    """

    def __init__(self, pipeline: Pipeline, steps: Sequence[Step], least: int, *, inside: bool = False):
        loops = {step.name: step.loop for step in steps}
        own = {key: ring for key, ring in pipeline.rings.items() if key[0] in loops}
        self._mask = pipeline.ring_size - 1
        self.resources = tuple(dict.fromkeys(pipeline.resources[step.resource] for step in steps))
        self.results = tuple(len(pipeline.resources) + resource for resource in self.resources)
        self._units = [*self.resources, *self.results]
        self._pick_units = _pick(self._units)
        self._above = [(ring, level) for (_, level), ring in own.items() if level < least]
        self._spans = [(ring, ring + pipeline.ring_size) for (_, level), ring in own.items() if level >= least]
        rings: dict[tuple[int, str], list[tuple[int, range]]] = {}
        for (name, level), ring in own.items():
            awaited = pipeline.awaited(name, level) if level >= least else ()
            if awaited:
                counted = level, "" if inside or level != KEY else loops[name]
                rings.setdefault(counted, []).append((ring, awaited))
        self._groups = [_Rings(level, loop, rings, self._mask) for (level, loop), rings in rings.items()]

    def read(self, times: list[int], place: Place, counters: dict[str, int]) -> tuple[int, ...]:
        """When the resources are free, when their results are there, and when the last tiles were over."""
        found = self._pick_units(times)
        for group in self._groups:
            found += group.pick(place, counters)(times)
        return found

    def above(self, place: Place) -> list[int]:
        """Where is when the steps were over in the tiles of the levels above."""
        return [ring + (place[level] & self._mask) for ring, level in self._above]

    def indices(self, place: Place, counters: dict[str, int]) -> list[int]:
        """Where is what is read."""
        found = list(self._units)
        for group in self._groups:
            found += group.indices(place, counters)
        return found

    def shift(self, times: list[int], place: Place, ticks: int) -> None:
        """All of it happens later."""
        for index in self._units:
            times[index] += ticks
        for begin, end in self._spans:
            times[begin:end] = [time + ticks for time in times[begin:end]]
        for index in self.above(place):
            times[index] += ticks

    def forget_results(self, times: list[int]) -> None:
        """As if all results of the resources were there as soon as these are free."""
        for resource, result in zip(self.resources, self.results, strict=True):
            times[result] = times[resource]


class _Rings:
    """Rings whose tiles are counted together: (where each begins, how many tiles back are those that are read)."""

    def __init__(self, level: int, loop: str, rings: Sequence[tuple[int, range]], mask: int):
        self.level, self.loop, self.rings, self._mask = level, loop, rings, mask
        self._picks: dict[int, tuple[Pick, list[int]]] = {}

    def pick(self, place: Place, counters: dict[str, int]) -> Pick:
        """What takes the times of the last tiles."""
        return self._at(place, counters)[0]

    def indices(self, place: Place, counters: dict[str, int]) -> list[int]:
        """Where these times are."""
        return self._at(place, counters)[1]

    def _at(self, place: Place, counters: dict[str, int]) -> tuple[Pick, list[int]]:
        mask = self._mask
        number = (counters[self.loop] if self.loop else place[self.level]) & mask
        found = self._picks.get(number)
        if found is None:
            indices = [ring + (number - back & mask) for ring, awaited in self.rings for back in awaited]
            found = self._picks[number] = _pick(indices), indices
        return found


def _pick(indices: Sequence[int]) -> Pick:
    if len(indices) == 1:
        (index,) = indices
        return lambda times: (times[index],)
    return itemgetter(*indices)
