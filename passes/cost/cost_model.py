"""Prices of operations: ticks on their resource and counts of work, from the primitive costs.

A `CostModel` belongs to one accelerator. Time is counted in integer ticks, `ticks_per_cycle` of which make one cycle,
chosen so that a byte takes a whole number of ticks on every channel: nothing is ever rounded but copies within the
buffer, to a tick.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import cast

from xdsl.ir import SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.dialects.score_functions import REPEATED_OPERANDS
from flatc.dialects.spatial import (
    VECTOR_KINDS,
    BufferOp,
    BufferType,
    LoadOp,
    MatmulOp,
    StoreOp,
    TimedOp,
    VectorOp,
    stays_on_chip,
)
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.passes.cost.primitive_costs import (
    ArrayCycles,
    MatmulTile,
    ScoreTile,
    VectorWork,
    Work,
    array_cycles,
    chained_traffic,
    copy_ticks,
    operand_traffic,
    pe_cycles,
    repeated_elements,
    value_price,
    vector_cycles,
    vector_energy_pj,
    vector_work,
)


@frozen
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

    def busy_cycles(self, op: TimedOp, extents: tuple[int, ...]) -> Fraction:
        """How long `op` takes its resource."""
        return Fraction(self.price(op, extents).busy, self.ticks_per_cycle)

    def _price(self, op: TimedOp, extents: tuple[int, ...]) -> OpCost:
        if isinstance(op, LoadOp | StoreOp):
            return self._transfer(op, extents)
        if isinstance(op, MatmulOp):
            return self._matmul(op, extents)
        assert isinstance(op, VectorOp)
        return self._vector(op, extents)

    def _transfer(self, op: LoadOp | StoreOp, extents: tuple[int, ...]) -> OpCost:
        size = math.prod(extents) * op.tensor_type.element_bytes
        if op.tensor is not None and stays_on_chip(op.tensor):
            return self._copy(size)
        latency = self.accelerator.offchip.latency_cycles * self.ticks_per_cycle if size else 0
        overhead = self.accelerator.offchip.overhead_cycles * self.ticks_per_cycle if size else 0
        transfers = op.transfers(extents)
        # Where the next block lies is read from a table on chip.
        looked_up = transfers * sum(map(_element_bytes, op.tables))
        if isinstance(op, LoadOp):
            busy = size * self._read_ticks + overhead * transfers
            work = Work(offchip_read_bytes=size, buffer_write_bytes=size, buffer_read_bytes=looked_up)
            return OpCost(busy, busy + latency, work)
        busy = size * self._write_ticks + overhead * transfers
        return OpCost(busy, busy + latency, Work(offchip_write_bytes=size, buffer_read_bytes=size + looked_up))

    def _copy(self, size: int) -> OpCost:
        """A transfer of a tensor that stays on chip: it holds its channel, and nothing goes off chip."""
        overhead = self.accelerator.offchip.overhead_cycles * (size > 0)
        ticks = copy_ticks(self.accelerator, size, self.ticks_per_cycle) + overhead * self.ticks_per_cycle
        return OpCost(ticks, ticks, Work(buffer_read_bytes=size, buffer_write_bytes=size))

    def _matmul(self, op: MatmulOp, extents: tuple[int, ...]) -> OpCost:
        tile = matmul_tile(op, extents)
        stationarity = op.stationarity.data
        fold = (op.fold_rows.data, op.fold_columns.data)
        cycles = array_cycles(self.accelerator.array, stationarity, fold, tile)
        traffic = operand_traffic(self.accelerator.array, stationarity, tile, accumulate=op.accumulate is not None)
        a, b, c = (*op.reads, *op.writes)
        chained = _is_product(a) and not in_registers(a)
        copied = chained_traffic(self.accelerator.array, tile) * _element_bytes(a) if chained else 0
        work = (
            Work(macs=tile.batch * tile.m * tile.n * tile.k, buffer_read_bytes=copied, buffer_write_bytes=copied)
            + _read(a, traffic.a_reads)
            + _read(b, traffic.b_reads)
            + _read(c, traffic.c_reads)
            + _written(c, traffic.c_writes)
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
        if op.kind.data in VALUE_KINDS:
            return self._value(op, extents)
        work = vector_operation_work(op)
        counts = Work(
            vector_energy_pj=vector_energy_pj(unit, work, elements, rows),
            vector_elements=elements * len(work.per_element),
        )
        kind = VECTOR_KINDS[op.kind.data]
        for name, value in zip(kind.reads, op.reads, strict=False):
            counts = counts + _read(value, _elements(name, value, extents))
        if op.kind.data == "divide_by_last":  # it reads one column more than it writes
            counts = counts + _read(op.reads[0], rows)
        for name, value in zip(kind.writes, op.writes, strict=False):
            counts = counts + _written(value, _elements(name, value, extents))
        cycles = self._on_array(op, work, extents)
        if cycles is None:
            ticks = vector_cycles(unit, work, elements, rows) * self.ticks_per_cycle
            return OpCost(ticks, ticks, counts)
        return OpCost(cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle, counts)

    def _on_array(self, op: VectorOp, work: VectorWork, extents: tuple[int, ...]) -> ArrayCycles | None:
        """The cycles of PEs that do an operation; None where the vector unit does it."""
        if op.on_array is None:
            return None
        array = self.accelerator.array
        for name in work.per_element:
            if array.cycles_of(name) is None:
                raise FlatcError(
                    f"the PEs of accelerator '{self.accelerator.name}' cannot do '{name}', which {op.kind.data} on its "
                    "array needs",
                    help="leave it to the vector unit, or price it in array: operations",
                )
        batch, rows = op.on_array.batch_rank, extents[:-1]
        tile = ScoreTile(math.prod(rows[:batch]), math.prod(rows[batch:]), extents[-1])
        return pe_cycles(array, work.per_element, op.on_array.fold, tile)

    def _value(self, op: VectorOp, extents: tuple[int, ...]) -> OpCost:
        """An operation on values: it reads each operand as it lies in its buffer, without repeated dims."""
        reads = [(repeated_elements(_dims(value), extents), _element_bytes(value)) for value in op.reads]
        price = value_price(
            self.accelerator.vector, vector_operation_work(op), extents, reads, _element_bytes(op.writes[0])
        )
        ticks = price.cycles * self.ticks_per_cycle
        return OpCost(ticks, ticks, price.work)


def matmul_tile(op: MatmulOp, extents: tuple[int, ...]) -> MatmulTile:
    """The product that one execution of a matmul computes."""
    batch, (*rows, n, k) = op.batch_rank.data, extents
    return MatmulTile(math.prod(rows[:batch]), math.prod(rows[batch:]), n, k)


def vector_operation_work(op: VectorOp) -> VectorWork:
    """The operations of the price table that a vector operation performs."""
    changes_type = _element_type(op.reads[0]) != _element_type(op.writes[0])
    if op.on_array is not None:  # PEs round what they write
        return vector_work(op.kind.data, reads=len(op.reads), writes=len(op.writes), converts=False)
    rounds = ("exp", "divide", "divide_by_last", "cast")
    converts = (op.kind.data in rounds or op.kind.data in VALUE_KINDS) and changes_type
    return vector_work(op.kind.data, reads=len(op.reads), writes=len(op.writes), converts=converts)


def adds_product(op: VectorOp) -> bool:
    """Whether a vector operation adds what the array made to what it made before."""
    return op.kind.data == "add" and _is_product(op.reads[0])


def _elements(name: str, buffer: SSAValue, extents: tuple[int, ...]) -> int:
    """How many elements of an operand move: each of the tile, one a row, or, of what is repeated, what is stored.

    A table is looked up for each element.
    """
    if name in REPEATED_OPERANDS:
        return repeated_elements(_dims(buffer), extents)
    of_tile = name == "table" or len(_dims(buffer)) == len(extents)
    return math.prod(extents if of_tile else extents[:-1])


def in_registers(buffer: SSAValue) -> bool:
    """Whether a buffer is spread over the registers of the PEs."""
    return isinstance(buffer.owner, BufferOp) and buffer.owner.registers is not None


def _read(buffer: SSAValue, elements: int) -> Work:
    size = elements * _element_bytes(buffer)
    return Work(register_bytes=size) if in_registers(buffer) else Work(buffer_read_bytes=size)


def _written(buffer: SSAValue, elements: int) -> Work:
    size = elements * _element_bytes(buffer)
    return Work(register_bytes=size) if in_registers(buffer) else Work(buffer_write_bytes=size)


def _is_product(buffer: SSAValue) -> bool:
    """Whether a matrix product writes into the buffer."""
    return any(isinstance(use.operation, MatmulOp) and buffer in use.operation.writes for use in buffer.uses)


def _element_bytes(value: SSAValue) -> int:
    return cast(BufferType, value.type).element_bytes


def _dims(value: SSAValue) -> tuple[int, ...]:
    return cast(BufferType, value.type).dims


def _element_type(value: SSAValue) -> object:
    return cast(BufferType, value.type).element_type
