"""What a kernel that appends rows to a cache has to do, and the loop nest that does it: load the rows, store them.

    for batch, for head, for row:
      load    new -> rows [1 x 8 x 1 x 128]
      store   rows -> window of the cache       stage 1

The cache itself is not touched: `lower-to-spatial` gives the kernel the window behind its last row.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import cast

from xdsl.dialects.builtin import IndexType, TensorType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from flatc.dialects.append_mapping import TILED, AppendMapping
from flatc.dialects.attn import AppendOp
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import Expr, const, minimum, var
from flatc.dialects.spatial import (
    Access,
    BufferOp,
    BufferType,
    KernelOp,
    LoadOp,
    StoreOp,
    TensorRefType,
    TimedBuilder,
    TimedOp,
    YieldOp,
    make_for,
)
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.problem import type_bytes


@frozen
class AppendProblem:
    """Rows to be appended: [batch, heads, rows, width] of `element_bytes` each."""

    batch: int
    heads: int
    rows: int
    width: int
    element_bytes: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the rows."""
        return self.batch, self.heads, self.rows, self.width

    @property
    def bytes(self) -> int:
        """All that is appended."""
        return prod(self.shape) * self.element_bytes

    def least_macs(self) -> int:
        """Appending multiplies nothing."""
        return 0

    def compulsory_bytes(self) -> dict[str, int]:
        """The rows come from off chip once, and go there once."""
        return {"new": self.bytes, "result": self.bytes}

    def least_vector_counts(self) -> dict[str, int]:
        """Appending computes nothing."""
        return {}

    def longest_sum(self) -> int:
        """Appending adds nothing up."""
        return 1


def match_append(fused: FusedOp) -> tuple[AppendProblem, AppendOp]:
    """Reads a region of one `attn.append`. Raises `FlatcError` for anything beside it."""
    op = next(op for op in fused.body_ops() if isinstance(op, AppendOp))
    strange = next((other for other in fused.body_ops() if other is not op), None)
    if strange is not None or list(fused.yield_op.values) != [op.result]:
        raise FlatcError(
            f"{(strange or op).name} cannot be compiled yet: kernel '{fused.kernel.data}' appends to a cache and does "
            "nothing else",
            position=position_of(strange or op),
        )
    new = cast("TensorType[Attribute]", op.new.type)
    batch, heads, rows, width = new.get_shape()
    return AppendProblem(batch, heads, rows, width, type_bytes(new.element_type)), op


def build_append(problem: AppendProblem, mapping: AppendMapping, new: SSAValue, result: SSAValue) -> list[Operation]:
    """The operations of the kernel's body."""
    trips = [ceil_divide(size, tile) for size, tile in zip(problem.shape, mapping.tiles, strict=False)]
    names = [name for name, count in zip(TILED, trips, strict=True) if count > 1]
    blocks = {name: Block(arg_types=[IndexType()]) for name in names}
    loops: dict[str, SSAValue] = {}
    for name, block in blocks.items():
        block.args[0].name_hint = name
        loops[name] = block.args[0]
    ops = _copy(problem, mapping, new, result, loops)
    for depth, name in reversed(list(enumerate(names))):
        blocks[name].add_ops([*ops, YieldOp()])
        del loops[name]
        ops: list[Operation] = [make_for(loops, 0, trips[TILED.index(name)], blocks[name], stream=depth > 0)]
    return ops


def _copy(
    problem: AppendProblem, mapping: AppendMapping, new: SSAValue, result: SSAValue, loops: dict[str, SSAValue]
) -> list[Operation]:
    """Loads a tile and stores it."""
    starts: list[Expr] = [
        var(name) * tile if name in loops else const(0) for name, tile in zip(TILED, mapping.tiles, strict=True)
    ]
    extents: list[Expr] = [
        minimum(tile, size - start) if start != const(0) else const(tile)
        for tile, size, start in zip(mapping.tiles, problem.shape, starts, strict=False)
    ]
    type = cast(TensorRefType, new.type)
    buffer = BufferOp("rows", mapping.slots, BufferType([*mapping.tiles, problem.width], type.element_type))
    buffer.buffer.name_hint = "rows"
    at = TimedBuilder(loops, [*extents, problem.width], tensor_offsets=[*starts, const(0)])
    load = LoadOp(replace(at, tensor=new, writes=[Access(buffer.buffer)]))
    load.token.name_hint = "load_rows"
    stage = 1 if loops and mapping.slots > 1 else 0
    store = StoreOp(replace(at, tensor=result, reads=[Access(buffer.buffer)], after=[load.token], stage=stage))
    return [buffer, load, store]


def read_append(kernel: KernelOp) -> tuple[AppendProblem, dict[str, SSAValue]] | None:
    """The problem and the tensors of a kernel that loads rows and stores them, None of any other."""
    timed = [op for op in kernel.walk() if isinstance(op, TimedOp)]
    if len(timed) != 2:
        return None
    load, store = timed
    if not isinstance(load, LoadOp) or not isinstance(store, StoreOp) or load.writes[0] is not store.reads[0]:
        return None
    assert load.tensor is not None
    assert store.tensor is not None
    type = load.tensor_type
    if type != store.tensor_type or len(type.dims) != 4:
        return None
    batch, heads, rows, width = type.dims
    problem = AppendProblem(batch, heads, rows, width, type.element_bytes)
    return problem, {"new": load.tensor, "result": store.tensor}
