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

Keys in pages are appended to by way of their table, which is loaded whole: each store takes a transfer for each page of
each sequence. What it stores into is all of the sequences, old rows and new ones.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import cast

from xdsl.dialects.builtin import TensorType, i32
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.append_mapping import TILED, AppendMapping
from flatc.dialects.attn import AppendOp, CopyOp, shape_of
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import Expr, const, minimum, var
from flatc.dialects.spatial import Access, KernelOp, LoadOp, StoreOp, TensorRefType, TimedOp
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.keyed_storage import PAGE_BYTES, pages_of
from flatc.passes.kernels.nest import Nest
from flatc.passes.kernels.problem import type_bytes


@frozen
class AppendProblem:
    """Rows to be stored: [batch, heads, rows, width] of `element_bytes` each; if `repeated`, one head is loaded.

    In pages, they are stored behind `old` rows of each sequence, in `block`s that a table of `pages` entries names.
    """

    batch: int
    heads: int
    rows: int
    width: int
    element_bytes: int
    repeated: bool = False
    on_chip: frozenset[str] = frozenset()
    """Roles of its tensors that stay on chip between kernels."""
    block: int | None = None
    pages: int = 0
    old: int = 0

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
        """The rows come from off chip once, and go there once; so does what a table says of their pages."""
        found = {"new": self.loaded_bytes, "result": self.bytes}
        if self.block is not None:
            touched = ceil_divide(self.old + self.rows, self.block) - self.old // self.block
            found["pages"] = self.batch * touched * PAGE_BYTES
        return found

    @property
    def table_bytes(self) -> int:
        """The table, which a kernel loads whole."""
        return self.batch * self.pages * PAGE_BYTES

    def keeps_to_pages(self, row: int) -> bool:
        """Whether tiles of `row` rows begin with a page, or lie within one."""
        if self.block is None or self.old % self.block + self.rows <= self.block:
            return True
        whole = self.old % self.block == 0 and (row % self.block == 0 or row == self.rows)
        return whole or (self.block % row == 0 and self.old % row == 0)

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
    problem = AppendProblem(batch, heads, rows, width, type_bytes(element), repeated=shape_of(new) != shape)
    pages = pages_of(fused, op.cache, None) if isinstance(op, AppendOp) else None
    if pages is not None and isinstance(op, AppendOp):
        problem = replace(problem, block=pages.block, pages=pages.pages, old=shape_of(op.cache)[2])
    return problem, op


def rows_of(op: AppendOp | CopyOp) -> SSAValue:
    """What is loaded."""
    return op.new if isinstance(op, AppendOp) else op.x


def build_append(
    problem: AppendProblem,
    mapping: AppendMapping,
    new: SSAValue,
    result: SSAValue,
    table: SSAValue | None = None,
) -> list[Operation]:
    """The operations of the kernel's body. In pages, `result` is all of a sequence, and `table` says where it lies."""
    return _Copy(problem, mapping, new, result, table).build()


class _Copy(Nest):
    """Builds the loops of a copy."""

    def __init__(
        self,
        problem: AppendProblem,
        mapping: AppendMapping,
        new: SSAValue,
        result: SSAValue,
        table: SSAValue | None,
    ):
        super().__init__()
        self.problem, self.mapping, self.new, self.result, self.table = problem, mapping, new, result, table
        self.size = dict(zip(TILED, problem.shape, strict=False))
        self.tile = dict(zip(TILED, mapping.tiles, strict=True))
        self.trips = {name: ceil_divide(self.size[name], self.tile[name]) for name in TILED}
        self.ranges = {name: (0, trips - 1) for name, trips in self.trips.items()}

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        outer = ("batch", "row") if self.problem.repeated else TILED
        table = self._load_table()
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
            self._store(rows, table, loaded, stage)
        return self.ops

    def _load_table(self) -> tuple[SSAValue, SSAValue] | None:
        """All of the table of pages, where there is one; gives (buffer, token)."""
        if self.table is None:
            return None
        shape = [self.problem.batch, self.problem.pages]
        buffer = self.buffer("table", 1, shape, i32)
        return buffer, self.load(self.table, [const(0)] * 2, [const(n) for n in shape], Access(buffer), 0, "table")

    def _store(self, rows: SSAValue, table: tuple[SSAValue, SSAValue] | None, loaded: SSAValue, stage: int) -> None:
        starts, extents = self._starts(), self._extents()
        if table is None:
            self.store(Access(rows), self.result, starts, extents, [loaded], stage)
            return
        buffer, ready = table
        batch, heads, row, column = starts
        reads = [Access(rows), Access(buffer, (batch, const(0)) if batch != const(0) else ())]
        timed = self.timed(extents, reads, after=[loaded, ready], stage=stage)
        starts = [batch, heads, row + self.problem.old, column]
        self.emit(StoreOp(replace(timed, tensor=self.result, tensor_offsets=starts), block=self.problem.block), "store")

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
    *first, load, store = [None, None, None, *(op for op in kernel.walk() if isinstance(op, TimedOp))][-3:]
    (table,) = first
    if not isinstance(load, LoadOp) or not isinstance(store, StoreOp) or load.writes[0] is not store.reads[0]:
        return None
    assert load.tensor is not None
    assert store.tensor is not None
    type, new = store.tensor_type, load.tensor_type.dims
    if len(type.dims) != 4 or len(new) != 4 or load.tensor_type.element_type != type.element_type:
        return None
    batch, heads, rows, width = type.dims
    repeated = new[1] != heads
    problem = AppendProblem(batch, heads, rows, width, type.element_bytes, repeated)
    values = {"new": load.tensor, "result": store.tensor}
    if store.block is not None:
        if not isinstance(table, LoadOp) or table.tensor is None or table.writes[0] is not store.reads[1]:
            return None
        pages = table.tensor_type.dims[1]
        problem = replace(problem, rows=new[2], block=store.block.data, pages=pages, old=rows - new[2])
        values["pages"] = table.tensor
    elif table is not None:
        return None
    return (problem, values) if new == problem.loaded_shape else None
