"""Prices of operations: ticks on their resource and counts of work, from the primitive costs.

A `CostModel` belongs to one accelerator. Time is counted in integer ticks, `ticks_per_cycle` of which make one cycle,
chosen so that a byte takes a whole number of ticks on every channel: nothing is ever rounded but copies within the
buffer, to a tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import cast

from xdsl.ir import SSAValue

from flatc.dialects.accelerator import Accelerator, VectorUnit
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


Pricing = Callable[[tuple[int, ...]], OpCost]
"""The price of one operation, given its extents."""


class CostModel:
    """Prices operations on one accelerator, in ticks; remembers prices by operation and extents."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        read, write = accelerator.cycles_per_byte_read, accelerator.cycles_per_byte_written
        self.ticks_per_cycle = math.lcm(read.denominator, write.denominator)
        self._read_ticks = int(read * self.ticks_per_cycle)
        self._write_ticks = int(write * self.ticks_per_cycle)
        self._pricings: dict[TimedOp, Pricing] = {}

    def resource(self, op: TimedOp) -> str:
        """The queue that issues `op`: both directions share one where the machine has one channel."""
        shared = self.accelerator.offchip.channels == "shared" and op.resource in ("read", "write")
        return "offchip" if shared else op.resource

    def price(self, op: TimedOp, extents: tuple[int, ...]) -> OpCost:
        """The price of `op` on these extents."""
        return self.pricing(op)(extents)

    def pricing(self, op: TimedOp) -> Pricing:
        """The prices of `op`, whose attributes are read once: for those who price it on many extents."""
        known = self._pricings.get(op)
        if known is None:
            known = self._pricings[op] = cache(self._pricing(op))
        return known

    def busy_cycles(self, op: TimedOp, extents: tuple[int, ...]) -> Fraction:
        """How long `op` takes its resource."""
        return Fraction(self.price(op, extents).busy, self.ticks_per_cycle)

    def _pricing(self, op: TimedOp) -> Pricing:
        if isinstance(op, LoadOp | StoreOp):
            return self._transfer(op)
        if isinstance(op, MatmulOp):
            return self._matmul(op)
        assert isinstance(op, VectorOp)
        return self._value(op) if op.kind.data in VALUE_KINDS else self._vector(op)

    # --- Transfers ----------------------------------------------------------------------------------------

    def _transfer(self, op: LoadOp | StoreOp) -> Pricing:
        element_bytes, offchip = op.tensor_type.element_bytes, self.accelerator.offchip
        if op.tensor is not None and stays_on_chip(op.tensor):
            return lambda extents: self._copy(math.prod(extents) * element_bytes)
        latency, overhead = (n * self.ticks_per_cycle for n in (offchip.latency_cycles, offchip.overhead_cycles))
        loads, block = isinstance(op, LoadOp), op.block
        # Where the next block lies is read from a table on chip.
        table_bytes = sum(map(_element_bytes, op.tables))

        def price(extents: tuple[int, ...]) -> OpCost:
            size, transfers = math.prod(extents) * element_bytes, 1 if block is None else op.transfers(extents)
            held, looked_up = overhead * transfers if size else 0, transfers * table_bytes
            if loads:
                busy = size * self._read_ticks + held
                work = Work(offchip_read_bytes=size, buffer_write_bytes=size, buffer_read_bytes=looked_up)
            else:
                busy = size * self._write_ticks + held
                work = Work(offchip_write_bytes=size, buffer_read_bytes=size + looked_up)
            return OpCost(busy, busy + (latency if size else 0), work)

        return price

    def _copy(self, size: int) -> OpCost:
        """A transfer of a tensor that stays on chip: it holds its channel, and nothing goes off chip."""
        overhead = self.accelerator.offchip.overhead_cycles * (size > 0)
        ticks = copy_ticks(self.accelerator, size, self.ticks_per_cycle) + overhead * self.ticks_per_cycle
        return OpCost(ticks, ticks, Work(buffer_read_bytes=size, buffer_write_bytes=size))

    # --- The array ----------------------------------------------------------------------------------------

    def _matmul(self, op: MatmulOp) -> Pricing:
        array, stationarity, batch_rank = self.accelerator.array, op.stationarity.data, op.batch_rank.data
        fold, accumulate = (op.fold_rows.data, op.fold_columns.data), op.accumulate is not None
        a, b, c = map(_operand, (*op.reads, *op.writes))
        chained = _is_product(op.reads[0]) and not a.in_registers

        def price(extents: tuple[int, ...]) -> OpCost:
            tile = _product_tile(batch_rank, extents)
            cycles = array_cycles(array, stationarity, fold, tile)
            moved = operand_traffic(array, stationarity, tile, accumulate=accumulate)
            copied = chained_traffic(array, tile) * a.element_bytes if chained else 0
            work = _moving(
                reads=[(a, moved.a_reads), (b, moved.b_reads), (c, moved.c_reads)],
                writes=[(c, moved.c_writes)],
                macs=tile.batch * tile.m * tile.n * tile.k,
                copied_bytes=copied,
            )
            return OpCost(cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle, work)

        return price

    # --- The vector unit ----------------------------------------------------------------------------------

    def _vector(self, op: VectorOp) -> Pricing:
        unit, work, kind = self._unit_for(op), vector_operation_work(op), VECTOR_KINDS[op.kind.data]
        reads = [(_operand(value), name) for name, value in zip(kind.reads, op.reads, strict=False)]
        writes = [(_operand(value), name) for name, value in zip(kind.writes, op.writes, strict=False)]
        # It reads one column more than it writes.
        more_columns = op.kind.data == "divide_by_last"
        on_array = self._on_array(op, work)

        def price(extents: tuple[int, ...]) -> OpCost:
            rows, elements = math.prod(extents[:-1]), math.prod(extents)
            counts = _moving(
                reads=[(value, _elements(name, value, extents)) for value, name in reads]
                + ([(reads[0][0], rows)] if more_columns else []),
                writes=[(value, _elements(name, value, extents)) for value, name in writes],
                vector_energy_pj=vector_energy_pj(unit, work, elements, rows),
                vector_elements=elements * len(work.per_element),
            )
            if on_array is not None:
                cycles = on_array(extents)
                return OpCost(cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle, counts)
            ticks = vector_cycles(unit, work, elements, rows) * self.ticks_per_cycle
            return OpCost(ticks, ticks, counts)

        return price

    def _unit_for(self, op: VectorOp) -> VectorUnit:
        unit = self.accelerator.vector
        if not unit.lanes:
            raise FlatcError(
                f"accelerator '{self.accelerator.name}' has no vector unit and the schedule needs one ({op.kind.data})",
                help="give the accelerator file a vector unit, or compile only matrix products for it",
            )
        return unit

    def _on_array(self, op: VectorOp, work: VectorWork) -> Callable[[tuple[int, ...]], ArrayCycles] | None:
        """The cycles of PEs that do an operation; None where the vector unit does it."""
        on_array, array = op.on_array, self.accelerator.array
        if on_array is None:
            return None
        for name in work.per_element:
            if array.cycles_of(name) is None:
                raise FlatcError(
                    f"the PEs of accelerator '{self.accelerator.name}' cannot do '{name}', which {op.kind.data} on its "
                    "array needs",
                    help="leave it to the vector unit, or price it in array: operations",
                )

        def cycles(extents: tuple[int, ...]) -> ArrayCycles:
            batch, rows = on_array.batch_rank, extents[:-1]
            tile = ScoreTile(math.prod(rows[:batch]), math.prod(rows[batch:]), extents[-1])
            return pe_cycles(array, work.per_element, on_array.fold, tile)

        return cycles

    def _value(self, op: VectorOp) -> Pricing:
        """An operation on values: it reads each operand as it lies in its buffer, without repeated dims."""
        unit, work = self._unit_for(op), vector_operation_work(op)
        operands, written = [_operand(value) for value in op.reads], _operand(op.writes[0])

        def price(extents: tuple[int, ...]) -> OpCost:
            reads = [(repeated_elements(each.dims, extents), each.element_bytes) for each in operands]
            found = value_price(unit, work, extents, reads, written.element_bytes)
            ticks = found.cycles * self.ticks_per_cycle
            return OpCost(ticks, ticks, found.work)

        return price


