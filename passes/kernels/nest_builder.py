"""Building blocks of a kernel's loop nest: where the current tile is, how large, and how it gets on chip.

A `NestBuilder` stands at a place in the nest: the loops around it, and the operations emitted there so far. It knows
tile sizes and expressions, not what is computed; `query_tile` and `kernel_schedule` say that.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as NameMapping
from dataclasses import field, replace
from functools import cached_property

from xdsl.dialects.builtin import i32
from xdsl.ir import Attribute, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.dialects.quasi_affine import Expr, ceildiv, const, maximum, minimum, var
from flatc.dialects.spatial import (
    Access,
    LoadOp,
    StartOp,
    YieldOp,
    make_for,
)
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.live_keys import live_keys
from flatc.passes.kernels.nest import Nest
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class ElementTypes:
    """Element types of a kernel's buffers; None where the kernel has no such tensor."""

    q: Attribute | None
    k: Attribute | None
    v: Attribute | None
    scores: Attribute
    probabilities: Attribute
    accumulator: Attribute
    output: Attribute


@frozen
class Tensors:
    """The tensors off chip, viewed with heads split: q, scores and result are [batch, kv head, group, ...].

    `operands` are those of the work on scores by role, in the shape that `AttentionProblem.operand_shape` gives.
    """

    q: SSAValue | None
    k: SSAValue | None
    v: SSAValue | None
    scores: SSAValue | None
    result: SSAValue
    operands: NameMapping[str, SSAValue] = field(default_factory=dict[str, SSAValue])
    table: SSAValue | None = None


KeyBody = Callable[[SSAValue], SSAValue]
"""Emits the body of a key loop, given the token carried from the trip before; gives the token to carry on."""

LOOPS = ("batch", "kv_head", "group", "query")


