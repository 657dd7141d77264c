"""Why resources stand idle: a simulation that notes what each operation waited for.

When a resource is free and its next operation is not ready, the time until it starts is a stall, and what became
ready last is its cause: the operation behind a token, or the previous user of a buffer's slot. Busy times, stalls and
the time after a resource's last operation add up to the latency, exactly:

    latency = busy + sum of stalls + time after the last operation        for every resource

Stalls repeat with the trips they occur in, so they need no walk along every event (`stall_scripts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from typing_extensions import override
from xdsl.ir import OpResult

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import KernelOp, LoadOp, MatmulOp, StoreOp, TimedOp, VectorOp, stays_on_chip
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.budget import OutOfBudget
from flatc.passes.simulation.event_simulation import Simulation
from flatc.passes.simulation.program_order import Event, Frame, walk
from flatc.passes.simulation.simulator import KernelSimulation, summary, tensor_name
from flatc.passes.simulation.stall_scripts import StallScripts
from flatc.passes.simulation.trip_plan import CannotSkip


@frozen
class Stall:
    """A kind of stall: which resource stood idle, and what it waited for (resource or `slots`, and what of it)."""

    resource: str
    waits_for: str
    what: str


@frozen
class ResourceTime:
    """How one resource spent a kernel's time, in cycles."""

    busy: Fraction
    stalls: dict[Stall, Fraction]
    after: Fraction


@frozen
class KernelTime:
    """Where a kernel's time went: each resource's, and how often each operation ran on which extents."""

    latency_cycles: Fraction
    resources: dict[str, ResourceTime]
    executed: dict[tuple[TimedOp, tuple[int, ...]], int]

    def renamed(self, ops: Mapping[TimedOp, TimedOp]) -> KernelTime:
        """The time of a kernel that is the same but for its tensors, given which of its operations is which."""
        names = {operation_name(op): operation_name(other) for op, other in ops.items()}

        def stall(found: Stall) -> Stall:
            what = found.what if found.waits_for == "slots" else names.get(found.what, found.what)
            return replace(found, what=what)

        return KernelTime(
            self.latency_cycles,
            {
                name: replace(time, stalls={stall(found): cycles for found, cycles in time.stalls.items()})
                for name, time in self.resources.items()
            },
            {(ops[op], extents): times for (op, extents), times in self.executed.items()},
        )


class StallSimulation(Simulation):
    """A plain simulation that notes stalls, by resource and what it waited for: an operation, or a buffer's label."""

    def __init__(self, model: CostModel):
        super().__init__(model)
        self.stalls: Counter[tuple[str, TimedOp | str]] = Counter()
        self._behind: dict[tuple[Frame, OpResult], TimedOp | None] = {}

    @override
    def passed(self, event: Event, ready: int) -> None:
        self._behind[event.frame, event.op.token] = self._producer(event, ready)

    @override
    def waited(self, event: Event, resource: str, free: int, start: int) -> None:
        self.stalls[resource, self._cause(event, start)] += start - free

    def _cause(self, event: Event, start: int) -> TimedOp | str:
        producer = self._producer(event, start)
        if producer is not None:
            return producer
        # No token was that late, so a slot was: the buffers it touches are in textual order.
        for buffer, instance in event.instances():
            if self.slots[buffer, instance % buffer.slots.data].handed_over == start:
                return buffer.label.data
        raise AssertionError("an operation starts when something becomes ready")

    def _producer(self, event: Event, ready: int) -> TimedOp | None:
        """The first operation whose token was ready then; behind one that idles, what that one waited for."""
        for frame, token in event.places():
            if frame.values[token] == ready:
                assert isinstance(token.owner, TimedOp)
                return self._behind.get((frame, token), token.owner)
        return None


def operation_name(op: TimedOp) -> str:
    """What a user calls an operation: `load k`, `copy from hidden`, `matmul into scores`, `exp`."""
    if isinstance(op, LoadOp | StoreOp):
        assert op.tensor is not None
        loads = isinstance(op, LoadOp)
        if stays_on_chip(op.tensor):
            return f"copy {'from' if loads else 'into'} {tensor_name(op.tensor)}"
        return f"{'load' if loads else 'store'} {tensor_name(op.tensor)}"
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


def kernel_time(kernel: KernelOp, accelerator: Accelerator, *, skip_ahead: bool = True) -> KernelTime:
    """Simulates one kernel and says where its time went. With `skip_ahead` the result is the same, and sooner there."""
    model = CostModel(accelerator)
    if skip_ahead:
        try:
            return _summary(StallScripts(kernel, model), model)
        except CannotSkip:
            pass
    simulation = StallSimulation(model)
    for event in walk(kernel):
        simulation.execute(event)
    return _summary(simulation, model)


def try_kernel_time(
    kernel: KernelOp, accelerator: Accelerator, most_effort: int | None
) -> tuple[KernelSimulation, KernelTime] | None:
    """What `simulate_kernel` and `kernel_time` say, from one simulation; None if that takes too long."""
    model = CostModel(accelerator)
    try:
        simulation = StallScripts(kernel, model, most_effort)
    except (CannotSkip, OutOfBudget):
        return None
    return summary(kernel, simulation), _summary(simulation, model)


def _summary(simulation: StallSimulation | StallScripts, model: CostModel) -> KernelTime:
    busy: Counter[str] = Counter()
    for (op, extents), count in simulation.executed.items():
        busy[model.resource(op)] += model.price(op, extents).busy * count
    stalls: dict[str, Counter[Stall]] = {resource: Counter() for resource in busy}
    for (resource, cause), ticks in simulation.stalls.items():
        named = ("slots", cause) if isinstance(cause, str) else (model.resource(cause), operation_name(cause))
        stalls[resource][Stall(resource, *named)] += ticks
    cycle = model.ticks_per_cycle
    resources = {
        resource: ResourceTime(
            busy=Fraction(busy[resource], cycle),
            stalls={stall: Fraction(ticks, cycle) for stall, ticks in sorted(stalls[resource].items(), key=_order)},
            after=Fraction(simulation.end - simulation.free_at[resource], cycle),
        )
        for resource in sorted(busy)
    }
    return KernelTime(Fraction(simulation.end, cycle), resources, dict(simulation.executed))


def _order(item: tuple[Stall, int]) -> tuple[int, str, str]:
    stall, ticks = item
    return -ticks, stall.waits_for, stall.what
