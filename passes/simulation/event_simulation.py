"""The state of time: what one event does to resources, slots and tokens.

Each resource issues and finishes its operations in program order; an operation starts when the tokens it waits for,
the slots of its buffers and its resource are ready (see `flatc.dialects.spatial`):

    start = max(tokens, free_at[resource], handed_over of each buffer's slot)
    free_at[resource] = start + busy
    token = done_at[resource] = max(start + latency, done_at[resource])
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flatc.dialects.spatial import BufferOp, TimedOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.program_order import Event


@dataclass
class Slot:
    """One slot of a buffer: which instance owns it, when it was handed over, when it was last in use."""

    instance: int = -1
    handed_over: int = 0
    in_use_until: int = 0


class Simulation:
    """The state of time: what `execute` updates with every event."""

    def __init__(self, model: CostModel):
        self.model = model
        self.free_at: dict[str, int] = {}
        self.done_at: dict[str, int] = {}
        self.executed: Counter[tuple[TimedOp, tuple[int, ...]]] = Counter()
        self.end = 0
        self.slots: dict[tuple[BufferOp, int], Slot] = {}
        self._slot_counts: dict[BufferOp, int] = {}
        self._resources: dict[TimedOp, str] = {}

    def execute(self, event: Event) -> None:
        op = event.op
        ready = max(event.tokens(), default=0)
        if not event.active():
            event.complete(ready)
            self.passed(event, ready)
            return
        extents = event.extents()
        cost = self.model.price(op, extents)
        resource = self._resources.get(op)
        if resource is None:
            resource = self._resources[op] = self.model.resource(op)
        slots = [self._claim(buffer, instance) for buffer, instance in event.instances()]
        free = self.free_at.get(resource, 0)
        start = max(ready, free, *(slot.handed_over for slot in slots))
        if start > free:
            self.waited(event, resource, free, start)
        self.free_at[resource] = start + cost.busy
        done = self.done_at[resource] = max(start + cost.latency, self.done_at.get(resource, 0))
        for slot in slots:
            slot.in_use_until = max(slot.in_use_until, done)
        self.executed[op, extents] += 1
        self.end = max(self.end, done)
        event.complete(done)

    def passed(self, event: Event, ready: int) -> None:
        """Called where an operation idles, and hands on the time at which what it waited for was ready."""

    def waited(self, event: Event, resource: str, free: int, start: int) -> None:
        """Called where a resource stands idle from `free` to `start` because its next operation is not ready."""

    def _claim(self, buffer: BufferOp, instance: int) -> Slot:
        count = self._slot_counts.get(buffer)
        if count is None:
            count = self._slot_counts[buffer] = buffer.slots.data
        key = (buffer, instance % count)
        slot = self.slots.get(key)
        if slot is None:
            slot = self.slots[key] = Slot()
        if slot.instance != instance:
            slot.instance, slot.handed_over = instance, slot.in_use_until
        return slot
