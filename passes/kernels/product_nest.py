"""The loop nest of one matrix product.

    for m:                                   # or n first, as the mapping's order says
      load X                                 # here, if x is kept at m: the whole strip [tile m, k]
      for n stream:
        load B                               # the bias of these columns
        for k stream:
          load X, load W                     # what is not kept further out
          sums += X . W
        result = sums + B                    # or a conversion, or neither
        store

Loops of one trip are left out, but for the outermost; what is kept at a loop that is left out is loaded once, before
everything. All loops are one pipeline: the store of one tile overlaps the products of the next.

Where every head has a weight of its own, a loop over heads stands around all of this, and tensors and tiles begin with
a dim for it, of one head in a tile; what is kept at a loop that is left out is loaded once for each head.
"""

from __future__ import annotations

from contextlib import ExitStack

from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.product_mapping import ProductMapping
from flatc.dialects.quasi_affine import Expr, const, minimum, var
from flatc.dialects.spatial import Access, MatmulOp, TensorRefType, VectorOp
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.nest import Nest
from flatc.passes.kernels.product_problem import ProductProblem


@frozen
class ProductTensors:
    """The tensors off chip, as `ProductProblem.shape` has them, and the type of the sums."""

    x: SSAValue
    w: SSAValue
    bias: SSAValue | None
    result: SSAValue
    accumulator: Attribute


