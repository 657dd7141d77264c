"""Stalls without taking each event: what a script of trips does to times, with what each resource waited for.

The maps of `skip_ahead` say when things happen and not why. Here a stretch of a script is walked event by event, its
stalls are noted, and the walk is remembered by the state that it began in:

    state before    ->    times after, relative to those before, and stalls by (resource, cause)

**State.** Only the registers count that the stretch touches (`trip_scripts`), relative to its *horizon*: the time at
which the first of the resources that it uses is free. Nothing in it starts earlier, so of times up to the horizon only
the order counts; they are encoded by their rank, and may be handed on but never added to. Two states of equal encoding
go the same way. Beside each time that is later stands its cause: the operation that a token came from.

**Repetition.** A stretch that repeats is walked until its state recurs, with every time later by the same D or where
it was before the horizon; from there on nothing changes but D. The walk from a state is a *course*, which serves any
number of rounds: a causal mask's key loops, each a trip longer than the one before, are places on the same few courses.

    course of a key loop:   round 0 .. 3: the pipeline fills      round 4 .. 5, 6 .. 7, ...: +D each

So the effort grows with the number of different trips, as it does for the times alone, and the result is that of the
plain simulation, to the tick and to the cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import KernelOp, TimedOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.budget import Budget
from flatc.passes.simulation.step_programs import Event, Piece
from flatc.passes.simulation.time_registers import Registers
from flatc.passes.simulation.trip_scripts import Power, Repeat, Script, ScriptWriter, Stretch

Stalls = dict[tuple[int, int], int]
"""Ticks by register of a resource and number of a cause."""

UNKNOWN = -1
"""The cause of a time that nobody can have waited for."""

LONGEST_COURSE = 4096
"""Rounds of a course that are remembered. One that has not recurred by then is walked to its end each time."""

EFFORT_OF_STATE = 8
"""What it takes to look up where a state leads, in events."""


class StallScripts:
    """One simulation of one kernel. Raises `OutOfBudget` (`budget`), or `CannotSkip` where it can only be walked.

    `names` lists causes by number: an operation, or the label of a buffer whose slot was not free.
    """

    def __init__(self, kernel: KernelOp, model: CostModel, most_effort: int | None = None):
        self.model = model
        self._spend = Budget(most_effort).spend
        writer = ScriptWriter(kernel, model, self._spend)
        script, self._registers = writer.write(), writer.registers
        self.names: list[TimedOp | str] = []
        self._numbers: dict[TimedOp | str, int] = {}
        self._watched: dict[Piece, list[_Watched]] = {}
        self._locals: dict[Stretch | Script, _Local] = {}
        self._courses: dict[tuple[Stretch | Script, _Key], _Course] = {}
        self._buffers = {place: b.label.data for b, places in self._registers.slots.items() for place in places}
        state, stalls = _State([0] * self._registers.size, [UNKNOWN] * self._registers.size), Stalls()
        self._run(script, state, stalls)
        self.end = max((state.times[register] for register in self._registers.done.values()), default=0)
        self.free_at = {name: state.times[register] for name, register in self._registers.free.items()}
        resources = {register: name for name, register in self._registers.free.items()}
        self.stalls = {(resources[free], self.names[cause]): ticks for (free, cause), ticks in stalls.items()}
        self.executed = writer.plan.executed(writer.tops)
        for work in writer.own_work:
            self.executed[work.op, work.extents] += 1

    # --- Scripts ------------------------------------------------------------------------------------------

    def _run(self, script: Script, state: _State, stalls: Stalls) -> None:
        for item in script.items:
            if isinstance(item, Repeat):
                self._repeat(item.script, item.count, state, stalls)
            elif isinstance(item, Power):
                self._repeat(item.stretch, item.count, state, stalls)
            else:
                self._repeat(item, 1, state, stalls)

    def _repeat(self, item: Stretch | Script, count: int, state: _State, stalls: Stalls) -> None:
        """Takes the state through `count` rounds of an item."""
        local = self._local(item)
        encoded, origin = local.encode(state)
        key = item, encoded.key
        course = self._courses.get(key)
        if course is None:
            course = self._courses[key] = _Course(encoded)
        self._spend(EFFORT_OF_STATE)
        while not course.knows(count) and len(course.states) < LONGEST_COURSE:
            self._extend(item, local, course)
        if course.knows(count):
            reached, gained = course.at(count)
        else:
            reached, gained = self._walked(item, local, course, count)
        local.decode(reached, origin, state)
        _add(stalls, gained)

    def _extend(self, item: Stretch | Script, local: _Local, course: _Course) -> None:
        """One more round of a course."""
        state, stalls = course.states[-1].copy(), dict(course.stalls[-1])
        self._once(item, local, state, stalls)
        course.add(state, stalls, local)

    def _walked(self, item: Stretch | Script, local: _Local, course: _Course, count: int) -> tuple[_State, Stalls]:
        """The end of a course that does not recur, without remembering the way."""
        state, stalls = course.states[-1].copy(), dict(course.stalls[-1])
        for _ in range(count - len(course.states) + 1):
            self._once(item, local, state, stalls)
        return state, stalls

    def _once(self, item: Stretch | Script, local: _Local, state: _State, stalls: Stalls) -> None:
        """One round on an encoded state, whose times are those of the registers that the item touches."""
        times, causes = [0] * self._registers.total, [UNKNOWN] * self._registers.total
        for register, time, cause in zip(local.touched, state.times, state.causes, strict=True):
            times[register], causes[register] = time, cause
        if isinstance(item, Script):
            self._run(item, _State(times, causes), stalls)
        else:
            self._spend(item.events)
            for piece in item.pieces:
                self._watch(piece, times, causes, stalls)
        state.times = [times[register] for register in local.touched]
        state.causes = [causes[register] for register in local.touched]

    def _local(self, item: Stretch | Script) -> _Local:
        found = self._locals.get(item)
        if found is None:
            found = self._locals[item] = _Local(item.touched.tolist(), self._registers)
        return found

    # --- Events -------------------------------------------------------------------------------------------

    def _watch(self, piece: Piece, times: list[int], causes: list[int], stalls: Stalls) -> None:
        """Runs a piece, and notes what its operations waited for (compare `Piece.run`)."""
        for target, source in piece.merges:
            times[target] = max(times[target], times[source])
        for kept in (times, causes):
            for target, value in zip(piece.targets, [kept[source] for source in piece.sources], strict=True):
                kept[target] = value
        works = self._watched.get(piece)
        if works is None:
            works = self._watched[piece] = [self._watch_event(*work) for work in piece.works]
        for work in works:
            end = max([times[source] for source in work.sources])
            if work.resource is None:
                if work.token is not None:
                    times[work.token], causes[work.token] = end, _first(work.waits, end, times, causes)
                continue
            free, done = work.resource
            if end > times[free]:
                cause = _first(work.waits, end, times, causes)
                if cause == UNKNOWN:
                    cause = next(number for register, number in work.held if times[register] == end)
                stalls[free, cause] = stalls.get((free, cause), 0) + end - times[free]
            times[free] = end + work.busy
            times[done] = end = max(times[done], end + work.latency)
            for slot in work.slots:
                times[slot] = max(times[slot], end)
            if work.token is not None:
                times[work.token], causes[work.token] = end, work.number

    def _watch_event(self, event: Event, busy: int, latency: int) -> _Watched:
        held = tuple((register, self._number(self._buffers[register])) for register in event.held)
        number = UNKNOWN if event.op is None else self._number(event.op)
        return _Watched(
            event.sources, event.waits, held, event.resource, event.slots, event.token, busy, latency, number
        )

    def _number(self, name: TimedOp | str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.names)
            self.names.append(name)
        return found


@dataclass(frozen=True, slots=True)
class _Watched:
    """An event with its ticks, and with the numbers of the causes that it is, or may have to wait for."""

    sources: tuple[int, ...]
    waits: tuple[int, ...]
    held: tuple[tuple[int, int], ...]
    resource: tuple[int, int] | None
    slots: tuple[int, ...]
    token: int | None
    busy: int
    latency: int
    number: int


def _first(registers: tuple[int, ...], time: int, times: list[int], causes: list[int]) -> int:
    """The cause of the first of these tokens that is ready at a time."""
    for register in registers:
        if times[register] == time:
            return causes[register]
    return UNKNOWN


def _add(stalls: Stalls, more: Stalls) -> None:
    for cause, ticks in more.items():
        stalls[cause] = stalls.get(cause, 0) + ticks


# --- States -------------------------------------------------------------------------------------------------

_Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class _State:
    """Times, and for those of tokens the number of the operation that they came from."""

    times: list[int]
    causes: list[int]

    @property
    def key(self) -> _Key:
        """Equal for equal states."""
        return tuple(self.times), tuple(self.causes)

    def copy(self) -> _State:
        """One that may be changed."""
        return _State(list(self.times), list(self.causes))


@frozen
class _Origin:
    """What an encoded state is relative to: the horizon, the times before it in order, and the causes before."""

    horizon: int
    olds: list[int]
    causes: list[int]


class _Local:
    """The registers that an item touches, and states of them.

    An encoded time is either at least 0, and relative to the horizon, or the rank of a time before it, counted from
    the horizon down: -1 is the last of them. The cause of such a time is no number but the place it is kept in.
    """

    def __init__(self, touched: list[int], registers: Registers):
        self.touched = touched
        resources = set(registers.free.values())
        tokens = {register for places in registers.tokens.values() for register in places}
        self._free = [place for place, register in enumerate(touched) if register in resources]
        self._tokens = [place for place, register in enumerate(touched) if register in tokens]

    def encode(self, state: _State) -> tuple[_State, _Origin]:
        """The state of the registers, given that of all."""
        times = [state.times[register] for register in self.touched]
        causes = [state.causes[register] for register in self.touched]
        return self._relative(times, causes)

    def _relative(self, times: list[int], causes: list[int]) -> tuple[_State, _Origin]:
        horizon = min([times[place] for place in self._free], default=max(times, default=0))
        olds = sorted({time for time in times if time < horizon})
        ranks = {time: rank - len(olds) for rank, time in enumerate(olds)}
        encoded = [time - horizon if time >= horizon else ranks[time] for time in times]
        known = [UNKNOWN] * len(times)
        for place in self._tokens:
            known[place] = causes[place] if encoded[place] > 0 else _kept(place)
        return _State(encoded, known), _Origin(horizon, olds, causes)

    def decode(self, encoded: _State, origin: _Origin, state: _State) -> None:
        """Puts the registers where they are after a course that began at `origin`."""
        horizon, olds, before = origin.horizon, origin.olds, origin.causes
        for register, time, cause in zip(self.touched, encoded.times, encoded.causes, strict=True):
            state.times[register] = horizon + time if time >= 0 else olds[time]
            state.causes[register] = cause if cause >= UNKNOWN else before[_kept(cause)]

    def key_of(self, state: _State) -> tuple[_Key, int]:
        """What decides how a state of a course goes on, and its horizon."""
        encoded, origin = self._relative(state.times, state.causes)
        return encoded.key, origin.horizon


def _kept(place: int) -> int:
    """The cause that stands for the one kept in a place; and the place again."""
    return UNKNOWN - 1 - place


class _Course:
    """States after 0, 1, 2, ... rounds of an item and the stalls until then, relative to where the course began."""

    def __init__(self, start: _State):
        self.states = [start]
        self.stalls: list[Stalls] = [{}]
        self._seen: dict[_Key, tuple[int, int]] = {start.key: (0, 0)}
        self._recurs: tuple[int, int, int] | None = None

    def add(self, state: _State, stalls: Stalls, local: _Local) -> None:
        """The state after one more round."""
        self.states.append(state)
        self.stalls.append(stalls)
        if self._recurs is not None:
            return
        now, (key, horizon) = len(self.states) - 1, local.key_of(state)
        before, horizon_before = self._seen.get(key, (None, 0))
        self._seen[key] = now, horizon
        shift = horizon - horizon_before
        if before is not None and shift > 0 and _is_shifted(self.states[before], state, shift):
            self._recurs = before, now - before, shift

    def knows(self, count: int) -> bool:
        """Whether it says where `count` rounds lead."""
        if self._recurs is None:
            return count < len(self.states)
        first, period, _ = self._recurs
        return count < len(self.states) or len(self.states) >= first + 2 * period

    def at(self, count: int) -> tuple[_State, Stalls]:
        """The state after `count` rounds, and the stalls until then."""
        if count < len(self.states):
            return self.states[count], self.stalls[count]
        assert self._recurs is not None
        first, period, shift = self._recurs
        place = first + period + (count - first) % period
        turns = (count - place) // period
        now, before = self.states[place], self.states[place - period]
        times = [time + turns * (time - old) for time, old in zip(now.times, before.times, strict=True)]
        assert all(time == old or time - old == shift for time, old in zip(now.times, before.times, strict=True))
        stalls = dict(self.stalls[place])
        for cause, ticks in self.stalls[first + period].items():
            stalls[cause] = stalls.get(cause, 0) + turns * (ticks - self.stalls[first].get(cause, 0))
        return _State(times, now.causes), stalls


def _is_shifted(before: _State, now: _State, shift: int) -> bool:
    """Whether every time is later by the same, or where it was."""
    moved = zip(now.times, before.times, strict=True)
    return now.causes == before.causes and all(time == old or time - old == shift for time, old in moved)
