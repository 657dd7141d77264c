"""One trip of a chain as a small program on registers, and as a map of the max-plus algebra.

When a new trip joins a pipeline, each entry works on the trip that is its stage ago. Which registers an operation
waits for and writes follows from the shapes of the trips at work, its window, by the rules of `program_order`: which
frames are new, what a carried token stands for, which instance of a buffer is meant. A *program* says that once for
each window of shapes:

    move tokens and instances of new frames one place on
    start = max(registers);  free = start + busy;  done = token = max(done, start + latency);  slots = max(slots, done)
    ...

With the ticks of its trips it becomes a `Piece`. Run on times, it is as many events; run on the rows of an identity
matrix, it gives the matrix of the same map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xdsl.ir import BlockArgument, OpResult, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.pipeline import Entry
from flatc.dialects.spatial import BufferOp, ForOp, StartOp, TimedOp
from flatc.passes.simulation.nest_facts import ChainFacts
from flatc.passes.simulation.time_registers import Registers
from flatc.passes.simulation.trip_plan import Busy, CannotSkip, Kind

Window = tuple[Kind | None, ...]
"""The trips at work, the newest first; None where there is none, before the first trip and after the last."""


@frozen
class Event:
    """One operation: the registers it waits for, and those it writes. Without a resource it passes tokens on.

    `resource` are the registers of when it is free, and done; `slots` those of the instances that are touched. `age`
    and `entry` say whose ticks it takes: those of an entry in a trip of the window. `waits` are the sources that are
    tokens, and `held` those that are earlier users of its slots, in the order in which they are blamed for a stall.
    """

    sources: tuple[int, ...]
    token: int | None
    resource: tuple[int, int] | None = None
    slots: tuple[int, ...] = ()
    age: int = 0
    entry: int = 0
    op: TimedOp | None = None
    waits: tuple[int, ...] = ()
    held: tuple[int, ...] = ()


@dataclass(eq=False)
class Part:
    """A part of a program without loops: what moves on at its start, then events."""

    merges: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    moves: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    events: list[Event] = field(default_factory=list[Event])
    _pieces: dict[Ticks, Piece] = field(default_factory=dict["Ticks", "Piece"])

    @cached_property
    def touched(self) -> frozenset[int]:
        """All registers it reads or writes."""
        found = {register for pair in (*self.merges, *self.moves) for register in pair}
        for event in self.events:
            found.update(event.sources, event.slots, event.resource or ())
            found.update(() if event.token is None else (event.token,))
        return frozenset(found)

    def piece(self, window: Window) -> Piece:
        """The part with the ticks of the trips of a window. Equal pieces are one object."""
        ticks = tuple([_ticks(event, window) for event in self.events])
        found = self._pieces.get(ticks)
        if found is None:
            found = self._pieces[ticks] = Piece(self, ticks)
        return found


@frozen
class Surroundings:
    """What a chain sees of its outside: registers of tokens (None: ready from the start) and ages of instances.

    An instance without age waits for nobody.
    """

    tokens: Mapping[SSAValue, int | None]
    ages: Mapping[BufferOp, int | None]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for chains that see the same."""
        return (*self.tokens.values(), *self.ages.values())


@frozen
class NestedRun:
    """A loop that runs as a whole: which entry of which trip, what it sees, and where its results go."""

    age: int
    entry: int
    loop: ForOp
    surroundings: Surroundings
    results: tuple[int | None, ...]


