"""The closed form: bytes, cycles and energy of mappings, without walking their tiles.

It prices whole columns of mappings at once (NumPy arrays, one entry a mapping), which is what the search does,
and a single mapping as a column of one. What tiles add up to depends on few columns only and is shared by all mappings
that agree on these (`SharedCounts`). Everything it counts comes from the primitive costs that the
simulator uses too, multiplied by how often each kind of tile occurs:

    a dimension cut into tiles has full tiles and perhaps one ragged tile; a mask decides how many key tiles each
    query tile visits; so a kernel has at most 2 x 2 x 2 kinds of head tiles and 2 x 2 kinds of (query, key) tiles.

**Exact**: off-chip bytes by tensor, bytes on chip, counts behind the energy, array cycles. Vector cycles too, but
for row strips of masked kernels, whose lengths vary (there the last partly filled vector is not rounded up).

**Latency** is a lower bound that the simulator approaches: the largest of

- each resource's busy time, plus the shortest time until it can start and from its end to the last result;
- each cycle of waiting, divided by how many instances may be under way in it. A set of scores is made, turned into
  probabilities and used before its slot is free again, and the array's program order lets `attend` fall behind
  `logit` by its stages only; a tile of Q, K, V or of the output likewise is loaded, used and released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from flatc.dialects.accelerator import Accelerator, Array
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.key_geometry import KeyGeometry, key_geometry
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    ArrayCycles,
    MatmulTile,
    ScoreTile,
    VectorWork,
    Work,
    array_cycles,
    ceil_divide,
    chained_traffic,
    energy_pj,
    operand_traffic,
    pe_cycles,
    vector_cycles,
    vector_energy_pj,
)
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.cost.value_work import value_work
from flatc.passes.kernels.problem import AttentionProblem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any


@dataclass(frozen=True)
class Structure:
    """What mappings of one column have in common: everything that is not a number."""

    algorithm: str
    divide: str
    k_level: str
    v_level: str
    logit_stationarity: str
    attend_stationarity: str
    d_qk: int | None = None
    """The tile of d_qk; None where it is not cut."""
    interleave: int = 1
    maximum: str = "vector"
    exponential: str = "vector"
    total: str = "vector"
    rescales_first: bool = False
    add: str = "array"

    @property
    def held(self) -> bool:
        """Whether score tiles stay in the registers of PEs."""
        return "array" in (self.maximum, self.exponential, self.total)

    @property
    def sums_in_attend(self) -> bool:
        """Whether a column of ones beside V gives the row sums."""
        return self.total == "attend"

    @property
    def chains_attends(self) -> bool:
        """Whether an attend waits for outputs to be rescaled, which wait for the attend before."""
        return self.algorithm == "online" and self.add == "array" and self.interleave == 1

    def is_product_rows(self, problem: AttentionProblem) -> bool:
        """Whether rows of scores stay on chip without a softmax on them."""
        return self.algorithm == "rows" and not problem.has("softmax")


@dataclass(frozen=True)
class Columns:
    """The numbers of many mappings, one array each (see `Mapping`)."""

    batch: Ints
    kv_head: Ints
    group: Ints
    query: Ints
    key: Ints
    q_slots: Ints
    k_slots: Ints
    v_slots: Ints
    score_slots: Ints
    output_slots: Ints
    logit_fold_rows: Ints
    logit_fold_columns: Ints
    attend_fold_rows: Ints
    attend_fold_columns: Ints
    load: Ints
    logit: Ints
    softmax: Ints
    attend: Ints
    store: Ints

    def take(self, indices: Any) -> Columns:
        """The rows at `indices`."""
        return Columns(*(getattr(self, f.name)[indices] for f in fields(Columns)))

    @property
    def size(self) -> int:
        """How many mappings."""
        return int(self.batch.shape[0])


def structure_of(mapping: Mapping) -> Structure:
    """The structure a mapping belongs to."""
    return Structure(
        mapping.softmax.algorithm,
        mapping.softmax.divide,
        mapping.keep.k_level,
        mapping.keep.v_level,
        mapping.logit.stationarity,
        mapping.attend.stationarity,
        mapping.tiles.d_qk,
        mapping.interleave,
        mapping.softmax.maximum,
        mapping.softmax.exponential,
        mapping.softmax.total,
        mapping.softmax.rescales_first,
        mapping.attend.add,
    )


def columns_of(mapping: Mapping) -> Columns:
    """A column of one mapping."""
    import numpy as np

    t, k, s, logit, attend = mapping.tiles, mapping.keep, mapping.stages, mapping.logit, mapping.attend
    numbers = [t.batch, t.kv_head, t.group, t.query, t.key]
    numbers += [k.q_slots, k.k_slots, k.v_slots, k.score_slots, k.output_slots]
    numbers += [logit.fold_rows, logit.fold_columns, attend.fold_rows, attend.fold_columns]
    numbers += [s.load, s.logit, s.softmax, s.attend, s.store]
    return Columns(*(np.array([n], dtype=np.int64) for n in numbers))


def mapping_at(problem: AttentionProblem, structure: Structure, columns: Columns, index: int) -> Mapping:
    """The mapping in row `index` of a column."""
    n = {f.name: int(getattr(columns, f.name)[index]) for f in fields(Columns)}
    s = structure
    return Mapping(
        Tiles(n["batch"], n["kv_head"], n["group"], n["query"], n["key"], s.d_qk or problem.d_qk, problem.d_v),
        Keep(
            n["q_slots"],
            n["k_slots"],
            n["v_slots"],
            n["score_slots"],
            n["output_slots"],
            s.k_level,  # pyright: ignore[reportArgumentType]
            s.v_level,  # pyright: ignore[reportArgumentType]
        ),
        ArrayUse(s.logit_stationarity, n["logit_fold_rows"], n["logit_fold_columns"]),  # pyright: ignore[reportArgumentType]
        ArrayUse(s.attend_stationarity, n["attend_fold_rows"], n["attend_fold_columns"], s.add),  # pyright: ignore[reportArgumentType]
        Softmax(s.algorithm, s.divide, s.maximum, s.exponential, s.total, s.rescales_first),  # pyright: ignore[reportArgumentType]
        Stages(n["load"], n["logit"], n["softmax"], n["attend"], n["store"]),
        s.interleave,
    )


@dataclass(frozen=True)
class Counts:
    """What the tiles of a column of mappings add up to, whenever they happen; every number is an array.

    It depends on the sizes of tiles and on folds, not on slots and stages, so mappings that differ in these share it
    (`SharedCounts`). `product`, `skew` and `awaited_skew` are cycles of each product, and of what PEs do of the
    softmax: busy, skew of all its tiles, and skew that the vector unit or a store waits for. `vector_between` is vector
    work between logit and attend of the same scores, `vector_aside` the rest. `rescaling` is the part of it that
    stands between an attend and the next one of the same rows, and what these wait for the first.
    `transfers` are loads and stores.
    """

    work: Work
    product: dict[str, Any]
    skew: dict[str, Any]
    awaited_skew: dict[str, Any]
    vector_between: Any
    vector_aside: Any
    rescaling: Any
    tensor_bytes: dict[str, Any]
    transfers: tuple[Any, Any]
    tile_cycles: tuple[ArrayCycles, ...] = ()
    """Of each kind of tile of the products, what one operation takes; nothing for kinds that do not occur."""

    @property
    def array(self) -> Any:
        """Cycles that the array is busy."""
        return sum(self.product.values())

    @property
    def vector(self) -> Any:
        """Cycles that the vector unit is busy."""
        return self.vector_between + self.vector_aside

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            Work(**_sums(vars(self.work), vars(other.work))),
            _sums(self.product, other.product),
            _sums(self.skew, other.skew),
            _sums(self.awaited_skew, other.awaited_skew),
            _sum(self.vector_between, other.vector_between),
            _sum(self.vector_aside, other.vector_aside),
            _sum(self.rescaling, other.rescaling),
            _sums(self.tensor_bytes, other.tensor_bytes),
            (_sum(self.transfers[0], other.transfers[0]), _sum(self.transfers[1], other.transfers[1])),
            (*self.tile_cycles, *other.tile_cycles),
        )

    def take(self, indices: Any) -> Counts:
        """The rows at `indices`, without `tile_cycles`."""

        def at(number: Any) -> Any:
            return number[indices] if getattr(number, "shape", ()) else number

        def each(numbers: dict[str, Any]) -> dict[str, Any]:
            return {name: at(number) for name, number in numbers.items()}

        return Counts(
            Work(**each(vars(self.work))),
            each(self.product),
            each(self.skew),
            each(self.awaited_skew),
            at(self.vector_between),
            at(self.vector_aside),
            at(self.rescaling),
            each(self.tensor_bytes),
            (at(self.transfers[0]), at(self.transfers[1])),
        )


def _sum(left: Any, right: Any) -> Any:
    """left + right; a part that has nothing to add takes no time."""
    for one, other in ((left, right), (right, left)):
        if not hasattr(one, "shape") and not one:
            return other
    return left + right


def _sums(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Sums by name; what only one of the two has is kept."""
    return left | {name: _sum(left.get(name, 0), number) for name, number in right.items()}


