"""Products without a softmax between them: whole rows of scores on chip, filled block by block and then used.

    for query:                                    # `interleave` tiles of query rows at a time
      for d_qk:
        for key:
          for part:                               # one tile of query rows after the other
            load Q, load K
            scores[part, key] += Q . K
      for key:
        for part:
          load V
          output[part] += scores[part, key] . V
          store output[part]                      # in the last trip over key

Without attend, each block of scores is stored after its last trip over d_qk. Without tiles of key in the first product
(K kept at `query`), its loop over key is not there. Every part has loads of its own: interleaving changes when the
parts are under way, not what they move. With one part this is the plain nest: query, d_qk, key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute, Block, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import ArrayUse
from flatc.dialects.quasi_affine import Expr, ceildiv, const, minimum, var
from flatc.dialects.spatial import (
    Access,
    MatmulOp,
    StartOp,
    StoreOp,
    TimedBuilder,
    TimedOp,
    TokenType,
    YieldOp,
    make_for,
)
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.nest_builder import NestBuilder


@frozen
class _Span:
    """A stretch of one dimension: where it starts, how long it is, how long it may be."""

    start: Expr
    extent: Expr
    tile: int


_Loop = tuple[str, Expr | int]
"""The name of a loop and its trip count."""


class ProductRows:
    """Builds the work on one tile of query rows; the module docstring shows it."""

    def __init__(self, kernel: NestBuilder):
        self.kernel = kernel
        self.problem, self.mapping, self.types = kernel.problem, kernel.mapping, kernel.types
        self.slots, self.stages = kernel.mapping.keep, kernel.mapping.stages
        self.rows = self.mapping.tiles.query
        self.depth_trips = ceil_divide(self.problem.d_qk, self.mapping.tiles.d_qk)
        self.parts = ceildiv(kernel.extent("query"), self.rows)
        kernel.ranges |= {"part": (0, self.mapping.interleave - 1), "d_qk": (0, self.depth_trips - 1)}

    def build(self) -> None:
        """Emits the fill, and the use of what was filled."""
        kernel, problem = self.kernel, self.problem
        rows = [*kernel.heads_tile(), kernel.tile["query"]]
        self.scores = kernel.buffer("scores", self.slots.score_slots, [*rows, problem.keys], self.types.scores, 0.0)
        loops: list[_Loop] = [("d_qk", self.depth_trips), *self._key_loop(self._fills_at_once), ("part", self.parts)]
        if not problem.has("attend"):
            self._nest(loops, self._fill_and_store, self.stages.logit)
            return
        self.output = kernel.buffer(
            "output", self.slots.output_slots, [*rows, problem.d_v], self.types.accumulator, 0.0
        )
        self.filled = self._nest(loops, self._fill, self.stages.logit)
        self._nest([*self._key_loop(False), ("part", self.parts)], self._use, self.stages.attend)

    # --- Loops --------------------------------------------------------------------------------------------------

    @property
    def _fills_at_once(self) -> bool:
        """Whether the first product takes all keys at once."""
        return self.slots.k_level == "query"

    def _key_loop(self, at_once: bool) -> list[_Loop]:
        return [] if at_once else [("key", self.kernel.trips["key"])]

    def _nest(self, loops: Sequence[_Loop], body: Callable[[], SSAValue], stage: int) -> SSAValue:
        """Loops around `body`, one pipeline; gives the token of the body in the last trip."""
        start = StartOp()
        self.kernel.ops.append(start)
        return self._loop(loops, body, start.token, stage, stream=False)

    def _loop(
        self, loops: Sequence[_Loop], body: Callable[[], SSAValue], token: SSAValue, stage: int, *, stream: bool
    ) -> SSAValue:
        if not loops:
            return body()
        kernel, (name, trips) = self.kernel, loops[0]
        outside, kernel.ops = kernel.ops, []
        block = Block(arg_types=[IndexType(), TokenType()])
        block.args[0].name_hint = name
        kernel.loops[name] = block.args[0]
        done = self._loop(loops[1:], body, block.args[1], 0, stream=True)
        block.add_ops([*kernel.ops, YieldOp([done])])
        kernel.ops = outside
        del kernel.loops[name]
        loop = make_for(kernel.loops, 0, trips, block, [token], stream=stream, stage=stage)
        kernel.ops.append(loop)
        return loop.done[0]

    # --- Places ------------------------------------------------------------------------------------------------

    def _part(self) -> _Span:
        """The query rows of the current part, from the first row of the tile."""
        start = self.kernel.simplified(var("part") * self.rows)
        return _Span(start, self._extent(self.rows, self.kernel.extent("query") - start), self.rows)

    def _extent(self, tile: int, left: Expr) -> Expr:
        return self.kernel.simplified(minimum(tile, left))

    def _keys(self, at_once: bool) -> _Span:
        size = self.problem.keys
        if at_once:
            return _Span(const(0), const(size), size)
        return _Span(self.kernel.start("key"), self.kernel.extent("key"), self.kernel.tile["key"])

    def _depth(self) -> _Span:
        tile, size = self.mapping.tiles.d_qk, self.problem.d_qk
        if self.depth_trips == 1:
            return _Span(const(0), const(size), size)
        start = var("d_qk") * tile
        return _Span(start, self._extent(tile, size - start), tile)

    def _load(
        self, tensor: SSAValue, name: str, type: Attribute | None, slots: int, rows: _Span, width: _Span
    ) -> tuple[SSAValue, SSAValue]:
        """A tile of Q, or of K or V, in a buffer of its own; gives (buffer, token)."""
        kernel = self.kernel
        heads = 3 if name == "Q" else 2
        assert type is not None
        buffer = kernel.buffer(name, slots, [*kernel.heads_tile()[:heads], rows.tile, width.tile], type)
        starts = [*kernel.heads_start()[:heads], rows.start, width.start]
        extents = [*kernel.heads_extent()[:heads], rows.extent, width.extent]
        return buffer, kernel.load(tensor, starts, extents, Access(buffer), 0, name.lower())

    def _in_tensor(self, rows: _Span) -> _Span:
        return replace(rows, start=self.kernel.start("query") + rows.start)

    def _window(self, buffer: SSAValue, rows: _Span, width: _Span) -> Access:
        return Access(buffer, (const(0), const(0), const(0), rows.start, width.start))

    # --- Work ----------------------------------------------------------------------------------------------------

    def _fill(self) -> SSAValue:
        kernel, (q, k) = self.kernel, (self.kernel.tensors.q, self.kernel.tensors.k)
        assert q is not None
        assert k is not None
        rows, keys, depth = self._part(), self._keys(self._fills_at_once), self._depth()
        q_tile, q_loaded = self._load(q, "Q", self.types.q, self.slots.q_slots, self._in_tensor(rows), depth)
        k_tile, k_loaded = self._load(k, "K", self.types.k, self.slots.k_slots, keys, depth)
        window = self._window(self.scores, rows, keys)
        extents = [*kernel.heads_extent(), rows.extent, keys.extent, depth.extent]
        timed = kernel.timed(extents, [q_tile, k_tile], [window], [q_loaded, k_loaded])
        return kernel.emit(_product(timed, self.mapping.logit, transposed=True, scale=kernel.scale), "logit")

    def _fill_and_store(self) -> SSAValue:
        filled = self._fill()
        rows, keys = self._part(), self._keys(self._fills_at_once)
        return self._store(self.scores, rows, keys, filled, "d_qk", self.depth_trips)

    def _use(self) -> SSAValue:
        kernel, v = self.kernel, self.kernel.tensors.v
        assert v is not None
        width = _Span(const(0), const(self.problem.d_v), self.problem.d_v)
        rows, keys = self._part(), self._keys(False)
        v_tile, loaded = self._load(v, "V", self.types.v, self.slots.v_slots, keys, width)
        reads = [self._window(self.scores, rows, keys), Access(v_tile)]
        extents = [*kernel.heads_extent(), rows.extent, width.extent, keys.extent]
        timed = kernel.timed(extents, reads, [self._window(self.output, rows, width)], [self.filled, loaded])
        used = kernel.emit(_product(timed, self.mapping.attend), "attend")
        return self._store(self.output, rows, width, used, "key", kernel.trips["key"])

    def _store(self, buffer: SSAValue, rows: _Span, width: _Span, ready: SSAValue, loop: str, trips: int) -> SSAValue:
        """Stores a finished block in the last trip of `loop`."""
        kernel = self.kernel
        starts = [*kernel.heads_start(), self._in_tensor(rows).start, width.start]
        timed = kernel.timed(
            [*kernel.heads_extent(), rows.extent, width.extent], [self._window(buffer, rows, width)], after=[ready]
        )
        timed = replace(timed, tensor=kernel.tensors.result, tensor_offsets=starts)
        if trips > 1:
            timed = replace(timed, when=var(loop) - (trips - 2))
        return kernel.emit(StoreOp(timed), "store")


def _product(timed: TimedBuilder, use: ArrayUse, *, transposed: bool = False, scale: float | None = None) -> TimedOp:
    return MatmulOp(
        timed,
        stationarity=use.stationarity,
        batch_rank=2,
        fold=(use.fold_rows, use.fold_columns),
        transposed=transposed,
        accumulate=True,
        scale=scale,
    )
