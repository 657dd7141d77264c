"""The simulator: when every operation of a schedule starts and ends, exactly.

Each resource issues its operations in program order; an operation starts when the tokens it waits for,
the slots of its buffers and its resource are ready. Time is counted in integer ticks, `ticks_per_cycle` of
which make one cycle, chosen so that a byte takes a whole number of ticks: nothing is ever rounded.

This is the plain form, one event at a time. It follows from the execution semantics written in
`flatc.dialects.spatial` and serves as the reference for anything faster.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from xdsl.ir import BlockArgument, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.spatial import (
    BufferOp,
    BufferType,
    KernelOp,
    LoadOp,
    MatmulOp,
    OffchipOp,
    ScheduleOp,
    StoreOp,
    TimedOp,
    VectorOp,
    ViewOp,
)
from flatc.passes.primitive_costs import (
    MatmulTile,
    Work,
    array_cycles,
    operand_traffic,
    vector_cycles,
    vector_energy_pj,
    vector_work,
)
from flatc.passes.program_order import Event, walk


@dataclass(frozen=True)
class OpCost:
    """Price of one execution: ticks its resource is taken, ticks until its result is there, and counts."""

    busy: int
    latency: int
    work: Work


class CostModel:
    """Prices operations on one accelerator, in ticks; remembers prices by operation and extents."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        read, write = accelerator.cycles_per_byte_read, accelerator.cycles_per_byte_written
        self.ticks_per_cycle = math.lcm(read.denominator, write.denominator)
        self._read_ticks = int(read * self.ticks_per_cycle)
        self._write_ticks = int(write * self.ticks_per_cycle)
        self._prices: dict[tuple[TimedOp, tuple[int, ...]], OpCost] = {}

    def resource(self, op: TimedOp) -> str:
        """The queue that issues `op`: both directions share one where the machine has one channel."""
        shared = self.accelerator.offchip.channels == "shared" and op.resource in ("read", "write")
        return "offchip" if shared else op.resource

    def price(self, op: TimedOp, extents: tuple[int, ...]) -> OpCost:
        """The price of `op` on these extents."""
        key = (op, extents)
        known = self._prices.get(key)
        if known is None:
            known = self._prices[key] = self._price(op, extents)
        return known

    def _price(self, op: TimedOp, extents: tuple[int, ...]) -> OpCost:
        if isinstance(op, LoadOp | StoreOp):
            return self._transfer(op, extents)
        if isinstance(op, MatmulOp):
            return self._matmul(op, extents)
        assert isinstance(op, VectorOp)
        return self._vector(op, extents)

    def _transfer(self, op: LoadOp | StoreOp, extents: tuple[int, ...]) -> OpCost:
        size = math.prod(extents) * op.tensor_type.element_bytes
        latency = self.accelerator.offchip.latency_cycles * self.ticks_per_cycle if size else 0
        if isinstance(op, LoadOp):
            busy = size * self._read_ticks
            return OpCost(busy, busy + latency, Work(offchip_read_bytes=size, buffer_write_bytes=size))
        busy = size * self._write_ticks
        return OpCost(busy, busy + latency, Work(offchip_write_bytes=size, buffer_read_bytes=size))

    def _matmul(self, op: MatmulOp, extents: tuple[int, ...]) -> OpCost:
        batch, (*rows, n, k) = op.batch_rank.data, extents
        tile = MatmulTile(math.prod(rows[:batch]), math.prod(rows[batch:]), n, k)
        stationarity = op.stationarity.data
        fold = (op.fold_rows.data, op.fold_columns.data)
        cycles = array_cycles(self.accelerator.array, stationarity, fold, tile)
        traffic = operand_traffic(self.accelerator.array, stationarity, tile, accumulate=op.accumulate is not None)
        a, b, c = (_element_bytes(value) for value in (*op.reads, *op.writes))
        work = Work(
            macs=tile.batch * tile.m * tile.n * tile.k,
            buffer_read_bytes=traffic.a_reads * a + traffic.b_reads * b + traffic.c_reads * c,
            buffer_write_bytes=traffic.c_writes * c,
        )
        return OpCost(cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle, work)

    def _vector(self, op: VectorOp, extents: tuple[int, ...]) -> OpCost:
        unit = self.accelerator.vector
        if not unit.lanes:
            raise FlatcError(
                f"accelerator '{self.accelerator.name}' has no vector unit and the schedule needs one ({op.kind.data})",
                help="give the accelerator file a vector unit, or compile only matrix products for it",
            )
        rows, elements = math.prod(extents[:-1]), math.prod(extents)
        first_read, first_write = _element_bytes(op.reads[0]), _element_bytes(op.writes[0])
        converts = op.kind.data in ("exp", "divide", "cast") and op.reads[0].type != op.writes[0].type
        work = vector_work(
            op.kind.data,
            reads=len(op.reads),
            writes=len(op.writes),
            converts=converts and _element_type(op.reads[0]) != _element_type(op.writes[0]),
        )
        ticks = vector_cycles(unit, work, elements, rows) * self.ticks_per_cycle
        row_reads = sum(_element_bytes(value) for value in op.reads[1:])
        row_writes = sum(_element_bytes(value) for value in op.writes[1:])
        if op.kind.data == "row_max":
            first_write, row_writes = 0, row_writes + first_write
        counts = Work(
            vector_energy_pj=vector_energy_pj(unit, work, elements, rows),
            vector_elements=elements * len(work.per_element),
            buffer_read_bytes=elements * first_read + rows * row_reads,
            buffer_write_bytes=elements * first_write + rows * row_writes,
        )
        return OpCost(ticks, ticks, counts)


