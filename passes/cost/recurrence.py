"""How long a software pipeline takes at the least, from a few of its trips.

After a trip, the times at which resources are free and results are there are maxima of sums of the times before it. So
a trip is a map M of times that is

    monotone       x <= y   =>   M x <= M y            waiting longer for something never makes anything sooner
    homogeneous    M (x + c) = M x + c                 nobody looks at the clock

and where a round of trips takes the times from x to x + d, or later, every further round of the same trips does so too:

    M x >= x + d   =>   M^m x >= x + m d

A few rounds are taken one by one, until times move on evenly; the others are passed over. Where all times move on by
the same, nothing is lost, and else the bound is the least of their moves. What is computed behind a bound is a bound
of what follows, as all maps are monotone: so rounds may be nested, key tiles in query tiles in tiles of heads.

Only times that rounds read and write take part in the comparison. What else they read is from before the first of
them, which has waited for it. A time that lies before every resource is free is waited for by nobody, and counts as if
it were that time (`skip_ahead` does so too, where the proof is).

Against `simulation`: that one knows nothing but operations and is exact; this one is told what a kernel does
(`attention_trips`), takes no matrices and no recurring states, and is bounded in its effort.

    pipeline = Recurrence(steps)                      # load, work and store of each tile
    pipeline.repeat(1000, lambda: pipeline.trip(tile, ...), KEY, 1)
    pipeline.finish()                                 # ticks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

from flatc.dialects.frozen import frozen

HEADS, QUERY, STRIP, KEY = 0, 1, 2, 3
"""Levels of a nest: what happens once for a tile of heads, a query tile, a strip of key tiles, a tile of scores."""

FIRST, LAST, HEAD, EDGE, BEGIN = 1, 2, 4, 8, 16
"""Kinds of a trip: first and last one of its query tile, first one of its tile of heads, crossed by a mask's edge; the
first one of all that is alike."""

LONGEST_PERIOD = 8
"""So many rounds are looked back to find times that move on evenly."""

FEWEST_IN_A_TRIP = 20
"""Fewer rounds of a loop inside of a trip are taken sooner than they are compared."""

PATIENCE = 16
"""After so many rounds that do not, the least of their moves must do."""

Ticks = tuple[tuple[int, int], ...]
"""For each step of a pipeline: how long its resource is taken, and when the result is there."""

Place = tuple[int, int, int, int]
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

    In trip i it works on tile i - stage. Steps of one `loop` are a loop inside of a trip.
    """

    name: str
    resource: str
    stage: int
    level: int
    waits: tuple[Wait, ...] = ()
    only: int = 0
    never: int = 0
    loop: str = ""


@frozen
class Rounds:
    """So many rounds of a loop inside a trip, all of a kind."""

    count: int
    kind: int
    ticks: Ticks


@frozen
class _Trip:
    """The tile that a trip begins to work on."""

    place: Place
    kind: int
    ticks: Ticks
    loops: Mapping[str, Sequence[Rounds]]


_Ring = list[int]
_Issue = tuple[int, int, tuple[tuple[_Ring, int, int], ...], tuple[tuple[_Ring, int], ...]]
"""A step as it is issued: its number, its resource, (ring, level, back) of waits, (ring, level) of results."""

_Turn = tuple[int, str, list[_Issue]]
"""What follows on each other in a trip: steps of one stage, or a loop."""


@frozen
class _Scope:
    """The times that rounds read and write: resources, (ring, level, depth, loop), (ring, level) of coarser ones."""

    resources: tuple[int, ...]
    rings: tuple[tuple[_Ring, int, int, str], ...]
    coarser: tuple[tuple[_Ring, int], ...]


@frozen
class _State:
    """Times ahead of the first free resource, and when that is free."""

    horizon: int
    ahead: tuple[int, ...]


@frozen
class Saved:
    """All times of a pipeline at one moment, and what is under way in it."""

    free: tuple[int, ...]
    done: tuple[int, ...]
    rings: tuple[tuple[int, ...], ...]
    counters: dict[str, int]
    window: tuple[_Trip | None, ...]
    place: Place


