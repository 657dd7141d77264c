"""What a kernel that appends rows to a cache has to do, and the loop nest that does it: load the rows, store them.

    for batch, for head, for row:
      load    new -> rows [1 x 8 x 1 x 128]
      store   rows -> window of the cache       stage 1

The cache itself is not touched: `lower-to-spatial` gives the kernel the window behind its last row.

A copy (`attn.copy`) is the same for any other place. Where it repeats one head, its rows are loaded once and stored for
each head:

    for batch, for row:
      load    new -> rows [1 x 1 x 32 x 64]
      for head:
        store   rows -> window                  stage 1
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import cast

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.append_mapping import TILED, AppendMapping
from flatc.dialects.attn import AppendOp, CopyOp, shape_of
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import Expr, const, minimum, var
from flatc.dialects.spatial import Access, KernelOp, LoadOp, StoreOp, TensorRefType, TimedOp
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.nest import Nest
from flatc.passes.kernels.problem import type_bytes


@frozen
class AppendProblem:
    """Rows to be stored: [batch, heads, rows, width] of `element_bytes` each; if `repeated`, one head is loaded."""

    batch: int
    heads: int
    rows: int
    width: int
    element_bytes: int
    repeated: bool = False
    on_chip: frozenset[str] = frozenset()
    """Roles of its tensors that stay on chip between kernels."""

    @property
    def loaded_heads(self) -> int:
        """How many heads are loaded."""
        return 1 if self.repeated else self.heads

    @property
    def loaded_shape(self) -> tuple[int, int, int, int]:
        """The shape of the rows as they are loaded."""
        return self.batch, self.loaded_heads, self.rows, self.width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the rows."""
        return self.batch, self.heads, self.rows, self.width

    @property
    def bytes(self) -> int:
        """All that is stored."""
        return prod(self.shape) * self.element_bytes

    @property
    def loaded_bytes(self) -> int:
        """All that is loaded."""
        return prod(self.loaded_shape) * self.element_bytes

    def least_macs(self) -> int:
        """Appending multiplies nothing."""
        return 0

    def compulsory_bytes(self) -> dict[str, int]:
        """The rows come from off chip once, and go there once."""
        return {"new": self.loaded_bytes, "result": self.bytes}

    def least_vector_counts(self) -> dict[str, int]:
        """Appending computes nothing."""
        return {}

    def longest_sum(self) -> int:
        """Appending adds nothing up."""
        return 1


def match_append(fused: FusedOp) -> tuple[AppendProblem, AppendOp | CopyOp]:
    """Reads a region of one `attn.append` or `attn.copy`. Raises `FlatcError` for anything beside it."""
    op = next(op for op in fused.body_ops() if isinstance(op, AppendOp | CopyOp))
    strange = next((other for other in fused.body_ops() if other is not op), None)
    if strange is not None or list(fused.yield_op.values) != [op.result]:
        raise FlatcError(
            f"{(strange or op).name} cannot be compiled yet: kernel '{fused.kernel.data}' stores what it loads and "
            "does nothing else",
            position=position_of(strange or op),
        )
    new = rows_of(op)
    shape = shape_of(new if isinstance(op, AppendOp) else op.result)
    if len(shape) > 4:
        raise FlatcError(f"{op.name} cannot be compiled yet: tensors of {len(shape)} dims", position=position_of(op))
    batch, heads, rows, width = (*shape[:-2], *(1,) * (4 - len(shape)), *shape[-2:])
    element = cast("TensorType[Attribute]", new.type).element_type
    return AppendProblem(batch, heads, rows, width, type_bytes(element), repeated=shape_of(new) != shape), op


def rows_of(op: AppendOp | CopyOp) -> SSAValue:
    """What is loaded."""
    return op.new if isinstance(op, AppendOp) else op.x


def build_append(problem: AppendProblem, mapping: AppendMapping, new: SSAValue, result: SSAValue) -> list[Operation]:
    """The operations of the kernel's body."""
    return _Copy(problem, mapping, new, result).build()


class _Copy(Nest):
    """Builds the loops of a copy."""

    def __init__(self, problem: AppendProblem, mapping: AppendMapping, new: SSAValue, result: SSAValue):
        super().__init__()
        self.problem, self.mapping, self.new, self.result = problem, mapping, new, result
        self.size = dict(zip(TILED, problem.shape, strict=False))
        self.tile = dict(zip(TILED, mapping.tiles, strict=True))
        self.trips = {name: ceil_divide(self.size[name], self.tile[name]) for name in TILED}
        self.ranges = {name: (0, trips - 1) for name, trips in self.trips.items()}

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        outer = ("batch", "row") if self.problem.repeated else TILED
        with ExitStack() as loops:
            for name in outer:
                if self.trips[name] > 1:
                    loops.enter_context(self.loop(name, self.trips[name], stream=bool(self.loops)))
            element = cast(TensorRefType, self.new.type).element_type
            rows = self.buffer("rows", self.mapping.slots, [*self.mapping.tiles, self.problem.width], element)
            starts = self._starts()
            if self.problem.repeated:
                starts[1] = const(0)
            loaded = self.load(self.new, starts, self._extents(), Access(rows), 0, "rows")
            stage = 1 if self.loops and self.mapping.slots > 1 else 0
            if self.problem.repeated:
                loops.enter_context(self.loop("head", self.trips["head"], stream=bool(self.loops)))
            self.store(Access(rows), self.result, self._starts(), self._extents(), [loaded], stage)
        return self.ops

    def _starts(self) -> list[Expr]:
        return [*(var(name) * self.tile[name] if name in self.loops else const(0) for name in TILED), const(0)]

    def _extents(self) -> list[Expr]:
        sized = zip(self._starts(), self.mapping.tiles, self.problem.shape, strict=False)
        return [
            *(self.simplified(minimum(tile, size - start)) for start, tile, size in sized),
            const(self.problem.width),
        ]


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
    type = store.tensor_type
    if len(type.dims) != 4 or load.tensor_type.element_type != type.element_type:
        return None
    batch, heads, rows, width = type.dims
    repeated = load.tensor_type.dims != type.dims
    problem = AppendProblem(batch, heads, rows, width, type.element_bytes, repeated)
    if load.tensor_type.dims != problem.loaded_shape:
        return None
    return problem, {"new": load.tensor, "result": store.tensor}