class View:
    """What names in a chain stand for, seen from a window of trips (compare `program_order.resolve`)."""

    def __init__(self, registers: Registers, chain: ChainFacts, outside: Surroundings, window: Window):
        self._registers = registers
        self._chain = chain
        self._outside = outside
        self._window = window

    @cached_property
    def _ordinals(self) -> list[list[int]]:
        """By age and level: how many frames of the level are newer than that of the trip of this age."""
        counts = [0] * len(self._chain.loops)
        found = [counts]
        for trip in self._window:
            if trip is not None:
                first = trip.first
                counts = [count + (level < len(first) and first[level]) for level, count in enumerate(counts)]
            found.append(counts)
        return found

    def _ordinal(self, age: int, level: int) -> int:
        return self._ordinals[age][level]

    def age_of(self, buffer: BufferOp, age: int) -> int | None:
        """How many instances of a buffer are newer than that of the trip of this age."""
        if buffer in self._outside.ages:
            return self._outside.ages[buffer]
        level = self._chain.level_of(buffer)
        assert level is not None
        return self._ordinal(age, level)

    def resolve(self, token: SSAValue, age: int) -> int | None:
        """The register of a token as seen from the trip of this age; None if it is ready from the start."""
        if token in self._outside.tokens:
            return self._outside.tokens[token]
        if isinstance(token, BlockArgument):
            return self._carried(token, age)
        assert isinstance(token, OpResult)
        owner = token.owner
        if isinstance(owner, StartOp):
            return None
        level = self._chain.level_of(owner)
        assert level is not None
        if isinstance(owner, ForOp) and owner.stream:
            trip = self._window[age]
            has_trips = trip is not None and trip.frames > level + 1
            return self.resolve((owner.yield_op.tokens if has_trips else owner.inits)[token.index], age)
        return self._register(token, self._ordinal(age, level))

    def _carried(self, token: BlockArgument, age: int) -> int | None:
        level, trip = self._chain.levels[token.owner], self._window[age]
        assert trip is not None
        loop = self._chain.loops[level]
        yielded = loop.yield_op.tokens[token.index - 1]
        if trip.fresh[level] or yielded is token:
            return self.resolve(loop.inits[token.index - 1], age)
        before = self._ordinal(age, level) + 1
        for older in range(age + 1, len(self._window)):
            trip = self._window[older]
            if trip is not None and trip.frames > level and self._ordinal(older, level) == before:
                return self.resolve(yielded, older)
        if isinstance(yielded, OpResult) and self._chain.level_of(yielded.op) == level:
            return self._register(yielded, before)
        raise CannotSkip("a token comes from a trip that has left the pipeline")

    def _register(self, token: SSAValue, ordinal: int) -> int:
        places = self._registers.tokens.get(token, ())
        if ordinal >= len(places):
            raise CannotSkip("a token is older than those that are kept")
        return places[ordinal]

    def register_written(self, token: SSAValue, age: int) -> int | None:
        """Where an entry keeps its token, if anybody asks for it."""
        assert isinstance(token, OpResult)
        level = self._chain.level_of(token.op)
        assert level is not None
        places, ordinal = self._registers.tokens.get(token, ()), self._ordinal(age, level)
        return places[ordinal] if ordinal < len(places) else None


class Program:
    """What happens when a trip joins a window, for all windows of the same shapes."""

    def __init__(self, registers: Registers, chain: ChainFacts, outside: Surroundings, window: Window):
        self._registers = registers
        self._chain = chain
        self._window = window
        self._view = View(registers, chain, outside, window)
        self.items: list[Part | NestedRun] = [self._new_frames()]
        for place, entry in enumerate(chain.chain.entries):
            trip = window[entry.stage]
            if trip is not None and trip.work[place] is not None:
                self._add(place, entry, trip)

    def _add(self, place: int, entry: Entry, trip: Kind) -> None:
        if isinstance(entry.op, ForOp):
            self.items += [self._nested(place, entry, entry.op), Part()]
            return
        part = self.items[-1]
        assert isinstance(part, Part)
        works = isinstance(trip.work[place], Busy)
        part.events.append(self._working(place, entry, entry.op) if works else self._idle(entry, entry.op))

    # --- Operations ---------------------------------------------------------------------------------------

    def _working(self, place: int, entry: Entry, op: TimedOp) -> Event:
        registers = self._registers
        resource = registers.resource[op]
        free, waits = registers.free[resource], self._waits(op, entry.stage)
        held, slots = list[int](), set[int]()
        for buffer in registers.touches[op]:
            age = self._view.age_of(buffer, entry.stage)
            if age is not None:
                earlier, mine = instance_registers(registers, buffer, age)
                held += earlier
                slots.add(mine)
        token, pair = self._view.register_written(op.token, entry.stage), (free, registers.done[resource])
        sources = tuple(sorted({free, *waits, *held}))
        return Event(sources, token, pair, tuple(sorted(slots)), entry.stage, place, op, tuple(waits), tuple(held))

    def _idle(self, entry: Entry, op: TimedOp) -> Event:
        waits = tuple(self._waits(op, entry.stage))
        token = self._view.register_written(op.token, entry.stage)
        return Event((self._registers.origin, *waits), token, waits=waits)

    def _waits(self, op: TimedOp, age: int) -> list[int]:
        return [
            found for token in self._registers.waits_for[op] if (found := self._view.resolve(token, age)) is not None
        ]

    def _nested(self, place: int, entry: Entry, loop: ForOp) -> NestedRun:
        inner = self._registers.facts.chain(loop)
        tokens = {token: self._view.resolve(token, entry.stage) for token in inner.outside_tokens}
        ages = {buffer: self._view.age_of(buffer, entry.stage) for buffer in inner.outside_buffers}
        results = tuple(self._view.register_written(result, entry.stage) for result in loop.done)
        return NestedRun(entry.stage, place, loop, Surroundings(tokens, ages), results)

    # --- Frames -------------------------------------------------------------------------------------------

    def _new_frames(self) -> Part:
        part, trip = Part(), self._window[0]
        if trip is not None:
            for level in range(trip.frames):
                if trip.first[level]:
                    merges, moves = self._registers.moved_by(self._chain, level)
                    part.merges += merges
                    part.moves += moves
        return part


