"""The loop nest of a chain of vector operations: tiles come in, all steps work on them, results go out.

    for dim 0:                     # in the order of the mapping; dims of one tile have no loop
      for dim 1:
        load x, load h             # and whatever else is another tile in this loop
        add, layernorm             # values between steps stay in a buffer
        store y

What is the same for all trips of the inner loops is loaded outside of them: a weight once, before the loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import Expr, Range, const, minimum, var
from flatc.dialects.spatial import (
    Access,
    BufferOp,
    BufferType,
    LoadOp,
    RopeTableOp,
    StoreOp,
    TensorRefType,
    TimedBuilder,
    TimedOp,
    VectorOp,
    YieldOp,
    make_for,
)
from flatc.dialects.vector_mapping import VectorMapping, loops
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.vector_problem import Operand, Step, VectorProblem


@frozen
class ChainTensors:
    """Tensors off chip by place, and the element types of operands (tables too) and of what steps make."""

    operands: Sequence[SSAValue | None]
    results: Sequence[SSAValue]
    types: Mapping[str, Attribute]


class VectorNest:
    """Builds the operations of one kernel; `build` gives those of its body."""

    def __init__(self, problem: VectorProblem, mapping: VectorMapping, tensors: ChainTensors):
        self.problem, self.mapping, self.tensors = problem, mapping, tensors
        self.order = loops(problem.dims, mapping)
        trips = [ceil_divide(size, tile) for size, tile in zip(problem.dims, mapping.tiles, strict=True)]
        self.trips: list[int] = trips
        self.ranges: dict[str, Range] = {_name(dim): (0, count - 1) for dim, count in enumerate(trips)}
        self.loops: dict[str, SSAValue] = {}
        self.ops: list[Operation] = []
        self.tables: list[Operation] = []
        # Of each value on chip: its buffer, and the token that says it is there.
        self.buffers: dict[int, SSAValue] = {}
        self.tokens: dict[int, SSAValue] = {}

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        self._level(0)
        return [*self.tables, *self.ops]

    def _level(self, depth: int) -> None:
        """What stands inside of the first `depth` loops."""
        for number, operand in enumerate(self.problem.operands):
            if load_depth(self.problem, operand, self.order) == depth:
                self._load(number, operand, depth)
        if depth == len(self.order):
            self._compute()
            return
        dim = self.order[depth]
        outside, self.ops = self.ops, []
        block = Block(arg_types=[IndexType()])
        block.args[0].name_hint = _name(dim)
        self.loops[_name(dim)] = block.args[0]
        self._level(depth + 1)
        block.add_ops([*self.ops, YieldOp()])
        self.ops = outside
        del self.loops[_name(dim)]
        self.ops.append(make_for(self.loops, 0, self.trips[dim], block, stream=depth > 0))

    # --- Places ---------------------------------------------------------------------------------------------

    def _start(self, dim: int) -> Expr:
        return var(_name(dim)) * self.mapping.tiles[dim] if self.trips[dim] > 1 else const(0)

    def _extent(self, dim: int) -> Expr:
        size, tile = self.problem.dims[dim], self.mapping.tiles[dim]
        return minimum(tile, size - self._start(dim)).simplify(self.ranges)

    def _extents(self) -> list[Expr]:
        return [self._extent(dim) for dim in range(len(self.trips))]

    # --- Work -----------------------------------------------------------------------------------------------

    def _load(self, number: int, operand: Operand, depth: int) -> None:
        varies = [operand.varies(dim, self.problem.dims) for dim in range(len(self.trips))]
        shape = operand_tile(self.problem, operand, self.mapping.tiles)
        slots = self.mapping.input_slots if depth else 1
        type = self.tensors.types[operand.element]
        tensor = self.tensors.operands[number]
        if operand.table is not None:
            tensor = self._table(operand, type)
        assert tensor is not None
        name = tensor.name_hint or f"operand{number}"
        buffer = self._buffer(name, slots, shape, type)
        timed = TimedBuilder(
            self.loops,
            [self._extent(d) if varies[d] else const(operand.dims[d]) for d in range(len(varies))],
            writes=[Access(buffer)],
            tensor=tensor,
            tensor_offsets=[self._start(d) if varies[d] else const(0) for d in range(len(varies))],
            stage=self.mapping.stages.load if depth else 0,
        )
        self.buffers[number] = buffer
        self.tokens[number] = self._emit(LoadOp(timed), f"load_{name}")

    def _table(self, operand: Operand, type: Attribute) -> SSAValue:
        """A table, which stands in front of all loops."""
        table = operand.table
        assert table is not None
        op = RopeTableOp("rope table", table.start, table.base, TensorRefType(operand.dims, type))
        op.tensor.name_hint = "table"
        self.tables.append(op)
        return op.tensor

    def _compute(self) -> None:
        problem, looped = self.problem, bool(self.order)
        buffers, place = problem.buffers
        made: list[SSAValue] = []
        for buffer in buffers:
            slots = self.mapping.output_slots if buffer.stored and looped else 1
            type = self.tensors.types[buffer.element]
            made.append(self._buffer("result" if buffer.stored else "value", slots, self.mapping.tiles, type))
        before: list[SSAValue] = []
        for step, value in zip(problem.steps, problem.written, strict=True):
            self.buffers[value] = made[place[value]]
            before = [self._step(step, value, before)]
            self.tokens[value] = before[0]
        for value, tensor in zip(problem.results, self.tensors.results, strict=True):
            self._store(value, tensor)

    def _step(self, step: Step, value: int, before: Sequence[SSAValue]) -> SSAValue:
        """One vector operation, after the one before it and the loads of what it reads."""
        extents, reads = self._extents(), [Access(self.buffers[read]) for read in step.reads]
        write = Access(self.buffers[value])
        if step.columns is not None:
            first, extents[-1] = step.columns[0], const(step.columns[1])
            window = (*[const(0)] * (len(extents) - 1), const(first))
            whole = self.problem.dims[-1]
            write = replace(write, offsets=window)
            for i, read in enumerate(step.reads):
                if self.problem.dims_of(read)[-1] == whole:
                    reads[i] = replace(reads[i], offsets=window)
        loaded = [self.tokens[read] for read in step.reads if read < len(self.problem.operands)]
        timed = TimedBuilder(
            self.loops,
            extents,
            reads,
            [write],
            after=list(dict.fromkeys([*before, *loaded])),
            stage=self.mapping.stages.compute if self.order else 0,
        )
        return self._emit(VectorOp(step.kind, timed, number=step.number), step.kind)

    def _store(self, value: int, tensor: SSAValue) -> None:
        timed = TimedBuilder(
            self.loops,
            self._extents(),
            reads=[Access(self.buffers[value])],
            tensor=tensor,
            tensor_offsets=[self._start(dim) for dim in range(len(self.trips))],
            after=[self.tokens[value]],
            stage=self.mapping.stages.store if self.order else 0,
        )
        self._emit(StoreOp(timed), "store")

    def _buffer(self, label: str, slots: int, shape: Sequence[int], type: Attribute) -> SSAValue:
        op = BufferOp(label, slots, BufferType(shape, type))
        op.buffer.name_hint = label
        self.ops.append(op)
        return op.buffer

    def _emit(self, op: TimedOp, hint: str) -> SSAValue:
        op.token.name_hint = hint
        self.ops.append(op)
        return op.token


def _name(dim: int) -> str:
    return f"dim{dim}"


def load_depth(problem: VectorProblem, operand: Operand, order: Sequence[int]) -> int:
    """How many loops stand around the load of an operand: up to the innermost in which it is another tile."""
    inside = [place for place, dim in enumerate(order) if operand.varies(dim, problem.dims)]
    return inside[-1] + 1 if inside else 0


def operand_tile(problem: VectorProblem, operand: Operand, tiles: Sequence[int]) -> list[int]:
    """Sizes of an operand's tile."""
    sizes = zip(operand.dims, problem.dims, tiles, strict=True)
    return [tile if own == size else own for own, size, tile in sizes]