@dataclass(frozen=True)
class ClosedForm:
    """Costs of a column of mappings; every field is an array, or a dictionary of arrays.

    `tensor_bytes` maps q, k, v, scores, result and the roles of operands to off-chip bytes; `busy_cycles` maps array,
    vector, and the off-chip channels to cycles; `latency_cycles` is the lower bound described above.
    """

    latency_cycles: Any
    busy_cycles: dict[str, Any]
    tensor_bytes: dict[str, Any]
    peak_buffer_bytes: Any
    work: Work
    energy_pj: Any
    least_times: tuple[Any, ...] = ()
    """All that the latency is the largest of, where it is known."""

    @property
    def offchip_bytes(self) -> Any:
        """All off-chip traffic."""
        return self.work.offchip_read_bytes + self.work.offchip_write_bytes


def peak_buffer_bytes(problem: AttentionProblem, structure: Structure, columns: Columns, geometry: KeyGeometry) -> Any:
    """Bytes of all buffers, as `lower-to-spatial` will declare them."""
    p, c, s = problem, columns, structure
    heads = c.batch * c.kv_head
    rows = heads * c.group * c.query
    d_qk = s.d_qk or p.d_qk
    online = s.algorithm == "online"
    block = rows * s.interleave
    total = c.q_slots * (block if online else rows) * d_qk * p.q_bytes
    k_rows = c.key if s.k_level == "key" else p.keys
    v_rows = p.keys if s.v_level == "kv_head" else c.key
    passes = 2 if s.algorithm == "streamed" else 1
    total = total + heads * k_rows * d_qk * p.k_bytes * c.k_slots * (1 if s.k_level == "kv_head" else passes)
    outputs = p.d_v + s.sums_in_attend
    if s.v_level != "k":
        total = total + heads * v_rows * outputs * p.v_bytes * c.v_slots
    total = total + c.k_slots * c.batch * p.pages * PAGE_BYTES
    scores = rows if online else block
    if not s.held:
        width = geometry.width if s.algorithm == "rows" else c.key
        element = p.score_bytes * passes + (p.probability_bytes if p.converts_probabilities else 0)
        total = total + c.score_slots * scores * width * element
    if p.has("softmax"):
        of_block, of_tile = _statistic_slots(s, c)
        total = total + (block * of_block + scores * of_tile) * p.score_bytes
    if p.has("attend"):
        total = total + c.output_slots * block * outputs * p.accumulator_bytes
        if p.converts_output:
            total = total + c.output_slots * block * p.d_v * p.output_bytes
        if s.add == "vector":
            total = total + c.score_slots * (2 if s.held else 1) * rows * outputs * p.accumulator_bytes
    return total + ScoreCosts(p, s.algorithm, s.k_level, c).footprint_bytes()


