"""The simulator: when every operation of a schedule starts and ends, exactly.

Plainly it takes one event at a time (`program_order` gives them, `event_simulation` executes them, `cost_model` prices
them). Long kernels consist of few kinds of trips; `skip_ahead` knows what many of them do at once, with the same
result to the tick.

    simulate_kernel(kernel, accelerator).latency_cycles
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Protocol

from xdsl.ir import BlockArgument, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import (
    KernelOp,
    LoadOp,
    OffchipOp,
    OnchipOp,
    RopeTableOp,
    ScheduleOp,
    StoreOp,
    TimedOp,
    stays_on_chip,
    storage,
)
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.simulation.budget import Budget, OutOfBudget
from flatc.passes.simulation.event_simulation import Simulation
from flatc.passes.simulation.program_order import walk
from flatc.passes.simulation.skip_ahead import FastSimulation
from flatc.passes.simulation.trip_plan import CannotSkip


@frozen
class KernelSimulation:
    """What the simulator measured of one kernel.

    `latency_cycles` from the start of the kernel to its last result; `busy_cycles` by resource; bytes by
    tensor off chip as (read, written); `events` counts executed operations.
    """

    latency_cycles: Fraction
    busy_cycles: dict[str, Fraction]
    tensor_bytes: dict[str, tuple[int, int]]
    work: Work
    peak_buffer_bytes: int
    events: int


def simulate_kernel(kernel: KernelOp, accelerator: Accelerator, *, skip_ahead: bool = True) -> KernelSimulation:
    """Runs one kernel. With `skip_ahead` it takes trips together (see there); the result is the same to the tick."""
    model = CostModel(accelerator)
    if skip_ahead:
        try:
            return summary(kernel, FastSimulation(kernel, model))
        except CannotSkip:
            pass
    simulation = Simulation(model)
    for event in walk(kernel):
        simulation.execute(event)
    return summary(kernel, simulation)


def try_simulate(kernel: KernelOp, accelerator: Accelerator, effort: int | Budget) -> KernelSimulation | None:
    """As `simulate_kernel`, but gives up, with None, when it takes more effort than so many events.

    Most kernels take far less effort than they have events.
    """
    budget = effort if isinstance(effort, Budget) else Budget(effort)
    try:
        return summary(kernel, FastSimulation(kernel, CostModel(accelerator), budget))
    except (CannotSkip, OutOfBudget):
        return None


class Simulated(Protocol):
    """What any way to simulate a kernel comes to: the last tick, and how often each operation ran on which extents."""

    model: CostModel
    end: int
    executed: Counter[tuple[TimedOp, tuple[int, ...]]]


def summary(kernel: KernelOp, simulation: Simulated) -> KernelSimulation:
    """What a simulation measured."""
    model = simulation.model
    work, tensors = Work(), dict[str, tuple[int, int]]()
    busy: Counter[str] = Counter()
    for (op, extents), times in simulation.executed.items():
        price = model.price(op, extents)
        busy[model.resource(op)] += price.busy * times
        one = price.work * times
        work = work + one
        if isinstance(op, LoadOp | StoreOp) and op.tensor is not None and not stays_on_chip(op.tensor):
            name = tensor_name(op.tensor)
            read, written = tensors.get(name, (0, 0))
            tensors[name] = (read + one.offchip_read_bytes, written + one.offchip_write_bytes)
    return KernelSimulation(
        latency_cycles=Fraction(simulation.end, model.ticks_per_cycle),
        busy_cycles={r: Fraction(t, model.ticks_per_cycle) for r, t in sorted(busy.items())},
        tensor_bytes=dict(sorted(tensors.items())),
        work=work,
        peak_buffer_bytes=peak_buffer_bytes(kernel),
        events=sum(simulation.executed.values()),
    )


def peak_buffer_bytes(kernel: KernelOp) -> int:
    """Bytes on chip for the kernel's own buffers: up to the end of the highest one."""
    buffers = [buffer for buffer in kernel.buffers() if buffer.registers is None]
    if all(b.address is None for b in buffers):
        return sum(b.total_bytes for b in buffers)
    return max((b.address.data + b.total_bytes for b in buffers if b.address is not None), default=0)


def tensor_name(tensor: SSAValue) -> str:
    """The name a user knows a tensor by that a kernel loads or stores."""
    tensor = storage(tensor)
    owner = tensor.owner
    if isinstance(owner, OffchipOp | OnchipOp | RopeTableOp):
        return owner.label.data
    schedule = owner.parent_op()
    assert isinstance(schedule, ScheduleOp), "a tensor is an input of the schedule or declared in it"
    assert isinstance(tensor, BlockArgument)
    return schedule.input_names.data[tensor.index].data