class NestBuilder(Nest):
    """Positions, extents, buffers, transfers and loops at the current place of a loop nest under construction."""

    def __init__(
        self,
        problem: AttentionProblem,
        mapping: Mapping,
        types: ElementTypes,
        tensors: Tensors,
        scale: float | None,
    ):
        super().__init__()
        self.problem, self.mapping, self.types, self.tensors = problem, mapping, types, tensors
        self.scale = scale
        tiles, p = mapping.tiles, problem
        self.tile = {"batch": tiles.batch, "kv_head": tiles.kv_head, "group": tiles.group}
        self.tile |= {"query": tiles.query * mapping.interleave, "key": tiles.key}
        self.size = {"batch": p.batch, "kv_head": p.kv_heads, "group": p.group}
        self.size |= {"query": p.queries, "key": p.keys}
        self.trips = {dim: ceil_divide(self.size[dim], self.tile[dim]) for dim in self.size}
        # So many key tiles make a strip, in a loop of their own inside of that over strips; 1 where there is none.
        self.strip_tiles = mapping.softmax.rescaled_every
        self.ranges = {dim: (0, trips - 1) for dim, trips in self.trips.items()}
        self.ranges |= {"strip": (0, ceil_divide(self.trips["key"], self.strip_tiles) - 1)}
        # The query loop is always there: it is the loop that everything else is pipelined in.
        self.outer = [dim for dim in LOOPS if self.trips[dim] > 1 or dim == "query"]
        self._live = live_keys(problem.mask if problem.skips_hidden else None, problem.keys)
        self.edge = live_keys(problem.mask, problem.keys)
        self.resident: dict[str, tuple[SSAValue, SSAValue]] = {}
        # The tile of K that was loaded last, and its token.
        self.key_tile: tuple[SSAValue, SSAValue] | None = None
        self.table: tuple[SSAValue, SSAValue] | None = None

    # --- Positions and extents ------------------------------------------------------------------------

    def start(self, dim: str) -> Expr:
        """Index of the first element of the current tile along `dim`."""
        if self.trips[dim] == 1:
            return const(0)
        return (self._key_tile if dim == "key" else var(dim)) * self.tile[dim]

    @cached_property
    def _key_tile(self) -> Expr:
        """The key tile that the current trip of a key loop is at."""
        return self.at_rows(self._live.tile_of_trip(var("key"), self.tile["key"], self.size["key"]))

    def extent(self, dim: str) -> Expr:
        """Elements of the current tile along `dim`; the last tile may be ragged."""
        return self.simplified(minimum(self.tile[dim], self.size[dim] - self.start(dim)))

    def at_rows(self, expr: Expr) -> Expr:
        """An expression of `start` and `last` for the rows of the current query tile."""
        start = self.start("query")
        return self.simplified(expr.substitute({"start": start, "last": start + self.extent("query") - 1}))

    def key_range(self) -> tuple[Expr, Expr]:
        """First trip and one past the last of the loop over key tiles of the current query tile (see `live_keys`)."""
        return self._key_range

    @cached_property
    def _key_range(self) -> tuple[Expr, Expr]:
        lower, upper = self._live.trips(self.tile["key"])
        return self.at_rows(lower), self.at_rows(upper)

    def strip_range(self) -> tuple[Expr, Expr]:
        """First trip and one past the last of the key loops at the current place: those of a strip, where there are."""
        return self._strip_range

    @cached_property
    def _strip_range(self) -> tuple[Expr, Expr]:
        lower, upper = self.key_range()
        if self.strip_tiles == 1:
            return lower, upper
        first = lower + var("strip") * self.strip_tiles
        return self.simplified(first), self.simplified(minimum(upper, first + self.strip_tiles))

    def strips(self) -> Expr:
        """How many strips the key tiles of the current query tile make: none of no tiles."""
        lower, upper = self.key_range()
        return self.simplified(ceildiv(upper - lower, self.strip_tiles))

    def strip_keys(self) -> Expr:
        """Keys in a strip: of all tiles that the query tile visits, or of those of the current strip."""
        return self._keys_in(*self.strip_range())

    def _keys_in(self, lower: Expr, upper: Expr) -> Expr:
        tile = self.tile["key"]
        keys = minimum(upper * tile, self.size["key"]) - lower * tile
        return self.simplified(maximum(0, keys))

    def strip_width(self) -> int:
        """The most keys a strip ever holds."""
        tiles = self.size["key"] if self.strip_tiles == 1 else self.strip_tiles * self.tile["key"]
        if self._live.lower.is_constant() and self._live.upper.is_constant():
            return min(tiles, self.size["key"])
        import numpy as np

        widths = self._keys_in(*self.key_range()).evaluate({"query": np.arange(self.trips["query"])})
        return min(tiles, max(1, int(np.max(widths))))

    def heads_extent(self) -> list[Expr]:
        """Extents of batch, kv head and group."""
        return [self.extent("batch"), self.extent("kv_head"), self.extent("group")]

    def heads_start(self) -> list[Expr]:
        """Starts of batch, kv head and group."""
        return [self.start("batch"), self.start("kv_head"), self.start("group")]

    def heads_tile(self) -> list[int]:
        """Tile sizes of batch, kv head and group."""
        return [self.tile["batch"], self.tile["kv_head"], self.tile["group"]]

    # --- Loops ------------------------------------------------------------------------------------------

    def key_loop(
        self, body: KeyBody, *, stream: bool, stage: int, first: Expr | None = None, init: SSAValue | None = None
    ) -> SSAValue:
        """A loop over the visible key tiles, from trip `first` on; gives the token of `body` in the last trip.

        That is `init` where there is no trip. Inside of a strip the tiles are those of the strip.
        """
        lower, upper = self.strip_range()
        lower = lower if first is None else self.simplified(maximum(lower, first))
        return self._token_loop("key", lower, upper, body, stream=stream, stage=stage, init=init)

    def strip_loop(self, body: KeyBody) -> SSAValue:
        """A loop over the strips of the current query tile, one pipeline with the loops around."""
        return self._token_loop("strip", const(0), self.strips(), body, stream=True, stage=0)

    def _token_loop(
        self,
        dim: str,
        lower: Expr,
        upper: Expr,
        body: KeyBody,
        *,
        stream: bool,
        stage: int,
        init: SSAValue | None = None,
    ) -> SSAValue:
        """A loop that hands a token from trip to trip, `init` to the first; gives the last one's."""
        if init is None:
            start = StartOp()
            self.ops.append(start)
            init = start.token
        outside, self.ops = self.ops, []
        block = self.loop_block(dim, tokens=1)
        token = body(block.args[1])
        block.add_ops([*self.ops, YieldOp([token])])
        self.ops = outside
        del self.loops[dim]
        loop = make_for(self.loops, lower, upper, block, [init], stream=stream, stage=stage)
        self.ops.append(loop)
        return loop.done[0]

    # --- Keys and values on chip --------------------------------------------------------------------------

    def load_stage(self, name: str) -> int:
        """Stage of the loads of K or V. V is needed later; with the same lead it takes no more slots than K."""
        stages = self.mapping.stages
        return stages.load + (stages.attend - stages.logit if name == "v" and self.problem.has("logit") else 0)

    def load_keyed(self, name: str, start: Expr, extent: Expr, stage: int) -> tuple[SSAValue, SSAValue]:
        """Loads keys `start`.. of K or V into a new buffer; gives (buffer, token)."""
        tensor, type = getattr(self.tensors, name), getattr(self.types, name)
        depth = self.problem.d_qk if name == "k" else self.problem.d_v
        slots = self.mapping.keep.k_slots if name == "k" else self.mapping.keep.v_slots
        rows = self.size["key"] if extent == const(self.size["key"]) else self.tile["key"]
        # A column of ones beside V sums the rows of probabilities: it is never loaded, and stays as it was.
        ones = name == "v" and self.mapping.softmax.total == "attend"
        shape = [self.tile["batch"], self.tile["kv_head"], rows, depth + ones]
        buffer = self.buffer(name.upper(), slots, shape, type, 1.0 if ones else None)
        starts = [self.start("batch"), self.start("kv_head"), start, const(0)]
        extents = [self.extent("batch"), self.extent("kv_head"), extent, const(depth)]
        if self.table is None:
            return buffer, self.load(tensor, starts, extents, Access(buffer), stage, name)
        table, ready = self.table
        timed = self.timed(extents, [table], [buffer], [ready], stage)
        op = LoadOp(replace(timed, tensor=tensor, tensor_offsets=starts), block=self.problem.block)
        return buffer, self.emit(op, f"load_{name}")

    def load_table(self, stage: int) -> None:
        """Loads the table that says where the pages of the head tile's sequences lie."""
        if self.tensors.table is None:
            return
        shape = [self.tile["batch"], self.problem.pages]
        buffer = self.buffer("table", self.mapping.keep.k_slots, shape, i32)
        starts, extents = [self.start("batch"), const(0)], [self.extent("batch"), const(self.problem.pages)]
        self.table = buffer, self.load(self.tensors.table, starts, extents, Access(buffer), stage, "table")

    def keyed(self, name: str, stage: int) -> tuple[Access, SSAValue]:
        """The current key tile of K or V, from the resident buffer or freshly loaded; V perhaps out of K."""
        source = "k" if name == "v" and self.mapping.keep.v_level == "k" else name
        first = self.problem.v_in_k if source != name else 0
        assert first is not None
        if source in self.resident:
            buffer, token = self.resident[source]
            return Access(buffer, (const(0), const(0), self.start("key"), const(first))), token
        if source != name:
            assert self.key_tile is not None
            buffer, token = self.key_tile
            return Access(buffer, (const(0), const(0), const(0), const(first))), token
        buffer, token = self.load_keyed(name, self.start("key"), self.extent("key"), stage)
        if name == "k":
            self.key_tile = buffer, token
        return Access(buffer), token
