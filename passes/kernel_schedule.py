"""The loop nest of one kernel: from a problem and a mapping to spatial operations.

Three shapes cover every contiguous part of attention. `source` is a logit product, or a load of scores;
`sink` is an attend product, or a store of the result:

    one loop (online softmax, or none)     rows (whole rows on chip)        streamed (rows do not fit)
    for query:                             for query:                       for query:
      load Q                                 load Q                           load Q
      for key stream:                        for key: source, mask            for key: source, mask, max, sum
        source, mask                         softmax over the rows            for key: source, mask, exp, divide
        max, exp, rescale                    for key: sink                             sink
        sink                                 divide, store                    store
      divide, store

Loops over batch, kv head and group stand around `query` where their tiles do not cover them; all are one
pipeline. Masks become loop bounds (`live_keys`): tiles that are hidden entirely are never visited, and only tiles
that cross the mask's edge are masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from flatc.dialects.attn import MaskAttr
from flatc.dialects.mapping import Mapping
from flatc.dialects.masks import Mask, intervals
from flatc.dialects.quasi_affine import Expr, Range, as_expr, ceildiv, const, maximum, minimum, var
from flatc.dialects.spatial import (
    Access,
    BufferOp,
    BufferType,
    LoadOp,
    MatmulOp,
    StartOp,
    StoreOp,
    TimedBuilder,
    TimedOp,
    TokenType,
    VectorOp,
    YieldOp,
    make_for,
)
from flatc.passes.primitive_costs import ceil_divide
from flatc.passes.problem import AttentionProblem


@dataclass(frozen=True)
class ElementTypes:
    """Element types of a kernel's buffers; None where the kernel has no such tensor."""

    q: Attribute | None
    k: Attribute | None
    v: Attribute | None
    scores: Attribute
    probabilities: Attribute
    accumulator: Attribute
    output: Attribute


@dataclass(frozen=True)
class Tensors:
    """The tensors off chip, viewed with heads split: q, scores and result are [batch, kv head, group, ...]."""

    q: SSAValue | None
    k: SSAValue | None
    v: SSAValue | None
    scores: SSAValue | None
    result: SSAValue


@dataclass(frozen=True)
class LiveKeys:
    """Which keys a tile of query rows sees, as expressions of its first row `start` and last row `last`.

    `lower` to `upper` (half open) is what any row sees; `full_lower` to `full_upper` what every row sees, or None
    where the mask has holes and every tile must be masked.
    """

    lower: Expr
    upper: Expr
    full: tuple[Expr, Expr] | None


def live_keys(mask: Mask | None, keys: int) -> LiveKeys:
    """The visible keys of a query tile. Bounds of a mask never decrease with the row, so ends decide."""
    if mask is None:
        return LiveKeys(const(0), const(keys), (const(0), const(keys)))
    parts = intervals(mask)
    first, last = {"q": var("start")}, {"q": var("last")}
    lower = maximum(0, minimum(*(part.lo.substitute(first) for part in parts)))
    upper = minimum(keys, maximum(*(part.hi.substitute(last) for part in parts)))
    if len(parts) != 1:
        return LiveKeys(lower, upper, None)
    (part,) = parts
    return LiveKeys(lower, upper, (part.lo.substitute(last), part.hi.substitute(first)))


KeyBody = Callable[[SSAValue], SSAValue]
"""Emits the body of a key loop, given the token carried from the trip before; gives the token to carry on."""

LOOPS = ("batch", "kv_head", "group", "query")