class Recurrence:
    """The times of a pipeline, moved on trip by trip and round by round."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        names = dict.fromkeys(step.resource for step in steps)
        self._resources = {name: index for index, name in enumerate(names)}
        self._free, self._done = [0] * len(names), [0] * len(names)
        self.deepest = max(step.stage for step in steps)
        far = max((wait.back for step in steps for wait in step.waits), default=0)
        self._size = 1 << (far + self.deepest + 2).bit_length()
        self._mask = self._size - 1
        self._rings: dict[tuple[str, int], _Ring] = {}
        for step in steps:
            for wait in step.waits:
                self._rings.setdefault((wait.earlier, wait.level), [0] * self._size)
        self._issues = [self._issue_of(index, step) for index, step in enumerate(steps)]
        self._window: list[_Trip | None] = [None] * (self.deepest + 1)
        self._plans: dict[tuple[int, ...], list[_Turn]] = {}
        self._loop_plans: dict[tuple[str, int], list[_Issue]] = {}
        self._loops = {step.loop: index for index, step in reversed(list(enumerate(steps))) if step.loop}
        self._counters = dict.fromkeys(self._loops, 0)
        self._place: Place = (0, 0, 0, 0)

    def _issue_of(self, index: int, step: Step) -> _Issue:
        waits = tuple((self._rings[w.earlier, w.level], w.level, w.back) for w in step.waits)
        results = tuple((ring, level) for (name, level), ring in self._rings.items() if name == step.name)
        return index, self._resources[step.resource], waits, results

    # --- Trips ----------------------------------------------------------------------------------------------

    def trip(self, place: Place, kind: int, ticks: Ticks, loops: Mapping[str, Sequence[Rounds]] | None = None) -> None:
        """The trip that begins to work on a tile, and goes on with those before it."""
        self._place = place
        self._move_on(_Trip(place, kind, ticks, loops or {}))

    def finish(self) -> int:
        """When the last result is there, once all tiles are done."""
        for _ in range(self.deepest):
            self._move_on(None)
        return max(self._done)

    def _move_on(self, trip: _Trip | None) -> None:
        window = self._window
        window.pop()
        window.insert(0, trip)
        kinds = tuple(-1 if one is None else one.kind for one in window)
        plan = self._plans.get(kinds)
        if plan is None:
            plan = self._plans[kinds] = self._plan(kinds)
        for stage, loop, issues in plan:
            found = window[stage]
            assert found is not None
            if loop:
                self._loop(loop, found)
            else:
                self._issue(issues, found.place, found.ticks)

    def _plan(self, kinds: tuple[int, ...]) -> list[_Turn]:
        """The steps and loops of a trip, given the kinds of the tiles that its stages work on."""
        plan: list[_Turn] = []
        for index, step in enumerate(self.steps):
            kind = kinds[step.stage]
            if kind < 0 or (self._loops[step.loop] != index if step.loop else not _takes_part(step, kind)):
                continue
            if step.loop or not plan or plan[-1][:2] != (step.stage, ""):
                plan.append((step.stage, step.loop, []))
            plan[-1][2].append(self._issues[index])
        return plan

    def _issue(self, issues: Sequence[_Issue], place: Place, ticks: Ticks) -> None:
        """Operations on one tile: each starts when its resource is free and what it waits for is over."""
        mask, free, done = self._mask, self._free, self._done
        for index, resource, waits, results in issues:
            busy, latency = ticks[index]
            start = free[resource]
            for ring, level, back in waits:
                ready = ring[(place[level] - back) & mask]
                if ready > start:  # `max` takes three times as long
                    start = ready
            free[resource] = start + busy
            over = done[resource]
            if start + latency > over:
                over = done[resource] = start + latency
            for ring, level in results:
                ring[place[level] & mask] = over

    def _loop(self, loop: str, trip: _Trip) -> None:
        head, query, strip, _ = trip.place
        for rounds in trip.loops.get(loop, ()):
            plan = self._loop_plans.get((loop, rounds.kind))
            if plan is None:
                steps = zip(self._issues, self.steps, strict=True)
                plan = [one for one, step in steps if step.loop == loop and _takes_part(step, rounds.kind)]
                self._loop_plans[loop, rounds.kind] = plan

            def once(plan: list[_Issue] = plan, ticks: Ticks = rounds.ticks) -> None:
                self._counters[loop] += 1
                self._issue(plan, (head, query, strip, self._counters[loop]), ticks)

            self._repeat(rounds.count, once, self._loop_scopes[loop], 0, lambda: trip.place, FEWEST_IN_A_TRIP)

    # --- Moments --------------------------------------------------------------------------------------------

    def moment(self) -> tuple[tuple[int, ...], int]:
        """How far all times lie ahead of the first free resource, and when that is free."""
        state = self._state(self._scopes[HEADS], self._place)
        return state.ahead, state.horizon

    def save(self) -> Saved:
        """Everything, to go back to."""
        rings = tuple(tuple(ring) for ring in self._rings.values())
        window = tuple(self._window)
        return Saved(tuple(self._free), tuple(self._done), rings, dict(self._counters), window, self._place)

    def go_to(self, saved: Saved, later: int) -> None:
        """To where the pipeline was before, but so much later."""
        self._free[:] = [time + later for time in saved.free]
        self._done[:] = [time + later for time in saved.done]
        for ring, times in zip(self._rings.values(), saved.rings, strict=True):
            ring[:] = [time + later for time in times]
        self._counters = dict(saved.counters)
        self._window = list(saved.window)
        self._place = saved.place

    # --- Rounds ---------------------------------------------------------------------------------------------

    def stream(self, parts: Sequence[tuple[int, Callable[[int], None]]], begins: int, level: int) -> None:
        """The trips of a query tile: so many of each part, made by what is given their kind.

        The first of all is of the kind `begins`, the last of the kind `LAST`. Alike trips differ in tiles of `level`.
        """
        left = sum(count for count, _ in parts)
        for count, trip in parts:
            left -= count
            if begins and count:
                trip(begins | LAST * (count == 1 and not left))
                begins, count = 0, count - 1
            ends = count > 0 and not left
            self.repeat(count - ends, partial(trip, 0), level, 1)
            if ends:
                trip(LAST)

    def repeat(self, count: int, round: Callable[[], None], level: int, trips: int) -> None:
        """So many rounds, of at least so many trips each, which differ in their tiles of `level` or below at most."""
        late = -(-(self.deepest + 1) // trips)
        self._repeat(count, round, self._scopes[level], late, lambda: self._place)

    def _repeat(
        self,
        count: int,
        round: Callable[[], None],
        scope: _Scope,
        late: int,
        place: Callable[[], Place],
        fewest: int = 3,
    ) -> None:
        """In the first `late` rounds the pipeline still works on what was before them.

        Of fewer rounds than `fewest` behind these, each is taken.
        """
        history: list[_State] = []
        done, forgot = 0, False
        while done < count:
            round()
            done += 1
            left = count - done
            if done < late or not left or count < late + fewest:
                continue
            now = self._state(scope, place())
            period, move = _even_move(history, now, left)
            if period and move < now.horizon - history[-period].horizon and not forgot:
                # A result may be so late that it hides those of many rounds: below all that, there is a bound, too.
                forgot = True
                for resource in scope.resources:
                    self._done[resource] = self._free[resource]
                history.clear()
            elif period:
                self._shift(scope, place(), left // period * move)
                done += left // period * period
                history.clear()
            else:
                history.append(now)

    def _state(self, scope: _Scope, place: Place) -> _State:
        mask = self._mask
        free = [self._free[resource] for resource in scope.resources]
        horizon = min(free)
        times = free + [self._done[resource] for resource in scope.resources]
        for ring, level, depth, loop in scope.rings:
            number = self._counters[loop] if loop else place[level]
            times += [ring[n & mask] for n in range(number - depth + 1, number + 1)]
        return _State(horizon, tuple([time - horizon if time > horizon else 0 for time in times]))

    def _shift(self, scope: _Scope, place: Place, ticks: int) -> None:
        """All times of a scope are later."""
        for resource in scope.resources:
            self._free[resource] += ticks
            self._done[resource] += ticks
        for ring, *_ in scope.rings:
            ring[:] = [time + ticks for time in ring]
        for ring, level in scope.coarser:
            ring[place[level] & self._mask] += ticks

    @cached_property
    def _scopes(self) -> dict[int, _Scope]:
        levels = HEADS, QUERY, STRIP, KEY
        return {level: self._scope([step for step in self.steps if step.level >= level], level) for level in levels}

    @cached_property
    def _loop_scopes(self) -> dict[str, _Scope]:
        return {loop: self._scope([s for s in self.steps if s.loop == loop], KEY) for loop in self._loops}

    def _scope(self, steps: Sequence[Step], least: int) -> _Scope:
        """What rounds of some steps read and write, of tiles of a level or below."""
        loops = {step.name: step.loop for step in steps}
        rings = {key: ring for key, ring in self._rings.items() if key[0] in loops}
        reach = dict.fromkeys(rings, 0)
        for step in self.steps:
            for wait in step.waits:
                if (wait.earlier, wait.level) in reach:
                    key = wait.earlier, wait.level
                    reach[key] = max(reach[key], wait.back)
        return _Scope(
            tuple(dict.fromkeys(self._resources[step.resource] for step in steps)),
            tuple(
                (r, key[1], reach[key] + self.deepest + 1, loops[key[0]] if key[1] == KEY else "")
                for key, r in rings.items()
                if key[1] >= least
            ),
            tuple((r, key[1]) for key, r in rings.items() if key[1] < least),
        )


def _takes_part(step: Step, kind: int) -> bool:
    return kind & step.only == step.only and not kind & step.never


def _even_move(history: Sequence[_State], now: _State, left: int) -> tuple[int, int]:
    """(rounds, how far all times move on in them); 0 rounds where more of them are to be seen first."""
    best = 0, 0
    for period, before in enumerate(reversed(history[-LONGEST_PERIOD:]), 1):
        if period > left:
            break
        moves = [b - a for a, b in zip(before.ahead, now.ahead, strict=True)]
        least, most = min(moves), max(moves)
        move = now.horizon - before.horizon + least
        if least == most:
            return period, move
        if not best[0] or move * best[0] > best[1] * period:
            best = period, move
    return best if len(history) >= PATIENCE else (0, 0)