class ProductNest(Nest):
    """Builds the operations of one product's kernel; `build` gives them."""

    def __init__(self, problem: ProductProblem, mapping: ProductMapping, tensors: ProductTensors):
        super().__init__()
        self.problem, self.mapping, self.tensors = problem, mapping, tensors
        tiles = mapping.tiles
        self.by_head = ("head",) if problem.heads > 1 else ()
        self.size = {"m": problem.m, "n": problem.n, "k": problem.k, "head": problem.heads}
        self.tile = {"m": tiles.m, "n": tiles.n, "k": tiles.k, "head": 1}
        self.trips = {dim: ceil_divide(self.size[dim], self.tile[dim]) for dim in self.size}
        self.ranges = {dim: (0, trips - 1) for dim, trips in self.trips.items()}
        nest = (*self.by_head, *mapping.order)
        self.present = [dim for dim in nest if self.trips[dim] > 1 or dim == nest[0]]
        self.on_chip: dict[str, tuple[Access, SSAValue]] = {}

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        with ExitStack() as loops:
            self._keep(None)
            for depth, dim in enumerate(self.present):
                loops.enter_context(self.loop(dim, self.trips[dim], stream=depth > 0))
                self._keep(dim)
            self._tile()
        return self.ops

    # --- Places -----------------------------------------------------------------------------------------

    def _start(self, dim: str) -> Expr:
        return var(dim) * self.tile[dim] if self.trips[dim] > 1 else const(0)

    def _extent(self, dim: str) -> Expr:
        return self.simplified(minimum(self.tile[dim], self.size[dim] - self._start(dim)))

    def _stage(self, stage: int) -> int:
        """A kernel's body is no loop: what stands there has no stage."""
        return stage if self.loops else 0

    # --- Operands ---------------------------------------------------------------------------------------

    def _keep(self, dim: str | None) -> None:
        """Loads what stays on chip across the loops inside of `dim`; None stands for the kernel itself."""
        keep = self.mapping.keep
        if keep.x_level == "m" and self._stands("m", dim):
            self.on_chip["x"] = self._load_x(whole=True)
        if keep.w_level == "n" and self._stands("n", dim):
            self.on_chip["w"] = self._load_w(whole=True)
        if self.tensors.bias is not None and self._stands("n", dim):
            self.on_chip["bias"] = self._load("bias", self.tensors.bias, ("", "n"), keep.sums_slots)

    def _stands(self, level: str, dim: str | None) -> bool:
        """Whether the loop of a level is `dim`; a loop that is left out is the head's, or the kernel."""
        return dim == (level if level in self.present else "head" if self.by_head else None)

    def _load_x(self, *, whole: bool) -> tuple[Access, SSAValue]:
        return self._load("x", self.tensors.x, ("m", "" if whole else "k"), self.mapping.keep.x_slots)

    def _load_w(self, *, whole: bool) -> tuple[Access, SSAValue]:
        return self._load("w", self.tensors.w, ("" if whole else "k", "n"), self.mapping.keep.w_slots)

    def _load(self, name: str, tensor: SSAValue, dims: tuple[str, str], slots: int) -> tuple[Access, SSAValue]:
        """A tile along both dims; the empty name stands for all of a dim."""
        type = tensor.type
        assert isinstance(type, TensorRefType)
        sized = list(zip((*self.by_head, *dims), type.dims, strict=True))
        shape = [self.tile[dim] if dim else size for dim, size in sized]
        buffer = self.buffer(name.upper() if len(name) == 1 else name, slots, shape, type.element_type)
        starts = [self._start(dim) if dim else const(0) for dim, _ in sized]
        extents = [self._extent(dim) if dim else const(size) for dim, size in sized]
        stage = self._stage(self.mapping.stages.load)
        return Access(buffer), self.load(tensor, starts, extents, Access(buffer), stage, name)

    def _operand(self, name: str) -> tuple[Access, SSAValue]:
        """What the product reads in this turn: a window of what is kept, or a tile of its own."""
        if name in self.on_chip:
            access, loaded = self.on_chip[name]
            term, zero = self._start("k"), const(0)
            heads = [zero] * len(self.by_head)
            return Access(access.value, (*heads, zero, term) if name == "x" else (*heads, term, zero)), loaded
        return self._load_x(whole=False) if name == "x" else self._load_w(whole=False)

    # --- Work -------------------------------------------------------------------------------------------

    def _tile(self) -> None:
        """One tile of the result: its sums over all of k, what finishes them, and the store."""
        slots, shape = self.mapping.keep.sums_slots, self._tile_shape()
        streams = self.trips["k"] > 1
        sums = self.buffer("sums", slots, shape, self.tensors.accumulator, 0.0 if streams else None)
        if streams:
            with self.reduction("k", self.trips["k"]) as token:
                token.append(self._multiply(sums, accumulate=True))
            done = token[0]
        else:
            done = self._multiply(sums, accumulate=False)
        self._finish(sums, done)

    def _tile_shape(self) -> list[int]:
        return [self.tile[dim] for dim in (*self.by_head, "m", "n")]

    def _multiply(self, sums: SSAValue, *, accumulate: bool) -> SSAValue:
        (x, x_loaded), (w, w_loaded) = self._operand("x"), self._operand("w")
        use = self.mapping.array
        timed = self.timed(
            [self._extent(dim) for dim in (*self.by_head, "m", "n", "k")],
            [x, w],
            [sums],
            [x_loaded, w_loaded],
            self.mapping.stages.multiply,
        )
        fold = (use.fold_rows, use.fold_columns)
        rank = len(self.by_head)
        op = MatmulOp(timed, stationarity=use.stationarity, batch_rank=rank, fold=fold, accumulate=accumulate)
        return self.emit(op, "product")

    def _finish(self, sums: SSAValue, done: SSAValue) -> None:
        """Adds the bias or converts, where that is due, and stores."""
        dims, stages, result = (*self.by_head, "m", "n"), self.mapping.stages, sums
        starts, extents = [self._start(dim) for dim in dims], [self._extent(dim) for dim in dims]
        if self.problem.own_result:
            type = self.tensors.result.type
            assert isinstance(type, TensorRefType)
            result = self.buffer("result", self.mapping.keep.y_slots, self._tile_shape(), type.element_type)
        if self.problem.finishes:
            reads, after = [Access(sums)], [done]
            if "bias" in self.on_chip:
                bias, loaded = self.on_chip["bias"]
                reads, after = [*reads, bias], [done, loaded]
            kind = "add" if self.problem.has_bias else "cast"
            done = self.emit(VectorOp(kind, self.timed(extents, reads, [result], after, stages.multiply)), kind)
        self.store(Access(result), self.tensors.result, starts, extents, [done], stages.store)
