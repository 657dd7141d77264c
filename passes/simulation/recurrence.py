"""Recurrence: a simulation event by event passes over trips that repeat exactly, and loses nothing.

Counting stalls (`stalls`) needs every event of a trip, which the maps of `skip_ahead` do not show.

The state of a simulation between two trips of a loop is a set of times: when each resource is free and done, when each
slot was last in use, when the tokens are ready that later stages still wait for. The next trip maps it to the
next state by maxima and additions alone, so it commutes with a shift of all times. Hence, if the trips of a stretch
are alike and the state recurs after p trips with every time later by the same D, the rest of the stretch does nothing
but add D every p trips:

    state(i + p) = state(i) + D   and trips i .. j alike   =>   state(i + m p) = state(i) + m D   for i + m p <= j

Two kinds of times need care. A time that does not move but lies before every time at which something can still
start in the loop (the least of the free times of the resources the loop uses) has no effect and may stay. And a
time that no operation of the loop looks at may stay as well.

Trips are alike if extents, conditions and inner trip counts, as functions of the loop index, are; offsets do not
matter to time. The last trip of a loop is never skipped, because what follows the loop belongs to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xdsl.ir import BlockArgument, SSAValue

from flatc.dialects.quasi_affine import Expr
from flatc.dialects.spatial import BufferOp, ForOp, TimedOp
from flatc.passes.simulation.event_simulation import Simulation, Slot
from flatc.passes.simulation.program_order import Boundary, Frame

LONGEST_PERIOD = 12
"""Snapshots kept of each loop. The period of a max-plus system divides the lengths of its critical cycles, which
are slot counts here; a longer period costs time, never exactness."""

SHORTEST_STRETCH = 3
"""Trips left below which looking for a period does not pay."""

Key = tuple[Any, ...]

Owner = tuple[Any, Any]
"""Where a time is kept: a dictionary and a key of it, or an object and the name of an attribute."""


@dataclass(slots=True)
class _Snapshot:
    """The state between two trips of a loop: its times, in an order that only depends on what they are.

    `keys` say what each time is, `owners` where it is kept, `matters` whether the loop looks at it.
    """

    next_value: int
    structure: Key
    counters: dict[BufferOp, int]
    executed: Counter[Any]
    end: int
    horizon: int
    keys: list[Key] = field(default_factory=list[Key])
    values: list[int] = field(default_factory=list[int])
    matters: list[bool] = field(default_factory=list[bool])
    owners: list[Owner] = field(default_factory=list[Owner])

    def add(self, key: Key, value: int, matters: bool, owner: Owner) -> None:
        """Adds one time."""
        self.keys.append(key)
        self.values.append(value)
        self.matters.append(matters)
        self.owners.append(owner)


class _LoopFacts:
    """What of a loop does not change while it runs: who takes part, and where its trips change."""

    def __init__(self, loop: ForOp, simulation: Simulation):
        self.loop = loop
        inside = set(loop.walk())
        self.ops = [op for op in inside if isinstance(op, TimedOp)]
        self.resources = {simulation.model.resource(op) for op in self.ops}
        self.buffers = {buffer for buffer in inside if isinstance(buffer, BufferOp)}
        touched = {value.owner for op in self.ops for value in (*op.reads, *op.writes)}
        self.touched = {buffer for buffer in touched if isinstance(buffer, BufferOp)}
        self.tokens = set(_tokens_used(loop))
        # A token carried by a loop around may stand for any token of that loop.
        self.any_token = any(isinstance(t, BlockArgument) and t.owner.parent_op() not in inside for t in self.tokens)
        self.any_token |= any(isinstance(t.owner, ForOp) and t.owner not in inside for t in self.tokens)
        self._inner = {op.index for op in inside if isinstance(op, ForOp) and op is not loop}
        self._shaping = [
            (expr, indices, sign_only)
            for expr, indices, sign_only in _shaping(loop)
            if loop.index in (indices[int(name[1:])] for name in expr.variables())
        ]
        # The indices of loops around that shape the trips, in a fixed order.
        shaping = {indices[int(name[1:])]: None for expr, indices, _ in self._shaping for name in expr.variables()}
        self._outer = [index for index in shaping if index not in self._inner and index is not loop.index]
        self._changes: dict[Key, list[int]] = {}

    def changes(self, parent: Frame, lower: int, upper: int) -> list[int]:
        """The index values at which a stretch of alike trips begins, ascending."""
        key = (lower, upper, *(parent.indices[index] for index in self._outer))
        known = self._changes.get(key)
        if known is None:
            known = self._changes[key] = self._find_changes(parent, lower, upper)
        return known

    def _find_changes(self, parent: Frame, lower: int, upper: int) -> list[int]:
        import numpy as np

        values = np.arange(lower, upper, dtype=np.int64)
        changed = np.zeros(len(values), dtype=bool)
        for expr, indices, sign_only in self._shaping:
            used = {indices[int(name[1:])] for name in expr.variables()}
            if used & self._inner:
                return list(range(lower, upper))
            known = {
                f"d{i}": values if v is self.loop.index else parent.indices[v]
                for i, v in enumerate(indices)
                if v in used
            }
            result = expr.evaluate(known)
            result = result > 0 if sign_only else result
            changed[1:] |= result[1:] != result[:-1]
        return [lower, *(int(v) for v in values[changed])]


def _tokens_used(loop: ForOp) -> Iterator[SSAValue]:
    for op in loop.walk():
        if isinstance(op, TimedOp):
            yield from op.after
        elif isinstance(op, ForOp):
            yield from op.inits
            yield from op.yield_op.tokens


def _shaping(loop: ForOp) -> Iterator[tuple[Expr, list[SSAValue], bool]]:
    """The expressions inside a loop that decide what its trips do, with their indices; conditions count by sign."""
    for op in loop.walk():
        if isinstance(op, TimedOp):
            for extent in op.extents:
                yield extent.data, list(op.indices), False
            if op.when is not None:
                yield op.when.data, list(op.indices), True
        elif isinstance(op, ForOp) and op is not loop:
            yield op.lower.data, list(op.indices), False
            yield op.upper.data, list(op.indices), False


class Recurrence:
    """A `Skipper` for one simulation of one kernel."""

    def __init__(self, simulation: Simulation):
        self._simulation = simulation
        self._facts: dict[ForOp, _LoopFacts] = {}
        self._history: dict[ForOp, tuple[Frame, list[_Snapshot]]] = {}
        self._slots_seen = -1
        self._by_buffer: dict[BufferOp, list[Slot]] = {}

    def __call__(self, boundary: Boundary) -> int:
        loop = boundary.chain.loops[boundary.level]
        if boundary.upper - boundary.next_value <= SHORTEST_STRETCH:
            return 0
        facts = self._facts.get(loop)
        if facts is None:
            facts = self._facts[loop] = _LoopFacts(loop, self._simulation)
        changes = facts.changes(boundary.parent, boundary.lower, boundary.upper)
        stretch = bisect_right(changes, boundary.next_value - 1)
        end = changes[stretch] if stretch < len(changes) else boundary.upper
        left = min(end, boundary.upper - 1) - boundary.next_value
        if left < SHORTEST_STRETCH:
            return 0
        return self._look(loop, facts, boundary, changes, left)

    def _look(self, loop: ForOp, facts: _LoopFacts, boundary: Boundary, changes: list[int], left: int) -> int:
        parent, snapshots = self._history.get(loop, (boundary.parent, []))
        if parent is not boundary.parent:
            snapshots = []
        now = self._snapshot(facts, boundary, changes)
        for before in reversed(snapshots):
            shift = _recurs(before, now)
            if shift is not None:
                period = now.next_value - before.next_value
                times = left // period
                if times:
                    self._jump(boundary, before, now, shift, period, times)
                    snapshots = []
                    self._history[loop] = (boundary.parent, snapshots)
                    return period * times
        snapshots = [*snapshots[-LONGEST_PERIOD + 1 :], now]
        self._history[loop] = (boundary.parent, snapshots)
        return 0

    # --- Taking a snapshot ------------------------------------------------------------------------------

    def _snapshot(self, facts: _LoopFacts, boundary: Boundary, changes: list[int]) -> _Snapshot:
        simulation = self._simulation
        free_at = simulation.free_at
        snapshot = _Snapshot(
            next_value=boundary.next_value,
            structure=self._structure(facts, boundary, changes),
            counters={buffer: boundary.counters.get(buffer, 0) for buffer in facts.buffers},
            executed=Counter(simulation.executed),
            end=simulation.end,
            horizon=min(free_at.get(resource, 0) for resource in facts.resources),
        )
        for word, times in (("free", free_at), ("done", simulation.done_at)):
            for resource in sorted(times):
                snapshot.add((word, resource), times[resource], resource in facts.resources, (times, resource))
        self._add_slots(snapshot, facts)
        self._add_tokens(snapshot, facts, boundary)
        return snapshot

    def _add_slots(self, snapshot: _Snapshot, facts: _LoopFacts) -> None:
        for buffer, slots in self._slots_by_buffer().items():
            # Instances are told apart by how many came after them, so that the same state looks the same later.
            newest = snapshot.counters.get(buffer, 0)
            matters = buffer in facts.touched
            for slot in sorted(slots, key=lambda slot: -slot.instance):
                age = newest - slot.instance
                snapshot.add((buffer, age), slot.in_use_until, matters, (slot, "in_use_until"))
                snapshot.add((buffer, age), slot.handed_over, matters, (slot, "handed_over"))

    def _slots_by_buffer(self) -> dict[BufferOp, list[Slot]]:
        slots = self._simulation.slots
        if len(slots) != self._slots_seen:
            self._slots_seen = len(slots)
            self._by_buffer = {}
            for (buffer, _), slot in slots.items():
                self._by_buffer.setdefault(buffer, []).append(slot)
        return self._by_buffer

    def _add_tokens(self, snapshot: _Snapshot, facts: _LoopFacts, boundary: Boundary) -> None:
        seen: set[int] = set()
        for age, trip in enumerate(boundary.window):
            for level, frame in enumerate(trip.frames):
                if level >= boundary.level and id(frame) not in seen:
                    seen.add(id(frame))
                    for token, value in frame.values.items():
                        snapshot.add((age, level, token), value, True, (frame.values, token))
        outer: Frame | None = boundary.parent
        while outer is not None:
            for token, value in outer.values.items():
                matters = facts.any_token or token in facts.tokens
                snapshot.add((id(outer), token), value, matters, (outer.values, token))
            outer = outer.parent

    @staticmethod
    def _structure(facts: _LoopFacts, boundary: Boundary, changes: list[int]) -> Key:
        """What decides the operations that the trips at work still owe, beside the times."""
        shape: list[Key] = []
        for trip in boundary.window:
            frames = trip.frames
            inside = len(frames) > boundary.level and frames[boundary.level].parent is boundary.parent
            stretch = bisect_right(changes, frames[boundary.level].indices[facts.loop.index]) if inside else -1
            shape.append((tuple(trip.first), tuple(trip.last), stretch, 0 if inside else id(frames[-1])))
        return tuple(shape)

    # --- Jumping ----------------------------------------------------------------------------------------

    def _jump(self, boundary: Boundary, before: _Snapshot, now: _Snapshot, shift: int, period: int, times: int) -> None:
        """Puts simulation, frames and counters where they are after `times` more periods."""
        simulation = self._simulation
        for value, old, owner in zip(now.values, before.values, now.owners, strict=True):
            if value - old == shift:
                _put(owner, value + shift * times)
        if now.end - before.end == shift:
            simulation.end += shift * times
        for key, count in now.executed.items():
            simulation.executed[key] += (count - before.executed[key]) * times
        created = {buffer: (now.counters[buffer] - before.counters[buffer]) * times for buffer in now.counters}
        self._renumber(boundary, created, period * times)

    def _renumber(self, boundary: Boundary, created: dict[BufferOp, int], trips: int) -> None:
        for buffer, count in created.items():
            if count:
                boundary.counters[buffer] += count
        slots = self._simulation.slots
        moved: dict[tuple[BufferOp, int], Slot] = {}
        for (buffer, place), slot in list(slots.items()):
            if created.get(buffer):
                slot.instance += created[buffer]
                moved[buffer, slot.instance % buffer.slots.data] = slot
                del slots[buffer, place]
        slots.update(moved)
        index = boundary.chain.loops[boundary.level].index
        seen: set[int] = set()
        for trip in boundary.window:
            for frame in trip.frames[boundary.level :]:
                if id(frame) not in seen:
                    seen.add(id(frame))
                    frame.indices[index] += trips
                    for buffer in frame.instances:
                        frame.instances[buffer] += created.get(buffer, 0)


def _recurs(before: _Snapshot, now: _Snapshot) -> int | None:
    """The shift between two states that are the same but for it, or None."""
    if before.structure != now.structure or before.keys != now.keys:
        return None
    shift = now.horizon - before.horizon
    if shift <= 0:
        return None
    for value, old, matters in zip(now.values, before.values, now.matters, strict=True):
        moved = value - old
        if moved != shift and (moved or (matters and value > before.horizon)):
            return None
    return shift


def _put(owner: Owner, value: int) -> None:
    holder, key = owner
    if isinstance(holder, dict):
        holder[key] = value
    else:
        setattr(holder, key, value)