def _element_bytes(value: SSAValue) -> int:
    return cast(BufferType, value.type).element_bytes


def _element_type(value: SSAValue) -> object:
    return cast(BufferType, value.type).element_type


@dataclass(frozen=True)
class KernelSimulation:
    """What the simulator measured of one kernel.

    `latency_cycles` from the start of the kernel to its last result; `busy_cycles` by resource; bytes by
    tensor as (read, written); `events` counts executed operations.
    """

    latency_cycles: Fraction
    busy_cycles: dict[str, Fraction]
    tensor_bytes: dict[str, tuple[int, int]]
    work: Work
    peak_buffer_bytes: int
    events: int


@dataclass
class _Slot:
    """One slot of a buffer: which instance owns it, when it was handed over, when it was last in use."""

    instance: int = -1
    handed_over: int = 0
    in_use_until: int = 0


class _Simulation:
    def __init__(self, model: CostModel):
        self.model = model
        self.free_at: dict[str, int] = {}
        self.busy: Counter[str] = Counter()
        self.executed: Counter[tuple[TimedOp, tuple[int, ...]]] = Counter()
        self.end = 0
        self._slots: dict[tuple[BufferOp, int], _Slot] = {}

    def execute(self, event: Event) -> None:
        op = event.op
        ready = max(event.tokens(), default=0)
        if not event.active():
            event.complete(ready)
            return
        extents = event.extents()
        cost = self.model.price(op, extents)
        resource = self.model.resource(op)
        slots = [self._claim(event, value) for value in (*op.reads, *op.writes)]
        start = max(ready, self.free_at.get(resource, 0), *(slot.handed_over for slot in slots))
        self.free_at[resource] = start + cost.busy
        done = start + cost.latency
        for slot in slots:
            slot.in_use_until = max(slot.in_use_until, done)
        self.busy[resource] += cost.busy
        self.executed[op, extents] += 1
        self.end = max(self.end, done)
        event.complete(done)

    def _claim(self, event: Event, value: SSAValue) -> _Slot:
        buffer, instance = event.instance(value)
        key = (buffer, instance % buffer.slots.data)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        if slot.instance != instance:
            slot.instance, slot.handed_over = instance, slot.in_use_until
        return slot


def simulate_kernel(kernel: KernelOp, accelerator: Accelerator) -> KernelSimulation:
    """Runs one kernel event by event. Time grows with the number of tiles: see the closed form for long ones."""
    simulation = _Simulation(CostModel(accelerator))
    for event in walk(kernel):
        simulation.execute(event)
    return _summary(kernel, simulation)


def _summary(kernel: KernelOp, simulation: _Simulation) -> KernelSimulation:
    model = simulation.model
    work, tensors = Work(), dict[str, tuple[int, int]]()
    for (op, extents), times in simulation.executed.items():
        one = model.price(op, extents).work * times
        work = work + one
        if isinstance(op, LoadOp | StoreOp):
            assert op.tensor is not None
            name = tensor_name(op.tensor)
            read, written = tensors.get(name, (0, 0))
            tensors[name] = (read + one.offchip_read_bytes, written + one.offchip_write_bytes)
    return KernelSimulation(
        latency_cycles=Fraction(simulation.end, model.ticks_per_cycle),
        busy_cycles={r: Fraction(t, model.ticks_per_cycle) for r, t in sorted(simulation.busy.items())},
        tensor_bytes=dict(sorted(tensors.items())),
        work=work,
        peak_buffer_bytes=peak_buffer_bytes(kernel),
        events=sum(simulation.executed.values()),
    )


def peak_buffer_bytes(kernel: KernelOp) -> int:
    """Bytes on chip while the kernel runs: up to the end of the highest buffer."""
    buffers = kernel.buffers()
    if all(b.address is None for b in buffers):
        return sum(b.total_bytes for b in buffers)
    return max((b.address.data + b.total_bytes for b in buffers if b.address), default=0)


def tensor_name(tensor: SSAValue) -> str:
    """The name a user knows an off-chip tensor by."""
    owner = tensor.owner
    if isinstance(owner, ViewOp):
        return tensor_name(owner.source)
    if isinstance(owner, OffchipOp):
        return owner.label.data
    schedule = owner.parent_op()
    assert isinstance(schedule, ScheduleOp), "a tensor is an input of the schedule or declared in it"
    assert isinstance(tensor, BlockArgument)
    return schedule.input_names.data[tensor.index].data