class KernelSchedule:
    """Builds the operations of one kernel. `build` gives the operations of its body."""

    def __init__(
        self,
        problem: AttentionProblem,
        mapping: Mapping,
        types: ElementTypes,
        tensors: Tensors,
        scale: float | None,
    ):
        self.problem, self.mapping, self.types, self.tensors = problem, mapping, types, tensors
        self.scale = scale
        self.loops: dict[str, SSAValue] = {}
        self.ops: list[Operation] = []
        tiles, p = mapping.tiles, problem
        self.tile = {"batch": tiles.batch, "kv_head": tiles.kv_head, "group": tiles.group}
        self.tile |= {"query": tiles.query, "key": tiles.key}
        self.size = {"batch": p.batch, "kv_head": p.kv_heads, "group": p.group}
        self.size |= {"query": p.queries, "key": p.keys}
        self.trips = {dim: ceil_divide(self.size[dim], self.tile[dim]) for dim in self.size}
        self.ranges: dict[str, Range] = {dim: (0, trips - 1) for dim, trips in self.trips.items()}
        # The query loop is always there: it is the loop that everything else is pipelined in.
        self.outer = [dim for dim in LOOPS if self.trips[dim] > 1 or dim == "query"]
        self._live = live_keys(problem.mask if problem.skips_hidden else None, problem.keys)
        self.edge = live_keys(problem.mask, problem.keys)
        self.resident: dict[str, tuple[SSAValue, SSAValue]] = {}

    # --- Positions and extents ------------------------------------------------------------------------

    def start(self, dim: str) -> Expr:
        """Index of the first element of the current tile along `dim`."""
        return var(dim) * self.tile[dim] if self.trips[dim] > 1 else const(0)

    def extent(self, dim: str) -> Expr:
        """Elements of the current tile along `dim`; the last tile may be ragged."""
        return self._simple(minimum(self.tile[dim], self.size[dim] - self.start(dim)))

    def _simple(self, expr: Expr) -> Expr:
        return expr.simplify(self.ranges)

    def at_rows(self, expr: Expr) -> Expr:
        """An expression of `start` and `last` for the rows of the current query tile."""
        start = self.start("query")
        return self._simple(expr.substitute({"start": start, "last": start + self.extent("query") - 1}))

    def key_range(self) -> tuple[Expr, Expr]:
        """First and one past the last key tile that the current query tile visits."""
        tile = self.tile["key"]
        return self.at_rows(self._live.lower // tile), self.at_rows(ceildiv(self._live.upper, tile))

    def strip_keys(self) -> Expr:
        """Keys in a whole row strip: all tiles that the query tile visits."""
        lower, upper = self.key_range()
        tile = self.tile["key"]
        keys = minimum(upper * tile, self.size["key"]) - lower * tile
        return self._simple(maximum(0, keys))

    def strip_width(self) -> int:
        """The most keys a row strip ever holds."""
        if self._live.lower.is_constant() and self._live.upper.is_constant():
            return self.size["key"]
        import numpy as np

        widths = self.strip_keys().evaluate({"query": np.arange(self.trips["query"])})
        return max(1, int(np.max(widths)))

    def heads_extent(self) -> list[Expr]:
        """Extents of batch, kv head and group."""
        return [self.extent("batch"), self.extent("kv_head"), self.extent("group")]

    def heads_start(self) -> list[Expr]:
        """Starts of batch, kv head and group."""
        return [self.start("batch"), self.start("kv_head"), self.start("group")]

    def heads_tile(self) -> list[int]:
        """Tile sizes of batch, kv head and group."""
        return [self.tile["batch"], self.tile["kv_head"], self.tile["group"]]

    # --- Small builders ---------------------------------------------------------------------------------

    def buffer(
        self, label: str, slots: int, shape: Sequence[int], type: Attribute, initial: float | None = None
    ) -> SSAValue:
        """Declares a buffer here."""
        op = BufferOp(label, slots, BufferType(shape, type), initial=initial)
        op.buffer.name_hint = label
        self.ops.append(op)
        return op.buffer

    def emit(self, op: TimedOp, hint: str) -> SSAValue:
        """Appends a timed operation and gives its token."""
        op.token.name_hint = hint
        self.ops.append(op)
        return op.token

    def timed(
        self,
        extents: Sequence[Expr | int],
        reads: Sequence[Access | SSAValue] = (),
        writes: Sequence[Access | SSAValue] = (),
        after: Sequence[SSAValue] = (),
        stage: int = 0,
    ) -> TimedBuilder:
        """The shared part of a timed operation at the current place."""
        return TimedBuilder(
            self.loops,
            [as_expr(e) for e in extents],
            [a if isinstance(a, Access) else Access(a) for a in reads],
            [a if isinstance(a, Access) else Access(a) for a in writes],
            after=list(dict.fromkeys(after)),
            stage=stage,
        )

    def load(
        self, tensor: SSAValue, starts: Sequence[Expr], extents: Sequence[Expr], into: Access, stage: int, hint: str
    ) -> SSAValue:
        """A load of a box of `tensor`."""
        timed = replace(self.timed(extents, writes=[into], stage=stage), tensor=tensor, tensor_offsets=starts)
        return self.emit(LoadOp(timed), f"load_{hint}")

    def store(
        self,
        source: Access,
        tensor: SSAValue,
        starts: Sequence[Expr],
        extents: Sequence[Expr],
        after: Sequence[SSAValue],
        stage: int,
    ) -> SSAValue:
        """A store into a box of `tensor`."""
        timed = replace(
            self.timed(extents, reads=[source], after=after, stage=stage), tensor=tensor, tensor_offsets=starts
        )
        return self.emit(StoreOp(timed), "store")

    # --- Loops ------------------------------------------------------------------------------------------

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        self._outer(0)
        return self.ops

    def _outer(self, depth: int) -> None:
        heads = sum(dim in ("batch", "kv_head") for dim in self.outer)
        if depth == heads:
            self._load_resident()
        if depth == len(self.outer):
            self._query_tile()
            return
        dim = self.outer[depth]
        outside, self.ops = self.ops, []
        block = self._loop_block(dim)
        self._outer(depth + 1)
        block.add_ops([*self.ops, YieldOp()])
        self.ops = outside
        del self.loops[dim]
        self.ops.append(make_for(self.loops, 0, self.trips[dim], block, stream=depth > 0))

    def _loop_block(self, dim: str, tokens: int = 0) -> Block:
        block = Block(arg_types=[IndexType(), *[TokenType()] * tokens])
        block.args[0].name_hint = dim
        self.loops[dim] = block.args[0]
        return block

    def key_loop(
        self, body: KeyBody, *, stream: bool, stage: int, first: Expr | None = None, init: SSAValue | None = None
    ) -> SSAValue:
        """A loop over the visible key tiles, from tile `first` on; gives the token of `body` in the last trip.

        That is `init` where there is no trip.
        """
        if init is None:
            start = StartOp()
            self.ops.append(start)
            init = start.token
        outside, self.ops = self.ops, []
        block = self._loop_block("key", tokens=1)
        token = body(block.args[1])
        block.add_ops([*self.ops, YieldOp([token])])
        self.ops = outside
        del self.loops["key"]
        lower, upper = self.key_range()
        lower = lower if first is None else self._simple(maximum(lower, first))
        loop = make_for(self.loops, lower, upper, block, [init], stream=stream, stage=stage)
        self.ops.append(loop)
        return loop.done[0]

    # --- Tensors on chip ----------------------------------------------------------------------------------

    def _load_resident(self) -> None:
        """K or V of the whole head tile, where the mapping keeps it across the query loop."""
        keep = self.mapping.keep
        for name, level in (("k", keep.k_level), ("v", keep.v_level)):
            tensor = getattr(self.tensors, name)
            if level == "kv_head" and tensor is not None:
                # A kernel's body is no loop: what stands there has no stage.
                stage = self.load_stage(name) if self.loops else 0
                self.resident[name] = self._load_keyed(name, const(0), const(self.size["key"]), stage)

    def load_stage(self, name: str) -> int:
        """Stage of the loads of K or V. V is needed later; with the same lead it takes no more slots than K."""
        stages = self.mapping.stages
        return stages.load + (stages.attend - stages.logit if name == "v" and self.problem.has("logit") else 0)

    def _load_keyed(self, name: str, start: Expr, extent: Expr, stage: int) -> tuple[SSAValue, SSAValue]:
        """Loads keys `start`.. of K or V into a new buffer; gives (buffer, token)."""
        tensor, type = getattr(self.tensors, name), getattr(self.types, name)
        depth = self.problem.d_qk if name == "k" else self.problem.d_v
        slots = self.mapping.keep.k_slots if name == "k" else self.mapping.keep.v_slots
        rows = self.size["key"] if extent == const(self.size["key"]) else self.tile["key"]
        buffer = self.buffer(name.upper(), slots, [self.tile["batch"], self.tile["kv_head"], rows, depth], type)
        starts = [self.start("batch"), self.start("kv_head"), start, const(0)]
        extents = [self.extent("batch"), self.extent("kv_head"), extent, const(depth)]
        return buffer, self.load(tensor, starts, extents, Access(buffer), stage, name)

    def keyed(self, name: str, stage: int) -> tuple[Access, SSAValue]:
        """The current key tile of K or V, from the resident buffer or freshly loaded."""
        if name in self.resident:
            buffer, token = self.resident[name]
            return Access(buffer, (const(0), const(0), self.start("key"), const(0))), token
        buffer, token = self._load_keyed(name, self.start("key"), self.extent("key"), stage)
        return Access(buffer), token

    def _query_tile(self) -> None:
        body = QueryTile(self)
        algorithm = self.mapping.softmax.algorithm
        if algorithm == "rows":
            body.rows()
        elif algorithm == "streamed":
            body.streamed()
        else:
            body.one_loop()


class QueryTile:
    """The work on one tile of query rows; see the module docstring for its three shapes."""

    def __init__(self, kernel: KernelSchedule):
        self.kernel = kernel
        self.problem, self.mapping, self.types = kernel.problem, kernel.mapping, kernel.types
        self.stages = kernel.mapping.stages
        self.slots = kernel.mapping.keep
        self.rows_tile = [*kernel.heads_tile(), kernel.tile["query"]]
        self.rows_extent = [*kernel.heads_extent(), kernel.extent("query")]
        self.rows_start = [*kernel.heads_start(), kernel.start("query")]
        self.q: tuple[SSAValue, SSAValue] | None = None
        self.output: SSAValue | None = None

    # --- The three shapes ---------------------------------------------------------------------------------

    def one_loop(self) -> None:
        """Online softmax, or no softmax: one pass over the key tiles."""
        online = self.problem.has("softmax")
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))

        def body(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, self.stages.load, self.stages.logit)
            ready = self._mask(scores, ready, self.stages.softmax)
            correction: SSAValue | None = None
            if online:
                scores, ready, correction = self._online_step(scores, ready)
            return self._sink(scores, [ready], carried, correction)

        done = self.kernel.key_loop(body, stream=True, stage=0)
        self._finish(done)

    def rows(self) -> None:
        """Whole rows of scores on chip: fill them, softmax over them, use them."""
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))
        strip = self._score_buffer("scores", self.kernel.strip_width(), self.types.scores)

        def fill(carried: SSAValue) -> SSAValue:
            return self._source(self._strip_window(strip), 0, 0)[1]

        filled = self.kernel.key_loop(fill, stream=False, stage=self.stages.logit)
        probabilities, ready = self._rows_softmax(strip, self._mask_strip(strip, filled))

        def use(carried: SSAValue) -> SSAValue:
            return self._sink(self._strip_window(probabilities), [ready], carried, None, pipelined=False)

        stage = self.stages.attend if self.problem.has("attend") else self.stages.store
        done = self.kernel.key_loop(use, stream=False, stage=stage)
        self._finish(done)

    def streamed(self) -> None:
        """Two passes over the source: the first finds each row's maximum and sum, the second divides."""
        self._begin(maximum_slots=1 + self.stages.attend - self.stages.logit, sum_slots=1 + self.stages.attend)

        def measure(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._mask(scores, ready, 0)
            _, ready, _ = self._online_step(scores, ready, pipelined=False)
            return ready

        measured = self.kernel.key_loop(measure, stream=False, stage=self.stages.logit)

        def use(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._mask(scores, ready, 0)
            probabilities, ready = self._exp(scores, [ready, measured], 0, total=False)
            ready = self._divide_scores(probabilities, ready, 0)
            return self._sink(probabilities, [ready], carried, None, pipelined=False)

        done = self.kernel.key_loop(use, stream=False, stage=self.stages.attend)
        self._finish(done)

    # --- Pieces ---------------------------------------------------------------------------------------------

    def _depth(self, producer: str, consumer: str) -> int:
        """Slots that a small buffer needs to live from one stage to another."""
        return max(1, getattr(self.stages, consumer) - getattr(self.stages, producer) + 1)

    def _begin(self, maximum_slots: int, sum_slots: int) -> None:
        kernel, problem = self.kernel, self.problem
        if problem.has("logit"):
            assert self.types.q is not None
            assert kernel.tensors.q is not None
            shape = [*self.rows_tile, problem.d_qk]
            buffer = kernel.buffer("Q", self.slots.q_slots, shape, self.types.q)
            token = kernel.load(
                kernel.tensors.q,
                [*self.rows_start, const(0)],
                [*self.rows_extent, const(problem.d_qk)],
                Access(buffer),
                self.stages.load,
                "q",
            )
            self.q = buffer, token
        if problem.has("softmax"):
            low, zero = float("-inf"), 0.0
            self.maximum = kernel.buffer("maximum", maximum_slots, self.rows_tile, self.types.scores, low)
            self.sum = kernel.buffer("sum", sum_slots, self.rows_tile, self.types.scores, zero)
        if problem.has("attend"):
            shape = [*self.rows_tile, problem.d_v]
            self.output = kernel.buffer("output", self.slots.output_slots, shape, self.types.accumulator, 0.0)

    def _score_buffer(self, label: str, width: int, type: Attribute) -> SSAValue:
        return self.kernel.buffer(label, self.slots.score_slots, [*self.rows_tile, width], type)

    def _strip_window(self, strip: SSAValue) -> Access:
        lower, _ = self.kernel.key_range()
        offset = self.kernel.start("key") - lower * self.kernel.tile["key"]
        if self.kernel.trips["key"] == 1:
            offset = const(0)
        return Access(strip, (*[const(0)] * 4, offset))

    def _tile_extents(self) -> list[Expr]:
        return [*self.rows_extent, self.kernel.extent("key")]

    def _source(self, into: Access | None, load_stage: int, stage: int) -> tuple[Access, SSAValue]:
        """Puts the current tile of scores into a buffer: a logit product or a load."""
        kernel = self.kernel
        if not self.problem.has("logit"):
            assert kernel.tensors.scores is not None
            into = into or Access(self._score_buffer("scores", kernel.tile["key"], self.types.scores))
            starts = [*self.rows_start, kernel.start("key")]
            return into, kernel.load(kernel.tensors.scores, starts, self._tile_extents(), into, load_stage, "scores")
        assert self.q is not None
        k, loaded = kernel.keyed("k", load_stage)
        into = into or Access(self._score_buffer("scores", kernel.tile["key"], self.types.scores))
        use = self.mapping.logit
        op = MatmulOp(
            kernel.timed(
                [*self._tile_extents(), const(self.problem.d_qk)],
                reads=[self.q[0], k],
                writes=[into],
                after=[self.q[1], loaded],
                stage=stage,
            ),
            stationarity=use.stationarity,
            batch_rank=2,
            fold=(use.fold_rows, use.fold_columns),
            transposed=True,
            scale=kernel.scale,
        )
        return into, kernel.emit(op, "logit")

    def _mask(self, scores: Access, ready: SSAValue, stage: int) -> SSAValue:
        """Hides scores where the mask's edge crosses the current tile."""
        mask = self.problem.mask
        if mask is None:
            return ready
        kernel = self.kernel
        timed = kernel.timed(self._tile_extents(), [scores], [scores], [ready], stage)
        op = VectorOp(
            "mask",
            replace(timed, when=self._crosses_edge()),
            mask=MaskAttr(mask),
            position=[kernel.start("query"), kernel.start("key")],
        )
        return kernel.emit(op, "mask")

    def _mask_strip(self, strip: SSAValue, filled: SSAValue) -> SSAValue:
        """Masks the tiles of a strip on the mask's edge, with the softmax: the vector unit takes its work in order,
        and masks of the strip being filled must not hold up the softmax of the strip before."""
        kernel = self.kernel
        if self.problem.mask is None:
            return filled
        first: Expr | None = None
        if kernel.edge.full is not None:
            lower, upper = (kernel.at_rows(bound) for bound in kernel.edge.full)
            if lower.is_constant() and lower.constant <= 0:
                first = upper // kernel.tile["key"]

        def mask(carried: SSAValue) -> SSAValue:
            return self._mask(self._strip_window(strip), filled, 0)

        return kernel.key_loop(mask, stream=False, stage=self.stages.softmax, first=first, init=filled)

    def _crosses_edge(self) -> Expr | None:
        """Positive where some row of the tile does not see some key of it; None if that must be assumed."""
        kernel = self.kernel
        full = kernel.edge.full
        if full is None:
            return None
        lower, upper = (kernel.at_rows(bound) for bound in full)
        start = kernel.start("key")
        beyond = start + kernel.extent("key") - upper
        if lower.is_constant() and lower.constant <= 0:
            return beyond
        return maximum(beyond, lower - start)

    def _online_step(
        self, scores: Access, ready: SSAValue, *, pipelined: bool = True
    ) -> tuple[Access, SSAValue, SSAValue]:
        """Running maximum, exponentials, running sum; gives probabilities, token and correction."""
        kernel = self.kernel
        stage = self.stages.softmax if pipelined else 0
        slots = self._depth("softmax", "attend") if pipelined else 1
        correction = kernel.buffer("correction", slots, self.rows_tile, self.types.scores)
        timed = kernel.timed(self._tile_extents(), [scores, self.maximum], [self.maximum, correction], [ready], stage)
        ready = kernel.emit(VectorOp("row_max", timed), "row_max")
        probabilities, ready = self._exp(scores, [ready], stage, total=True, correction=correction)
        return probabilities, ready, correction

    def _exp(
        self,
        scores: Access,
        after: Sequence[SSAValue],
        stage: int,
        *,
        total: bool,
        correction: SSAValue | None = None,
        extents: Sequence[Expr] | None = None,
    ) -> tuple[Access, SSAValue]:
        kernel = self.kernel
        probabilities = scores
        if self.problem.converts_probabilities:
            width = kernel.tile["key"] if extents is None else kernel.strip_width()
            probabilities = Access(self._score_buffer("probabilities", width, self.types.probabilities))
        sums = [self.sum] if total else []
        reads = [scores, self.maximum, *sums, *([correction] if correction is not None else [])]
        timed = kernel.timed(extents or self._tile_extents(), reads, [probabilities, *sums], after, stage)
        return probabilities, kernel.emit(VectorOp("exp", timed), "exp")

    def _rows_softmax(self, strip: SSAValue, filled: SSAValue) -> tuple[SSAValue, SSAValue]:
        """Softmax over whole rows, division included where it is early."""
        kernel, stage = self.kernel, self.stages.softmax
        extents = [*self.rows_extent, kernel.strip_keys()]
        timed = kernel.timed(extents, [strip, self.maximum], [self.maximum], [filled], stage)
        ready = kernel.emit(VectorOp("row_max", timed), "row_max")
        probabilities, ready = self._exp(Access(strip), [ready], stage, total=True, extents=extents)
        if self.mapping.softmax.divide == "early":
            ready = self._divide_scores(probabilities, ready, stage, extents)
        return probabilities.value, ready

    def _divide_scores(
        self, probabilities: Access, ready: SSAValue, stage: int, extents: Sequence[Expr] | None = None
    ) -> SSAValue:
        timed = self.kernel.timed(
            extents or self._tile_extents(), [probabilities, self.sum], [probabilities], [ready], stage
        )
        return self.kernel.emit(VectorOp("divide", timed), "divide")

    def _sink(
        self,
        scores: Access,
        ready: Sequence[SSAValue],
        carried: SSAValue,
        correction: SSAValue | None,
        *,
        pipelined: bool = True,
    ) -> SSAValue:
        """Uses the current tile of probabilities: an attend product or a store."""
        kernel = self.kernel
        if not self.problem.has("attend"):
            starts = [*self.rows_start, kernel.start("key")]
            stage = self.stages.store if pipelined else 0
            return kernel.store(scores, kernel.tensors.result, starts, self._tile_extents(), ready, stage)
        assert self.output is not None
        v, loaded = kernel.keyed("v", kernel.load_stage("v") if pipelined else 0)
        stage = self.stages.attend if pipelined else 0
        after = [*ready, loaded]
        if correction is not None:
            after.append(self._rescale(correction, ready, carried, stage))
        use = self.mapping.attend
        op = MatmulOp(
            kernel.timed(
                [*self.rows_extent, const(self.problem.d_v), kernel.extent("key")],
                reads=[scores, v],
                writes=[self.output],
                after=after,
                stage=stage,
            ),
            stationarity=use.stationarity,
            batch_rank=2,
            fold=(use.fold_rows, use.fold_columns),
            accumulate=True,
        )
        return kernel.emit(op, "attend")

    def _rescale(self, correction: SSAValue, ready: Sequence[SSAValue], carried: SSAValue, stage: int) -> SSAValue:
        """Brings earlier outputs to the new maximum; the first tile has none."""
        kernel = self.kernel
        assert self.output is not None
        extents = [*self.rows_extent, const(self.problem.d_v)]
        timed = kernel.timed(extents, [self.output, correction], [self.output], [*ready, carried], stage)
        lower, _ = kernel.key_range()
        first = var("key") - lower if kernel.trips["key"] > 1 else const(0)
        return kernel.emit(VectorOp("rescale", replace(timed, when=first)), "rescale")

    def _finish(self, done: SSAValue) -> None:
        """Divides or converts the finished outputs where that is due, and stores them."""
        if not self.problem.has("attend"):
            return
        kernel = self.kernel
        assert self.output is not None
        extents = [*self.rows_extent, const(self.problem.d_v)]
        # With the store, not with attend: else the vector unit would wait for attend before the next softmax.
        output, stage = self.output, self.stages.store
        late = self.problem.has("softmax") and self.mapping.softmax.divide == "late"
        if self.problem.converts_output:
            shape = [*self.rows_tile, self.problem.d_v]
            output = kernel.buffer("result", self.slots.output_slots, shape, self.types.output)
        if late or self.problem.converts_output:
            reads = [self.output, self.sum] if late else [self.output]
            timed = kernel.timed(extents, reads, [output], [done], stage)
            done = kernel.emit(VectorOp("divide" if late else "cast", timed), "divide" if late else "cast")
        starts = [*self.rows_start, const(0)]
        kernel.store(Access(output), kernel.tensors.result, starts, extents, [done], self.stages.store)
