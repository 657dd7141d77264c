"""How long a software pipeline takes at the least, from a few of its trips.

After a trip, the times at which resources are free and results are there are maxima of sums of the times before it. So
a trip is a map M of times that is

    monotone       x <= y   =>   M x <= M y            waiting longer for something never makes anything sooner
    homogeneous    M (x + c) = M x + c                 nobody looks at the clock

and where a round of trips takes the times from x to x + d, or later, every further round of the same trips does so too:

    M x >= x + d   =>   M^m x >= x + m d

A few rounds are taken one by one, until times move on evenly; the others are passed over. Where all times move on by
the same, nothing is lost, and else the bound is the least of their moves. What is computed behind a bound is a bound
of what follows, as all maps are monotone: so rounds may be nested, key tiles in query tiles in tiles of heads. Rounds
that were met before in the same state are not taken again: they end as they ended then.

Where rounds use all resources, their states soon come again (`trip_states`): then trips lead from state to state, and a
state that was met before says how all rounds go on, with nothing lost. Where a resource falls behind, or rounds are
those of a loop inside of a trip, times are compared.

Only times that rounds read and write take part in the comparison. What else they read is from before the first of
them, which has waited for it. A time that lies before every resource is free is waited for by nobody, and counts as if
it were that time (`skip_ahead` does so too, where the proof is).

Against `simulation`: that one knows nothing but operations and is exact; this one is told what a kernel does
(`attention_trips`), takes no matrices, and is bounded in its effort.

    walk = Recurrence(Pipeline(steps))                # load, work and store of each tile
    walk.stream([Rounds(1000, Work(ticks))], 0, KEY)
    walk.finish()                                     # ticks
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import field
from functools import partial

from flatc.dialects.frozen import frozen
from flatc.passes.cost.trip_states import Ends, TripState, TripStates
from flatc.passes.cost.trip_steps import HEADS, KEY, LAST, NOTHING, Issue, Pipeline, Place, Scope, Ticks

LONGEST_PERIOD = 8
"""So many rounds are looked back to find times that move on evenly."""

FEWEST_IN_A_TRIP = 20
"""Fewer rounds of a loop inside of a trip are taken sooner than they are compared."""

WORTH_REMEMBERING = 4
"""So many rounds are worth looking up how they ended when they were met before."""

PATIENCE = 32
"""After so many rounds that do not, the least of their moves must do. Pipelines of many stages and slots take some
twenty rounds to fill."""


@frozen
class Work:
    """What is done in a round of a loop, or in a trip: what its steps take, of which kind it is, and in a trip the
    rounds of its loops.

    It is only equal to itself: whoever asks for the same work again is given the same object.
    """

    ticks: Ticks
    kind: int = 0
    loops: Mapping[str, tuple[Rounds, ...]] = field(default_factory=dict[str, "tuple[Rounds, ...]"])

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@frozen
class Rounds:
    """So many rounds of a loop, or trips, with the same work."""

    count: int
    work: Work


_IDLE = Work((), NOTHING)

_Seen = tuple[int, tuple[int, ...]]
"""When the first resource is free, and how far times are ahead of that."""

_Take = Callable[[int], None]
"""Takes so many rounds."""


@frozen
class _Ending:
    """Where rounds that began in a state are after so many: times since the first resource was free then, in the tiles
    of the rounds and in those above. If `period`, every further `period` of them take `move`."""

    rounds: int
    period: int
    move: int
    times: tuple[int, ...]
    above: tuple[int, ...]


class Recurrence:
    """The times of a pipeline, moved on trip by trip and round by round."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self._times = [0] * pipeline.size
        self._results, self._all = len(pipeline.resources), pipeline.scope(HEADS)
        self._mask = pipeline.ring_size - 1
        self._numbers = [0] * (KEY + 1)
        self._counters = dict.fromkeys(pipeline.loops, 0)
        stages = pipeline.deepest + 1
        self._window, self._kinds = (_IDLE,) * stages, (NOTHING,) * stages
        self._places: tuple[Place, ...] = (tuple(self._numbers),) * stages
        self._entered, self._entries = tuple[int, ...](), ((),) * stages
        """Levels of the tiles entered since the last trip, and before that trip and those before it."""
        self._pending = tuple[int, ...]()
        self._endings: dict[Hashable, _Ending] = {}
        self._states = TripStates[Work]()
        self._met: TripState[Work] | None = None
        """The state of the last `moment`, if nothing was done since but to enter tiles, which are `_pending`. Times are
        as in this state from `_since` on; they are not written down yet but if `_written`."""
        self._since, self._written = 0, True
        self.evenly = True
        """Whether all times moved on by the same wherever rounds were passed over, so that nothing was lost."""

    # --- Trips ----------------------------------------------------------------------------------------------

    def enter(self, level: int) -> None:
        """The next tile of a level begins."""
        self._entered = (*self._entered, level)
        if self._met is None:
            self._enter(level)
        else:
            self._pending = (*self._pending, level)

    def _enter(self, level: int) -> None:
        """What later stages will do with the tile has not been done yet."""
        self._numbers[level] += 1
        place = self._numbers[level] & self._mask
        for ring in self.pipeline.later_rings[level]:
            self._times[ring + place] = 0

    def trip(self, work: Work, kind: int = 0) -> None:
        """The trip that begins to work on the tiles entered last, and goes on with those before them.

        It is of the kind of the work, and also of `kind`.
        """
        self._write()
        window = self._window = (work, *self._window[:-1])
        kinds = self._kinds = (work.kind | kind, *self._kinds[:-1])
        places = self._places = (tuple(self._numbers), *self._places[:-1])
        self._entered, self._entries = (), (self._entered, *self._entries[:-1])
        for stage, loop, issues in self.pipeline.plan(kinds):
            if loop:
                self._loop(loop, window[stage], places[stage])
            else:
                self._issue(issues, places[stage], window[stage].ticks)

    def finish(self) -> int:
        """When the last result is there, once all tiles are done."""
        for _ in range(self.pipeline.deepest):
            self.trip(_IDLE)
        self._write()
        return max(self._times[self._results : 2 * self._results])

    def _issue(self, issues: Sequence[Issue], place: Place, ticks: Ticks) -> None:
        """Operations on one tile: each starts when its resource is free and what it waits for is over."""
        times, mask, units = self._times, self._mask, self._results
        for index, resource, waits, results in issues:
            busy, latency = ticks[index]
            start = times[resource]
            for ring, level, back in waits:
                ready = times[ring + (place[level] - back & mask)]
                if ready > start:  # `max` takes three times as long
                    start = ready
            times[resource] = start + busy
            over = times[units + resource]
            if start + latency > over:
                over = times[units + resource] = start + latency
            for ring, level in results:
                times[ring + (place[level] & mask)] = over

    def _loop(self, loop: str, trip: Work, place: Place) -> None:
        """All rounds of a loop inside of a trip."""
        at = [*place[:KEY], self._counters[loop]]
        for rounds in trip.loops.get(loop, ()):
            count, work = rounds.count, rounds.work
            plan = self.pipeline.loop_plan(loop, work.kind)
            if plan.in_a_row:
                at[KEY] += count
                self._in_a_row(count, plan.issues, at, work.ticks)
            else:
                take = partial(self._issue_rounds, plan.issues, at, work.ticks)
                scope = self.pipeline.loop_scope(loop)
                self._repeat(count, take, scope, 1, at, (loop, work), FEWEST_IN_A_TRIP)
        self._counters[loop] = at[KEY]

    def _issue_rounds(self, issues: Sequence[Issue], at: list[int], ticks: Ticks, count: int) -> None:
        for _ in range(count):
            at[KEY] += 1
            self._issue(issues, at, ticks)

    def _in_a_row(self, count: int, issues: Sequence[Issue], at: Place, ticks: Ticks) -> None:
        """Rounds on one resource of which only the first waits: then the resource goes on and on."""
        self._issue(issues, at, ticks)
        if count > 1 and issues:
            self._times[issues[0][1]] += (count - 2) * sum([ticks[index][0] for index, *_ in issues])
            self._issue(issues, at, ticks)

    # --- Trips from states that were met before ---------------------------------------------------------------

    def _follow(self, work: Work, kind: int, level: int) -> None:
        """A trip: where it was taken from this state before, it ends as it ended then."""
        state, since = self._met or self.moment()[0], self._since
        self._entered, self._pending = (*self._entered, level), (*self._pending, level)
        trip = self._pending, work, kind
        known = state.follows.get(trip)
        if known is None:
            self.trip(work, kind)
            after, later = self.moment()
            state.follows[trip] = after, later - since
        else:
            after, later = known
            self.go_to(after, since + later)

    def _follow_alike(self, count: int, work: Work, level: int) -> int:
        """Alike trips, until a state comes again and all that follow are known; how many are left."""
        start, _ = self.moment()
        if self._pending:
            self._follow(work, 0, level)
            return self._follow_alike(count - 1, work, level) if count > 1 else 0
        ends = start.ends.get((work, level))
        if ends is None:
            ends = start.ends[work, level] = Ends(start)
        return self._go_on(count, lambda: self._follow(work, 0, level), ends, PATIENCE)

    def _go_on(self, count: int, round: Callable[[], None], ends: Ends[Work], most: int) -> int:
        """So many rounds: where `most` of them end in states that all differ the others are left, and else none are."""
        since, end = self._since, ends.after(count)
        if end is None and len(ends.found) > 1:
            state, later = ends.found[-1]
            self.go_to(state, since + later)
        while end is None:
            if len(ends.found) > most:
                return count + 1 - len(ends.found)
            round()
            state = self._met or self.moment()[0]
            ends.add(state, self._since - since)
            end = ends.after(count)
        state, later = end
        if state is not self._met or since + later != self._since:
            self.go_to(state, since + later)
        return 0

    def _write(self) -> None:
        """Writes down where trips have led to."""
        state, self._met = self._met, None
        if state is None:
            return
        if not self._written:
            since, times, place = self._since, self._times, list(self._numbers)
            times[:] = [0] * len(times)  # Some may be from rounds that were tried only.
            indices = self._all.indices(place, self._counters)
            for index, ahead in zip(indices, state.ahead, strict=True):
                times[index] = since + ahead
            self._window, self._kinds, self._entries, _ = state.flight
            places: list[Place] = []
            for entered in self._entries:
                places.append(tuple(place))
                for level in entered:
                    place[level] -= 1
            self._places, self._written = tuple(places), True
        pending, self._pending = self._pending, ()
        for level in pending:
            self._enter(level)

    # --- Moments --------------------------------------------------------------------------------------------

    def moment(self) -> tuple[TripState[Work], int]:
        """The state of now, and when the first resource is free."""
        if self._met is None:
            times = self._all.read(self._times, self._numbers, self._counters)
            since = self._since = min(times[: self._results])
            ahead = tuple([time - since if time >= since else -1 for time in times])
            self._met = self._states.find(ahead, (self._window, self._kinds, self._entries, self._entered))
        return self._met, self._since

    def go_to(self, state: TripState[Work], since: int) -> None:
        """To a moment between trips in this state, at which the first resource is free."""
        self._met, self._since, self._written = state, since, False
        self._entered, self._pending = state.flight[3], ()

    def all_times(self) -> tuple[int, ...]:
        """All times that anything may still wait for, by resource and by how many tiles ago they are.

        A time before the first free resource counts as 0.
        """
        if self._met is not None:
            since = self._since
            return tuple([since + ahead if ahead >= 0 else 0 for ahead in self._met.ahead])
        times = self._all.read(self._times, self._numbers, self._counters)
        since = min(times[: self._results])
        return tuple([time if time >= since else 0 for time in times])

    def move_to(self, times: Sequence[int], in_flight: Sequence[Work] = ()) -> None:
        """As if these were all times, and these the last trips, if any, the last of all first."""
        self._write()
        for index, time in zip(self._all.indices(self._numbers, self._counters), times, strict=True):
            self._times[index] = time
        if in_flight:
            self._window = tuple(in_flight[: len(self._window)])
            self._kinds = tuple([trip.kind for trip in self._window])

    # --- Rounds ---------------------------------------------------------------------------------------------

    def stream(self, parts: Sequence[Rounds], begins: int, level: int) -> None:
        """The trips of a query tile: so many of each part, with a tile of `level` in each.

        The first of all is also of the kind `begins`, the last of the kind `LAST`.
        """
        one = self._follow if self._sees_all(level) else self._one
        left = sum([part.count for part in parts])
        for part in parts:
            count, work = part.count, part.work
            left -= count
            if begins and count:
                one(work, begins | LAST * (count == 1 and not left), level)
                begins, count = 0, count - 1
            ends = count > 0 and not left
            if count > ends:
                self._alike(count - ends, work, level)
            if ends:
                one(work, LAST, level)

    def _alike(self, count: int, work: Work, level: int) -> None:
        if self._sees_all(level):
            count = self._follow_alike(count, work, level)
        if count:
            take, late = partial(self._trips, work, level), self.pipeline.deepest + 1
            self._repeat(count, take, self.pipeline.scope(level), late, self._numbers, work)

    def _sees_all(self, level: int) -> bool:
        """Whether rounds of a level use all resources: else one of them falls behind, and no state comes again."""
        return len(self.pipeline.scope(level).resources) == self._results

    def _one(self, work: Work, kind: int, level: int) -> None:
        self.enter(level)
        self.trip(work, kind)

    def _trips(self, work: Work, level: int, count: int) -> None:
        for _ in range(count):
            self.enter(level)
            self.trip(work)

    def repeat(self, count: int, round: Callable[[], None], level: int, trips: int) -> None:
        """So many rounds, of at least so many trips each, which differ in their tiles of `level` or below at most."""
        late = -(-(self.pipeline.deepest + 1) // trips)
        if count > 2 and self._sees_all(level):
            round()  # It may begin a tile of a level above.
            start, _ = self.moment()
            count = self._go_on(count - 1, round, Ends(start), late + LONGEST_PERIOD)
        if count:
            self._repeat(count, partial(_take, round), self.pipeline.scope(level), late, self._numbers)

    def _repeat(
        self,
        count: int,
        take: _Take,
        scope: Scope,
        late: int,
        place: Place,
        what: Hashable = None,
        fewest: int = 3,
    ) -> None:
        """In the first `late` rounds the pipeline still works on what was before them.

        Fewer rounds than `fewest` behind these are not compared. `what` is all that matters of a round: where that is
        known, rounds that begin in a state that was met before end as they ended then.
        """
        self._write()
        left = count - late
        if left < (fewest if what is None else min(fewest, WORTH_REMEMBERING)):
            take(count)
            return
        take(late)
        self._write()
        since, ahead = self._state(scope, place)
        key = None if what is None else (what, ahead, self._above(scope, place, since))
        known = self._known(key, left)
        if known is not None:
            more = (left - known.rounds) // known.period
            self._end_as(known, since, more * known.move, scope, place)
            take(left - known.rounds - more * known.period)
            return
        taken, period, move = left, 1, 0
        if left < fewest:
            take(left)
        else:
            taken, period, move = self._settle(left, take, scope, place, (since, ahead))
        rest = left - taken
        if key is not None and rest >= LONGEST_PERIOD:
            self._endings[key] = self._ending((taken, period, move), since, scope, place)
        self._write()
        if rest:
            scope.shift(self._times, place, rest // period * move)
            take(rest % period)
        if key is not None and rest < LONGEST_PERIOD:
            self._endings[key, left] = self._ending((left, 1, 0), since, scope, place)

    def _settle(self, count: int, take: _Take, scope: Scope, place: Place, first: _Seen) -> tuple[int, int, int]:
        """Takes rounds until times move on evenly: (how many it took, in how many they move on, how far)."""
        history, forgot = [first], False
        for taken in range(1, count + 1):
            take(1)
            if taken == count:
                break
            self._write()
            now = self._state(scope, place)
            period, move = _even_move(history, now, count - taken)
            if period and move < now[0] - history[-period][0] and not forgot:
                # A result may be so late that it hides those of many rounds: below all that, there is a bound, too.
                forgot = True
                scope.forget_results(self._times)
                history.clear()
            elif period:
                self.evenly &= not forgot and now[1] == history[-period][1]
                return taken, period, move
            else:
                history.append(now)
        return count, 1, 0

    def _state(self, scope: Scope, place: Place) -> _Seen:
        times = scope.read(self._times, place, self._counters)
        horizon = min(times[: len(scope.resources)])
        return horizon, tuple([time - horizon if time > horizon else 0 for time in times])

    # --- Rounds that were met before --------------------------------------------------------------------------

    def _above(self, scope: Scope, place: Place, horizon: int) -> tuple[int, ...]:
        """How far the times of the tiles above are ahead."""
        times = self._times
        return tuple([max(times[index] - horizon, 0) for index in scope.above(place)])

    def _known(self, key: Hashable, count: int) -> _Ending | None:
        """How so many rounds ended.

        Rounds of which more than `LONGEST_PERIOD` were left when they moved on evenly do so whatever their number is.
        """
        if key is None:
            return None
        known = self._endings.get((key, count))
        if known is not None:
            return known
        known = self._endings.get(key)
        return known if known is not None and count - known.rounds >= LONGEST_PERIOD else None

    def _ending(self, rounds: tuple[int, int, int], since: int, scope: Scope, place: Place) -> _Ending:
        times, own = self._times, scope.read(self._times, place, self._counters)
        above = [times[index] - since for index in scope.above(place)]
        return _Ending(*rounds, tuple([time - since for time in own]), tuple(above))

    def _end_as(self, known: _Ending, since: int, later: int, scope: Scope, place: Place) -> None:
        times, since = self._times, since + later
        for index, time in zip(scope.indices(place, self._counters), known.times, strict=True):
            times[index] = since + time
        for index, time in zip(scope.above(place), known.above, strict=True):
            if time > 0:  # What was over before these rounds stays as it was.
                times[index] = since + time


def _take(round: Callable[[], None], count: int) -> None:
    for _ in range(count):
        round()


def _even_move(history: Sequence[_Seen], now: _Seen, left: int) -> tuple[int, int]:
    """(rounds, how far all times move on in them); 0 rounds where more of them are to be seen first."""
    recent = history[: -LONGEST_PERIOD - 1 : -1]
    horizon, ahead = now
    for period, before in enumerate(recent[:left], 1):
        if before[1] == ahead:
            return period, horizon - before[0]
    best = 0, 0
    if len(history) < PATIENCE:
        return best
    for period, before in enumerate(recent[:left], 1):
        move = horizon - before[0] + min(b - a for a, b in zip(before[1], ahead, strict=True))
        if not best[0] or move * best[0] > best[1] * period:
            best = period, move
    return best