def matmul_tile(op: MatmulOp, extents: tuple[int, ...]) -> MatmulTile:
    """The product that one execution of a matmul computes."""
    return _product_tile(op.batch_rank.data, extents)


def _product_tile(batch: int, extents: tuple[int, ...]) -> MatmulTile:
    *rows, n, k = extents
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


@frozen
class _Operand:
    """A buffer, as far as it decides what an access to it takes."""

    dims: tuple[int, ...]
    element_bytes: int
    in_registers: bool


def _operand(buffer: SSAValue) -> _Operand:
    in_registers = isinstance(buffer.owner, BufferOp) and buffer.owner.registers is not None
    return _Operand(cast(BufferType, buffer.type).dims, _element_bytes(buffer), in_registers)


def _elements(name: str, operand: _Operand, extents: tuple[int, ...]) -> int:
    """How many elements of an operand move: each of the tile, one a row, or, of what is repeated, what is stored.

    A table is looked up for each element.
    """
    if name in REPEATED_OPERANDS:
        return repeated_elements(operand.dims, extents)
    of_tile = name == "table" or len(operand.dims) == len(extents)
    return math.prod(extents if of_tile else extents[:-1])


def _moving(
    *,
    reads: Sequence[tuple[_Operand, int]],
    writes: Sequence[tuple[_Operand, int]],
    copied_bytes: int = 0,
    macs: int = 0,
    vector_energy_pj: float = 0.0,
    vector_elements: int = 0,
) -> Work:
    """Work that moves so many elements of its operands between memory, or registers, and the PEs or lanes."""
    accesses = (*reads, *writes)
    return Work(
        macs=macs,
        vector_energy_pj=float(vector_energy_pj),
        vector_elements=vector_elements,
        buffer_read_bytes=copied_bytes + sum(_in_memory(reads)),
        buffer_write_bytes=copied_bytes + sum(_in_memory(writes)),
        register_bytes=sum(count * each.element_bytes for each, count in accesses if each.in_registers),
    )


def _in_memory(accesses: Sequence[tuple[_Operand, int]]) -> Iterator[int]:
    return (count * operand.element_bytes for operand, count in accesses if not operand.in_registers)


def _is_product(buffer: SSAValue) -> bool:
    """Whether a matrix product writes into the buffer."""
    return any(isinstance(use.operation, MatmulOp) and buffer in use.operation.writes for use in buffer.uses)


def _element_bytes(value: SSAValue) -> int:
    return cast(BufferType, value.type).element_bytes


def _element_type(value: SSAValue) -> object:
    return cast(BufferType, value.type).element_type