PAGE_BYTES = 4
"""An entry of a table of pages is an i32."""


def _statistic_slots(s: Structure, c: Columns) -> tuple[Any, Any]:
    """Slots of what is kept for each row: the running maximum and sum, and what belongs to one tile of scores."""
    sums = (c.store - (c.attend if s.held else c.softmax) + 1) * (not s.sums_in_attend)
    if s.algorithm == "online":
        held = (2 if s.sums_in_attend else 4) * c.score_slots if s.held else 0
        return 1 + sums, c.attend - c.softmax + 1 + held
    if s.algorithm == "rows":
        return 1 + sums, 0
    return (1 + c.attend - c.logit) + (1 + c.attend), 1


def register_bytes_per_pe(problem: AttentionProblem, structure: Structure, columns: Columns, array: Array) -> Any:
    """Bytes that score tiles take in the registers of each PE."""
    p, c = problem, columns
    if not structure.held:
        return c.batch * 0
    fold = (c.attend_fold_rows, c.attend_fold_columns)
    tiles = array.passes(c.batch * c.kv_head, c.key, c.group * c.query, fold) * c.score_slots
    return tiles * (p.score_bytes + (p.probability_bytes if p.converts_probabilities else 0))


class _Counter:
    """Adds up work over the kinds of tiles of a column of mappings; `counts` gives the sums (see `Counts`)."""

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        structure: Structure,
        columns: Columns,
        geometry: KeyGeometry,
    ):
        self.problem, self.accelerator = problem, accelerator
        self.structure, self.columns = structure, columns
        self.geometry = geometry
        self.product_rows = structure.is_product_rows(problem)
        # Interleaved query tiles of an online softmax; the mask that would complicate it is refused.
        self.shares_keys = structure.interleave > 1 and not self.product_rows
        self.scores = ScoreCosts(problem, structure.algorithm, structure.k_level, columns)
        self.work = Work()
        self.vector_between: Any = 0
        self.vector_aside: Any = 0
        self.rescaling: Any = 0
        self.product: dict[str, Any] = {}
        self.skew: dict[str, Any] = {}
        self.awaited_skew: dict[str, Any] = {}
        self.tile_cycles: list[ArrayCycles] = []

    def head_kinds(self) -> list[tuple[Any, Any, Any]]:
        """(how many, batch x kv heads in the tile, query heads per kv head) for each kind of head tile."""
        p, c = self.problem, self.columns
        kinds: list[tuple[Any, Any, Any]] = []
        for batches, batch in _tiles(p.batch, c.batch):
            for kv_tiles, kv_head in _tiles(p.kv_heads, c.kv_head):
                for groups, group in _tiles(p.group, c.group):
                    count = batches * kv_tiles * groups
                    if count.any():
                        kinds.append((count, batch * kv_head, group))
        return kinds

    def counts(self, part: Part) -> Counts:
        """What one part of the work adds up to."""
        tensors: dict[str, Any] = {}
        transfers: tuple[Any, Any] = 0, 0
        zero = self.columns.batch * 0
        if part == "vector":
            self.vector_between = self.vector_aside = zero
            if self.structure.held:
                self.product["softmax"] = self.skew["softmax"] = self.awaited_skew["softmax"] = zero
            self.add_vector()
        elif part == "transfers":
            tensors, transfers = self.tensor_bytes(), self.transfers()
            if self.problem.block is not None:
                self.work = Work(buffer_read_bytes=self.loads_of_keys() * PAGE_BYTES)
        else:
            self.product[part] = self.skew[part] = self.awaited_skew[part] = zero
            if self.problem.has(part):
                self.add_product(part)
        return Counts(
            self.work,
            self.product,
            self.skew,
            self.awaited_skew,
            self.vector_between,
            self.vector_aside,
            self.rescaling,
            tensors,
            transfers,
            tuple(self.tile_cycles),
        )

    def add_product(self, name: str) -> None:
        """Array cycles and traffic of logit or attend."""
        p, g = self.problem, self.geometry
        passes = 2 if self.structure.algorithm == "streamed" else 1
        for count, batch, group in self.head_kinds():
            for query, q_extent in enumerate(g.q_extents):
                m = group * q_extent
                if name == "logit" and self.product_rows:
                    for times, keys, depth in self._logit_tiles(query):
                        self._product("logit", MatmulTile(batch, m, keys, depth), count * times, count * 0)
                    continue
                for key, k_extent in enumerate(g.k_extents):
                    times = count * g.visits[query][key]
                    if not times.any():
                        continue
                    # A strip waits for the last of its products only, which may be the ragged one.
                    last = g.nonempty[query] * (key == 0) * (g.k_extents[1] == 0)
                    waits = count * last if self.structure.algorithm == "rows" else times
                    if self.product_rows:
                        waits = times * 0
                    if name == "logit":
                        self._product("logit", MatmulTile(batch, m, k_extent, p.d_qk), times * passes, waits)
                    else:
                        width = p.d_v + self.structure.sums_in_attend
                        skew = self._product("attend", MatmulTile(batch, m, width, k_extent), times, waits)
                        if self.structure.chains_attends:
                            later = times - count * g.nonempty[query]
                            self.rescaling = self.rescaling + skew * later * (later > 0)

    def _logit_tiles(self, query: int) -> list[tuple[Any, Any, int]]:
        """(how many, keys, depth) of the blocks that fill the rows of all query tiles of a kind."""
        p, g, s = self.problem, self.geometry, self.structure
        keys = list(zip(g.visits[query], g.k_extents, strict=True))
        if s.k_level == "query":
            keys = [(g.q_counts[query], self.columns.key * 0 + p.keys)]
        return [
            (times * depths, extent, depth)
            for times, extent in keys
            for depths, depth in _tiles(p.d_qk, s.d_qk or p.d_qk)
            if depths and times.any()
        ]

    def _product(self, name: str, tile: MatmulTile, times: Any, waits: Any) -> Any:
        """Adds `times` products of one kind, `waits` of which somebody waits for; gives the skew of one."""
        p, c, array = self.problem, self.columns, self.accelerator.array
        stationarity: str = getattr(self.structure, f"{name}_stationarity")
        fold = (getattr(c, f"{name}_fold_rows"), getattr(c, f"{name}_fold_columns"))
        cycles = array_cycles(array, stationarity, fold, tile)
        self.tile_cycles.append(ArrayCycles(cycles.busy * (times > 0), cycles.latency * (times > 0)))
        self.product[name] = self.product[name] + cycles.busy * times
        self.skew[name] = self.skew[name] + (cycles.latency - cycles.busy) * times
        self.awaited_skew[name] = self.awaited_skew[name] + (cycles.latency - cycles.busy) * waits
        attend, held = name == "attend", self.structure.held
        accumulate = (attend and self.structure.add == "array") or self.product_rows
        traffic = operand_traffic(array, stationarity, tile, accumulate=accumulate)
        a, b, out = (
            (p.probability_bytes, p.v_bytes, p.accumulator_bytes) if attend else (p.q_bytes, p.k_bytes, p.score_bytes)
        )
        chained = attend and p.has("logit") and not p.converts_probabilities and not held
        copied = chained_traffic(array, tile) * a if chained else 0
        first, results = traffic.a_reads * a, (traffic.c_reads * out, traffic.c_writes * out)
        registers: Any = 0
        if held:  # the scores, which attend reads and logit writes
            registers, first, results = (first, 0, results) if attend else (sum(results), first, (0, 0))
        self.work = self.work + Work(
            macs=tile.batch * tile.m * tile.n * tile.k * times,
            buffer_read_bytes=(first + traffic.b_reads * b + results[0] + copied) * times,
            buffer_write_bytes=(results[1] + copied) * times,
            register_bytes=registers * times,
        )
        return cycles.latency - cycles.busy

    def add_vector(self) -> None:
        """Vector cycles, counts and traffic of everything around the products."""
        p, g = self.problem, self.geometry
        for count, batch, group in self.head_kinds():
            for query, q_extent in enumerate(g.q_extents):
                rows = batch * group * q_extent
                self._score_ops(count, query, rows)
                if p.mask is not None:
                    self._mask(count, query, rows)
                if p.has("softmax"):
                    self._softmax(count, query, batch, group * q_extent)
                if p.has("attend"):
                    self._outputs(count, query, batch * group)
        self.work = self.work + Work(buffer_read_bytes=self.scores.buffer_read_bytes(g))

    def _score_ops(self, count: Any, query: int, rows: Any) -> None:
        """The steps that scores take, on every tile that is visited, and the sink, on every row."""
        g, p = self.geometry, self.problem
        passes = 2 if self.structure.algorithm == "streamed" else 1
        for step in p.score_ops:
            looked_up = sum(operand.element_bytes for operand in step.operands if operand.buckets)
            for key, k_extent in enumerate(g.k_extents):
                times = count * g.visits[query][key] * passes
                self._vector(step.kind, times, rows, k_extent, reads=p.score_bytes + looked_up, writes=p.score_bytes)
        if p.sink is not None:
            times, score = count * g.q_counts[query], p.score_bytes
            self._vector("sink", times, rows, 1, reads=0, row_reads=score, row_writes=2 * score, aside=True)

    def _mask(self, count: Any, query: int, rows: Any) -> None:
        g, p = self.geometry, self.problem
        passes = 2 if self.structure.algorithm == "streamed" else 1
        for key, k_extent in enumerate(g.k_extents):
            times = count * g.edges[query][key] * passes
            size = 0 if self.structure.held else p.score_bytes
            registers = 2 * p.score_bytes if self.structure.held else 0
            self._vector("mask", times, rows, k_extent, reads=size, writes=size, registers=registers, aside=True)

    def _softmax(self, count: Any, query: int, batch: Any, m: Any) -> None:
        """The softmax of `batch` x `m` rows."""
        p, g, rows = self.problem, self.geometry, batch * m
        if self.structure.algorithm == "rows":
            self._softmax_rows(count, query, rows)
            return
        if self.structure.held:
            for key, k_extent in enumerate(g.k_extents):
                self._held_softmax(count * g.visits[query][key], ScoreTile(batch, m, k_extent))
            self._rescale(count, query, rows)
            return
        score, out = p.score_bytes, p.probability_bytes
        for key, k_extent in enumerate(g.k_extents):
            times = count * g.visits[query][key]
            self._vector("row_max_online", times, rows, k_extent, reads=score, row_reads=score, row_writes=2 * score)
            streamed = self.structure.algorithm == "streamed"
            if self.structure.sums_in_attend:
                self._exp("exp", times, rows, k_extent, row_reads=1, row_writes=0, final=True)
            else:
                self._exp("exp_sum_online", times, rows, k_extent, row_reads=3, row_writes=1, final=not streamed)
            if streamed:
                self._exp("exp", times, rows, k_extent, row_reads=1, row_writes=0, final=False)
                converts = p.converts_probabilities
                self._vector(
                    "divide", times, rows, k_extent, reads=score, writes=out, row_reads=score, converts=converts
                )
        if self.structure.algorithm == "online":
            self._rescale(count, query, rows)

    def _rescale(self, count: Any, query: int, rows: Any) -> None:
        """Rescaling of outputs at every key tile but the first of its rows, and adding products to them."""
        p, g, s = self.problem, self.geometry, self.structure
        acc, visits = p.accumulator_bytes, count * sum(g.visits[query])
        times = visits - count * g.nonempty[query] * (not s.rescales_first)
        width = p.d_v + s.sums_in_attend
        chained, between = s.chains_attends, s.add == "array"
        cycles = self._vector(
            "rescale", times, rows, width, reads=acc, writes=acc, row_reads=p.score_bytes, aside=not between
        )
        if chained:
            self.rescaling = self.rescaling + cycles
        if s.add == "vector":
            self._vector("add", visits, rows, width, reads=2 * acc, writes=acc, aside=True)

    def _held_softmax(self, times: Any, tile: ScoreTile) -> None:
        """The softmax of score tiles in registers: PEs or the vector unit on scores, the vector unit on rows."""
        p, s = self.problem, self.structure
        score, out, rows = p.score_bytes, p.probability_bytes, tile.batch * tile.queries
        self._on_scores("tile_max", s.maximum, times, tile, registers=score, row_writes=score)
        self._vector("merge_max", times, rows, 1, reads=2 * score, writes=3 * score)
        self._on_scores("exp", s.exponential, times, tile, registers=score + out, row_reads=score)
        if not s.sums_in_attend:
            self._on_scores("tile_sum", s.total, times, tile, registers=out, row_writes=score)
            self._vector("merge_sum", times, rows, 1, reads=3 * score, writes=score, aside=True)

    def _on_scores(
        self,
        kind: str,
        unit: str,
        times: Any,
        tile: ScoreTile,
        *,
        registers: int,
        row_reads: int = 0,
        row_writes: int = 0,
    ) -> None:
        rows = tile.batch * tile.queries
        bytes: dict[str, Any] = {"row_reads": row_reads, "row_writes": row_writes}
        if unit == "vector":
            converts = kind == "exp" and self.problem.converts_probabilities
            self._vector(kind, times, rows, tile.keys, converts=converts, registers=registers, **bytes)
            return
        c, work = self.columns, VECTOR_WORK[kind]
        fold = (c.attend_fold_rows, c.attend_fold_columns)
        cycles = pe_cycles(self.accelerator.array, work.per_element, fold, tile)
        self.product["softmax"] = self.product["softmax"] + cycles.busy * times
        skew = (cycles.latency - cycles.busy) * times
        self.skew["softmax"] = self.skew["softmax"] + skew
        if kind == "tile_max":
            self.awaited_skew["softmax"] = self.awaited_skew["softmax"] + skew
        self._count(work, times, rows, tile.keys, registers=registers, **bytes)

    def _exp(
        self, kind: str, times: Any, rows: Any, width: Any, *, row_reads: int, row_writes: int, final: bool
    ) -> None:
        p = self.problem
        self._vector(
            kind,
            times,
            rows,
            width,
            reads=p.score_bytes,
            writes=p.probability_bytes if final else p.score_bytes,
            row_reads=row_reads * p.score_bytes,
            row_writes=row_writes * p.score_bytes,
            converts=final and p.converts_probabilities,
        )

    def _softmax_rows(self, count: Any, query: int, rows: Any) -> None:
        p, g = self.problem, self.geometry
        score, out = p.score_bytes, p.probability_bytes
        tiles = count * g.q_counts[query]
        # Strips of one kernel differ in length under a mask: their total is exact, a strip is their mean.
        width = g.strip_keys[query] if g.constant_width is None else g.constant_width
        times = count if g.constant_width is None else tiles
        self._strip("row_max", times, tiles, rows, width, reads=score, row_reads=score, row_writes=score)
        early, converts = self.structure.divide == "early", p.converts_probabilities
        sums = not self.structure.sums_in_attend
        self._strip(
            "exp_sum" if sums else "exp",
            times,
            tiles,
            rows,
            width,
            reads=score,
            writes=score if early else out,
            row_reads=(1 + sums) * score,
            row_writes=sums * score,
            converts=converts and not early,
        )
        if early:
            self._strip(
                "divide", times, tiles, rows, width, reads=score, writes=out, row_reads=score, converts=converts
            )

    def _strip(self, kind: str, times: Any, tiles: Any, rows: Any, width: Any, **bytes: Any) -> None:
        self._vector(kind, times, rows, width, rounded=self.geometry.constant_width is not None, tiles=tiles, **bytes)

    def _outputs(self, count: Any, query: int, heads: Any) -> None:
        """Division or conversion of the finished outputs of a kind of query tiles, or of blocks of them."""
        p, s = self.problem, self.structure
        late = p.has("softmax") and s.divide == "late"
        if late or p.converts_output:
            tiles, extent = _tiles(p.queries, self.columns.query * s.interleave)[query]
            acc, apart = p.accumulator_bytes, s.sums_in_attend
            self._vector(
                "cast" if not late else "divide_by_last" if apart else "divide",
                count * tiles,
                heads * extent,
                p.d_v,
                reads=acc,
                writes=p.output_bytes,
                row_reads=(acc if apart else p.score_bytes) if late else 0,
                converts=p.converts_output,
                aside=True,
            )

    def _vector(
        self,
        kind: str,
        times: Any,
        rows: Any,
        width: Any,
        *,
        converts: bool = False,
        aside: bool = False,
        rounded: bool = True,
        tiles: Any = None,
        **bytes: Any,
    ) -> Any:
        """Adds `times` operations over tiles of rows x width; `tiles` of them share the row work, if given.

        `bytes` are those of `_count`. Gives the cycles of all.
        """
        if not times.any():
            return 0
        unit, work = self.accelerator.vector, value_work(kind, 2) if kind == "add" else VECTOR_WORK[kind]
        if converts and "cast" not in work.per_element:
            work = VectorWork((*work.per_element, "cast"), work.per_row)
        elements = rows * width
        if rounded:
            cycles = vector_cycles(unit, work, elements, rows) * times
        else:
            price = sum(getattr(unit.prices, name) for name in work.per_element)
            cycles = ceil_divide(elements * times, max(unit.lanes, 1)) * price
        if aside:
            self.vector_aside = self.vector_aside + cycles
        else:
            self.vector_between = self.vector_between + cycles
        self._count(work, times, rows, width, row_times=times if tiles is None else tiles, **bytes)
        return cycles

    def _count(
        self,
        work: VectorWork,
        times: Any,
        rows: Any,
        width: Any,
        *,
        row_times: Any = None,
        reads: int = 0,
        writes: int = 0,
        row_reads: int = 0,
        row_writes: int = 0,
        registers: int = 0,
    ) -> None:
        """Adds what `times` operations over rows x width elements read, write and spend.

        The numbers are bytes of each element and of each row in the buffer, and of each element in registers.
        """
        elements, row_times = rows * width * times, times if row_times is None else row_times
        self.work = self.work + Work(
            vector_energy_pj=vector_energy_pj(self.accelerator.vector, work, elements, rows * row_times),
            vector_elements=elements * len(work.per_element),
            buffer_read_bytes=elements * reads + rows * row_times * row_reads,
            buffer_write_bytes=elements * writes + rows * row_times * row_writes,
            register_bytes=elements * registers,
        )

    def tensor_bytes(self) -> dict[str, Any]:
        """Off-chip bytes by tensor."""
        p, s, g = self.problem, self.structure, self.geometry
        like = self.columns.batch * 0
        kv = p.batch * p.kv_heads
        passes = 2 if s.algorithm == "streamed" else 1
        streamed_keys = sum(g.visits[q][k] * k_extent for q in (0, 1) for k, k_extent in enumerate(g.k_extents))
        if self.shares_keys:
            streamed_keys = like + p.keys * self._blocks()
        streamed_keys = ceil_divide(p.group, self.columns.group) * streamed_keys
        scores = p.heads * sum(
            g.visits[q][k] * k_extent * q_extent
            for q, q_extent in enumerate(g.q_extents)
            for k, k_extent in enumerate(g.k_extents)
        )
        found: dict[str, Any] = {}
        if p.block is not None:
            found["pages"] = ceil_divide(p.kv_heads, self.columns.kv_head) * (p.batch * p.pages * PAGE_BYTES)
        if p.has("logit"):
            again = ceil_divide(p.keys, self.columns.key) if self.product_rows and s.k_level == "key" else 1
            found["q"] = (like + p.heads * p.queries * p.d_qk * p.q_bytes) * again
            keys = like + p.keys if s.k_level == "kv_head" else streamed_keys * passes
            found["k"] = keys * (kv * p.d_qk * p.k_bytes)
        else:
            found["scores"] = scores * (p.score_bytes * passes)
        if p.has("attend"):
            levels: dict[str, Any] = {"kv_head": like + p.keys, "k": like}
            keys = levels.get(s.v_level, streamed_keys)
            found["v"] = keys * (kv * p.d_v * p.v_bytes)
            found["result"] = like + p.heads * p.queries * p.d_v * p.output_bytes
        else:
            found["result"] = scores * p.probability_bytes
        return found | self.scores.offchip_bytes(g)

    def _blocks(self) -> Any:
        """How many times query tiles are interleaved: how often their keys are streamed."""
        return ceil_divide(self.problem.queries, self.columns.query * self.structure.interleave)

    def loads_of_keys(self) -> Any:
        """How many transfers load K and V. Of pages each takes one, for every sequence of a tile."""
        p, s, g, c = self.problem, self.structure, self.geometry, self.columns
        passes = 2 if s.algorithm == "streamed" else 1
        block = p.block or p.keys
        heads = ceil_divide(p.kv_heads, c.kv_head) * (ceil_divide(p.batch, c.batch) if p.block is None else p.batch)
        streamed = sum(
            g.visits[q][k] * ceil_divide(k_extent, block) for q in (0, 1) for k, k_extent in enumerate(g.k_extents)
        )
        if self.shares_keys:
            streamed = self._blocks() * sum(
                count * ceil_divide(extent, block) for count, extent in _tiles(p.keys, c.key)
            )
        whole, tile = heads * ceil_divide(p.keys, block), heads * ceil_divide(p.group, c.group) * streamed
        loads: Any = 0
        if p.has("logit"):
            loads = whole if s.k_level == "kv_head" else tile * passes
        if p.has("attend") and s.v_level != "k":
            loads = loads + (whole if s.v_level == "kv_head" else tile)
        return loads

    def transfers(self) -> tuple[Any, Any]:
        """How many loads and how many stores."""
        p, s, g, c = self.problem, self.structure, self.geometry, self.columns
        passes = 2 if s.algorithm == "streamed" else 1
        heads = ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)
        groups = heads * ceil_divide(p.group, c.group)
        tiles, visits = groups * sum(g.q_counts), groups * sum(g.visits[0] + g.visits[1])
        if self.shares_keys:
            tiles = groups * self._blocks()
            visits = tiles * ceil_divide(p.keys, c.key)
        fills = tiles if s.k_level == "query" else visits
        loads: Any = 0
        if self.product_rows:
            loads = 2 * fills * ceil_divide(p.d_qk, s.d_qk or p.d_qk)
        elif p.has("logit"):
            loads = tiles + self.loads_of_keys()
        else:
            loads = visits * passes + self.loads_of_keys()
        loads = loads + self.scores.loads(g)
        if self.product_rows and p.has("attend"):
            loads = loads + visits
        if p.block is not None:
            loads = loads + heads  # of the table
        return loads, tiles if p.has("attend") else fills