def instance_registers(registers: Registers, buffer: BufferOp, age: int) -> tuple[tuple[int, ...], int]:
    """The registers of the instances before one in the same slot, and its own."""
    places, slots = registers.slots[buffer], registers.slot_counts[buffer]
    if age + slots >= len(places):
        raise CannotSkip("an instance is touched after its slot was given away")
    return places[age + slots :: slots], places[age]


# --- Pieces -------------------------------------------------------------------------------------------------


Ticks = tuple[tuple[int, int], ...]
"""Of each event of a part, how long its resource is taken, and how long its result takes."""


class Piece:
    """A part of a program with its ticks.

    `events` says how many operations it executes, `longest` is a bound of how far it moves any time.
    """

    __slots__ = ("events", "longest", "merges", "sources", "targets", "touched", "works")

    def __init__(self, part: Part, ticks: Ticks):
        self.merges = part.merges
        self.targets = [target for target, _ in part.moves]
        self.sources = [source for _, source in part.moves]
        self.works = [(event, *each) for event, each in zip(part.events, ticks, strict=True)]
        self.touched = part.touched
        self.events = len(ticks)
        self.longest = sum(map(max, ticks))

    def run(self, times: list[int]) -> None:
        """Moves times on, event by event."""
        for target, source in self.merges:
            times[target] = max(times[target], times[source])
        for target, value in zip(self.targets, [times[source] for source in self.sources], strict=True):
            times[target] = value
        for event, busy, latency in self.works:
            end = max([times[source] for source in event.sources])
            if event.resource is not None:
                free, done = event.resource
                times[free] = end + busy
                times[done] = end = max(times[done], end + latency)
                for slot in event.slots:
                    times[slot] = max(times[slot], end)
            if event.token is not None:
                times[event.token] = end

    def run_rows(self, rows: list[Any]) -> None:
        """The same on the rows of a matrix: what it does to sums of the times before."""
        import numpy as np

        for target, source in self.merges:
            rows[target] = np.maximum(rows[target], rows[source])
        for target, value in zip(self.targets, [rows[source] for source in self.sources], strict=True):
            rows[target] = value
        for event, busy, latency in self.works:
            end = np.maximum.reduce([rows[source] for source in event.sources])
            if event.resource is not None:
                free, done = event.resource
                rows[free] = end + busy
                rows[done] = end = np.maximum(rows[done], end + latency)
                for slot in event.slots:
                    rows[slot] = np.maximum(rows[slot], end)
            if event.token is not None:
                rows[event.token] = end


def _ticks(event: Event, window: Window) -> tuple[int, int]:
    if event.resource is None:
        return 0, 0
    trip = window[event.age]
    work = None if trip is None else trip.work[event.entry]
    assert isinstance(work, Busy)
    return work.busy, work.latency
