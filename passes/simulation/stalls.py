"""Why resources stand idle: a simulation that notes what each operation waited for.

When a resource is free and its next operation is not ready, the time until it starts is a stall, and what became
ready last is its cause: the operation behind a token, or the previous user of a buffer's slot. Busy times, stalls and
the time after a resource's last operation add up to the latency, exactly:

    latency = busy + sum of stalls + time after the last operation        for every resource

Stalls repeat with the trips they occur in, so the simulation may skip ahead as any other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from typing_extensions import override

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.spatial import KernelOp, LoadOp, MatmulOp, StoreOp, TimedOp, VectorOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.event_simulation import Simulation
from flatc.passes.simulation.program_order import Event, walk
from flatc.passes.simulation.recurrence import Recurrence
from flatc.passes.simulation.simulator import tensor_name


@dataclass(frozen=True)
class Stall:
    """A kind of stall: which resource stood idle, and what it waited for (resource or `slots`, and what of it)."""

    resource: str
    waits_for: str
    what: str


@dataclass(frozen=True)
class ResourceTime:
    """How one resource spent a kernel's time, in cycles."""

    busy: Fraction
    stalls: dict[Stall, Fraction]
    after: Fraction


@dataclass(frozen=True)
class KernelTime:
    """Where a kernel's time went: each resource's, and how often each operation ran on which extents."""

    latency_cycles: Fraction
    resources: dict[str, ResourceTime]
    executed: dict[tuple[TimedOp, tuple[int, ...]], int]


class StallSimulation(Simulation):
    """A simulation that counts stalls beside the operations it executes: both repeat with the trips."""

    def __init__(self, model: CostModel):
        super().__init__(model)
        self._names: dict[TimedOp, tuple[str, str]] = {}

    @override
    def waited(self, event: Event, resource: str, free: int, start: int) -> None:
        waits_for, what = self._cause(event, start)
        self.executed[Stall(resource, waits_for, what)] += start - free  # pyright: ignore[reportArgumentType]

    def _cause(self, event: Event, start: int) -> tuple[str, str]:
        for producer, ready in event.producers():
            if ready == start:
                return self._name(producer)
        # No token was that late, so a slot was: the buffers it touches are in textual order.
        for buffer, instance in event.instances():
            slot = self.slots[buffer, instance % buffer.slots.data]
            if slot.handed_over == start:
                return "slots", buffer.label.data
        raise AssertionError("an operation starts when something becomes ready")

    def _name(self, op: TimedOp) -> tuple[str, str]:
        name = self._names.get(op)
        if name is None:
            name = self._names[op] = (self.model.resource(op), operation_name(op))
        return name


def operation_name(op: TimedOp) -> str:
    """What a user calls an operation: `load k`, `matmul into scores`, `exp`."""
    if isinstance(op, LoadOp | StoreOp):
        assert op.tensor is not None
        return f"{'load' if isinstance(op, LoadOp) else 'store'} {tensor_name(op.tensor)}"
    if isinstance(op, MatmulOp):
        buffer, _ = _buffer(op)
        return f"matmul into {buffer}"
    assert isinstance(op, VectorOp)
    return op.kind.data.replace("_", " ")


def _buffer(op: MatmulOp) -> tuple[str, int]:
    from flatc.dialects.spatial import BufferOp

    owner = op.writes[0].owner
    assert isinstance(owner, BufferOp)
    return owner.label.data, owner.slots.data


def kernel_time(kernel: KernelOp, accelerator: Accelerator) -> KernelTime:
    """Simulates one kernel and says where its time went."""
    simulation = StallSimulation(CostModel(accelerator))
    for event in walk(kernel, Recurrence(simulation)):
        simulation.execute(event)
    return _summary(simulation)


def _summary(simulation: StallSimulation) -> KernelTime:
    model = simulation.model
    busy: Counter[str] = Counter()
    stalls: dict[str, dict[Stall, Fraction]] = {}
    executed: dict[tuple[TimedOp, tuple[int, ...]], int] = {}
    for key, count in simulation.executed.items():
        if isinstance(key, Stall):
            stalls.setdefault(key.resource, {})[key] = Fraction(count, model.ticks_per_cycle)
        else:
            executed[key] = count
            busy[model.resource(key[0])] += model.price(*key).busy * count
    return KernelTime(
        latency_cycles=Fraction(simulation.end, model.ticks_per_cycle),
        resources={
            resource: ResourceTime(
                busy=Fraction(busy[resource], model.ticks_per_cycle),
                stalls=stalls.get(resource, {}),
                after=Fraction(simulation.end - free, model.ticks_per_cycle),
            )
            for resource, free in sorted(simulation.free_at.items())
        },
        executed=executed,
    )