def _tiles(size: int, tile: Any) -> list[tuple[Any, Any]]:
    """(how many, extent) of the full tiles and of the ragged tile."""
    ragged = size % tile
    return [(size // tile, tile), ((ragged > 0) * 1, ragged)]


Part = Literal["logit", "attend", "vector", "transfers"]
PARTS: tuple[Part, ...] = ("logit", "attend", "vector", "transfers")

_WITHOUT_INFLUENCE: dict[Part, tuple[str, ...]] = {
    "logit": ("divide", "v_level", "attend_stationarity", "rescales_first", "add"),
    "attend": ("divide", "k_level", "v_level", "logit_stationarity", "rescales_first"),
    "vector": ("k_level", "v_level", "logit_stationarity", "attend_stationarity"),
    "transfers": (
        *("divide", "logit_stationarity", "attend_stationarity"),
        *("maximum", "exponential", "total", "rescales_first", "add"),
    ),
}
"""What of a structure a part of the counts does not depend on."""


def relevant(part: Part, structure: Structure) -> Structure:
    """A structure without what a part of the counts does not depend on."""
    found = replace(structure, **dict.fromkeys(_WITHOUT_INFLUENCE[part], ""))
    if part == "logit" and found.k_level != "query":
        found = replace(found, k_level="")
    if part == "vector" and structure.held:
        # What PEs do of the softmax is folded as attend is.
        found = replace(found, attend_stationarity=structure.attend_stationarity)
    return replace(found, total="") if part == "logit" and not structure.held else found


class SharedCounts:
    """Counts of one set of tiles under many structures: each part once for all structures that agree on it.

        shared = SharedCounts(problem, accelerator, tiles, folds)
        shared.counts(structure)                  # a row for each of `tiles`

    `tiles` needs batch, kv_head, group, query and key only; `folds(product, structure)` gives a product's folds, which
    depend on its stationarity, on whether scores are held, and on whether row sums are in the attend.
    """

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        tiles: Columns,
        folds: Callable[[str, Structure], tuple[Ints, Ints]],
    ):
        self.problem, self.accelerator, self.tiles, self.folds = problem, accelerator, tiles, folds
        self.geometry = key_geometry(problem, tiles.query, tiles.key)
        self._parts: dict[tuple[Part, Structure], Counts] = {}

    def counts(self, structure: Structure, indices: Any = None) -> Counts:
        """The counts of every tile under `structure`, or of the tiles at `indices`."""
        parts = [self.part(part, structure) for part in PARTS]
        if indices is not None:
            parts = [part.take(indices) for part in parts]
        return reduce(Counts.__add__, parts)

    def part(self, part: Part, structure: Structure) -> Counts:
        """One part of the counts."""
        key = relevant(part, structure)
        found = self._parts.get((part, key))
        if found is None:
            tiles = self.tiles
            product = "attend" if part == "vector" and structure.held else part
            if product in ("logit", "attend"):
                rows, columns = self.folds(product, structure)
                tiles = replace(tiles, **{f"{product}_fold_rows": rows, f"{product}_fold_columns": columns})
            found = _Counter(self.problem, self.accelerator, key, tiles, self.geometry).counts(part)
            self._parts[part, key] = found
        return found


def evaluate(
    problem: AttentionProblem,
    accelerator: Accelerator,
    structure: Structure,
    columns: Columns,
    counts: Counts | None = None,
    peak_bytes: Any = None,
) -> ClosedForm:
    """Costs of a column of mappings; see the module docstring for what is exact.

    `counts` and `peak_bytes` may be given where they are known already.
    """
    import numpy as np

    if counts is None or peak_bytes is None:
        geometry = key_geometry(problem, columns.query, columns.key)
        parts = (_Counter(problem, accelerator, structure, columns, geometry).counts(part) for part in PARTS)
        counts = reduce(Counts.__add__, parts)
        peak_bytes = peak_buffer_bytes(problem, structure, columns, geometry)
    work = total_work(counts)
    busy = busy_cycles(accelerator, counts)
    times = _least_times(_Case(problem, accelerator, structure, columns, counts), busy)
    latency = np.zeros(columns.batch.shape)
    for time in times:
        np.maximum(latency, time, out=latency)
    return ClosedForm(
        latency_cycles=latency,
        busy_cycles=busy,
        tensor_bytes=counts.tensor_bytes,
        peak_buffer_bytes=peak_bytes,
        work=work,
        energy_pj=sum(energy_pj(accelerator, work).values()),
        least_times=tuple(times),
    )


def total_work(counts: Counts) -> Work:
    """The work of the tiles, and of the transfers between buffer and memory."""
    read, written = _read_and_written(counts)
    return counts.work + Work(
        offchip_read_bytes=read, offchip_write_bytes=written, buffer_read_bytes=written, buffer_write_bytes=read
    )


def busy_cycles(accelerator: Accelerator, counts: Counts) -> dict[str, Any]:
    """How long each resource is busy: no schedule takes less than the longest."""
    busy = _offchip_busy(accelerator, *_read_and_written(counts), counts.transfers)
    return busy | {"array": counts.array, "vector": counts.vector}


def _read_and_written(counts: Counts) -> tuple[Any, Any]:
    """Off-chip bytes: the result is written, everything else is read."""
    tensors = counts.tensor_bytes
    return sum(size for name, size in tensors.items() if name != "result"), tensors["result"]


def _offchip_busy(accelerator: Accelerator, read: Any, written: Any, transfers: tuple[Any, Any]) -> dict[str, Any]:
    loads, stores = (count * accelerator.offchip.overhead_cycles for count in transfers)
    read_cycles = read * float(accelerator.cycles_per_byte_read) + loads
    write_cycles = written * float(accelerator.cycles_per_byte_written) + stores
    if accelerator.offchip.channels == "shared":
        return {"offchip": read_cycles + write_cycles}
    return {"read": read_cycles, "write": write_cycles}


@dataclass(frozen=True)
class _Case:
    """Mappings to be timed, and what their tiles add up to."""

    problem: AttentionProblem
    accelerator: Accelerator
    structure: Structure
    columns: Columns
    counts: Counts


def _least_times(case: _Case, busy: dict[str, Any]) -> list[Any]:
    """Times below which no latency lies."""
    first_load, last_store = _ends(case)
    offchip = [time for name, time in busy.items() if name not in ("array", "vector")]
    ends = first_load + last_store
    return [*offchip, busy["array"] + ends, busy["vector"] + ends, *_waiting_cycles(case)]


def _waiting_cycles(case: _Case) -> list[Any]:
    """Total length of each cycle of waiting over the instances that may be under way in it."""
    import numpy as np

    p, c, s, accelerator, counts = case.problem, case.columns, case.structure, case.accelerator, case.counts
    tensors = counts.tensor_bytes
    read, write = float(accelerator.cycles_per_byte_read), float(accelerator.cycles_per_byte_written)
    logit, attend = counts.product["logit"], counts.product["attend"]
    found: list[Any] = []
    if p.has("logit"):
        k_slots = c.k_slots if s.k_level == "key" else c.k_slots * 0 + _NEVER
        skew = counts.skew["logit"] if s.interleave == 1 else 0
        used = tensors["k"] * read + logit + skew + (attend if s.v_level == "k" else 0)
        found.append(used / k_slots)
        found.append((tensors["q"] * read + logit) / c.q_slots)
    if p.has("attend"):
        v_slots = c.v_slots if s.v_level == "key" else c.v_slots * 0 + _NEVER
        skew = counts.skew["attend"] if s.interleave == 1 else 0
        found.append((tensors["v"] * read + attend + skew) / v_slots)
        if s.chains_attends:
            found.append(attend + counts.rescaling)
        if s.interleave == 1:
            # Interleaved tiles share a slot: one may be stored while another is in work.
            found.append((tensors["result"] * write + attend) / c.output_slots)
    if s.held:
        # The array takes the next logit after the attend of its stages, which waits for the vector unit in between.
        made = logit + attend + counts.product["softmax"] + counts.vector_between
        found.append((made + counts.awaited_skew["softmax"]) / (c.attend - c.logit + 1))
    elif p.has("logit") and p.has("attend") and s.algorithm != "streamed":
        under_way = np.minimum(c.score_slots, c.attend - c.logit + 1)
        found.append((logit + attend + counts.awaited_skew["logit"] + counts.vector_between) / under_way)
    return found


_NEVER = 1 << 40
"""Stands for slots that never bind: the tensor is loaded too seldom to count."""


def _ends(case: _Case) -> tuple[Any, Any]:
    """Cycles of the loads before the first operation, and of the store after the last: at the least."""
    import numpy as np

    p, c, s, accelerator = case.problem, case.columns, case.structure, case.accelerator
    heads = c.batch * c.kv_head
    loaded: Any = 0
    if p.has("logit") and p.mask is None:
        keys = c.key if s.k_level == "key" else p.keys
        rows = c.query if s.algorithm != "online" else np.minimum(c.query * s.interleave, p.queries)
        loaded = heads * (s.d_qk or p.d_qk) * (c.group * rows * p.q_bytes + keys * p.k_bytes)
    # The last tile of each dimension may be ragged.
    rows = _last(p.batch, c.batch) * _last(p.kv_heads, c.kv_head) * _last(p.group, c.group)
    rows = rows * _last(p.queries, c.query * (s.interleave if s.algorithm == "online" else 1))
    stored = rows * p.d_v * p.output_bytes if p.has("attend") else 0
    return loaded * float(accelerator.cycles_per_byte_read), stored * float(accelerator.cycles_per_byte_written)


def _last(size: int, tile: Any) -> Any:
    ragged = size % tile
    return ragged + tile * (ragged == 0)


def evaluate_mapping(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> ClosedForm:
    """Costs of one mapping, as arrays of one entry."""
    return evaluate(problem, accelerator, structure_of(mapping), columns_of(mapping))
