"""Vector work around the products, added up over the kinds of tiles of a column of mappings.

What PEs do of the softmax is counted here too: it is the same work on another unit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flatc.passes.cost.arrays import larger, occurs, smaller
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    ScoreTile,
    VectorWork,
    Work,
    ceil_divide,
    pe_cycles,
    vector_cycles,
    vector_energy_pj,
)
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.cost.tile_counts import Counts, LeastOf, TileKinds, tiles_along
from flatc.passes.cost.value_work import value_work


class VectorTileCounts(TileKinds):
    """Adds up vector cycles, counts and traffic of everything around the products (see `Counts`)."""

    def counts(self) -> Counts:
        """What the vector unit does, and PEs of the softmax."""
        self.work = Work()
        zero = self.columns.batch * 0
        self.between: Any = zero
        self.aside: Any = zero
        self.finish: Any = zero
        self.last_finish = LeastOf()
        self.rescaling: Any = 0
        self.busy = self.skew = self.awaited_skew = zero
        self._add_vector()
        on_array = self.structure.held
        return Counts(
            self.work,
            product={"softmax": self.busy} if on_array else {},
            skew={"softmax": self.skew} if on_array else {},
            awaited_skew={"softmax": self.awaited_skew} if on_array else {},
            vector_between=self.between,
            vector_aside=self.aside,
            vector_finish=self.finish,
            rescaling=self.rescaling,
            largest_row=self._largest_row(),
            ends={"finish": self.last_finish.number},
        )

    def _largest_row(self) -> Any:
        """The share of all products, loads and vector work of a tile of query heads that one query tile has, at most.

        It has so many of all visits, and so many of all keys, rounded up to what the vector unit works on at a time.
        Where a ragged key tile is among them, some wait for more waves in the array than others: no share is known.
        """
        p, g, c = self.problem, self.geometry, self.columns
        if p.mask is None:
            return 1 / larger(p.queries // c.query, 1)
        rows = c.batch * c.kv_head * c.group * c.query
        keys = (g.width + self.accelerator.vector.lanes / rows) / larger(g.strip_keys[0], 1)
        visits = g.most_visits / larger(g.visits[0][0] + g.visits[0][1], 1)
        return smaller(larger(larger(keys, visits), p.keys % c.key > 0), 1)

    def _add_vector(self) -> None:
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
                if p.value_scale is not None:
                    self._value_scale(count, query, rows)
                if p.has("attend"):
                    self._outputs(count, query, batch * group)
        scores = ScoreCosts(p, self.structure.algorithm, self.structure.k_level, self.columns)
        self.work = self.work + Work(buffer_read_bytes=scores.buffer_read_bytes(g))

    def _score_ops(self, count: Any, query: int, rows: Any) -> None:
        """The steps that scores take, on every tile that is visited, and the sink, on every row."""
        g, p = self.geometry, self.problem
        for step in p.score_ops:
            looked_up = sum(operand.element_bytes for operand in step.operands if operand.buckets)
            for key, k_extent in enumerate(g.k_extents):
                times = count * g.visits[query][key] * self.passes
                self._vector(step.kind, times, rows, k_extent, reads=p.score_bytes + looked_up, writes=p.score_bytes)
        if p.sink is not None:
            times, score = count * g.q_counts[query], p.score_bytes
            self._vector("sink", times, rows, 1, reads=0, row_reads=score, row_writes=2 * score, aside=True)

    def _value_scale(self, count: Any, query: int, rows: Any) -> None:
        """The scales of values, on every tile of probabilities."""
        g, size = self.geometry, self.problem.probability_bytes
        for key, k_extent in enumerate(g.k_extents):
            self._vector("scale_columns", count * g.visits[query][key], rows, k_extent, reads=size, writes=size)

    def _mask(self, count: Any, query: int, rows: Any) -> None:
        g, p = self.geometry, self.problem
        for key, k_extent in enumerate(g.k_extents):
            times = count * g.edges[query][key] * self.passes
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
        if self.structure.in_strips:
            self._strips(count, query, rows)
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

    def _strips(self, count: Any, query: int, rows: Any) -> None:
        """Maximum, exponentials and sum of the strips of a kind of query tiles."""
        g, score = self.geometry, self.problem.score_bytes
        width, tiles = self.columns.key * self.columns.rescaled_every, g.q_counts[query] * count
        kinds: list[tuple[Any, Any, Any]]
        if g.constant_width is None:
            # They differ in length under a mask: their total is exact, as it is of row strips.
            kinds = [(count, count * g.strips[query], g.strip_keys[query])]
        else:
            full, left = g.constant_width // width, g.constant_width % width
            kinds = [(tiles * full, tiles * full, width), (tiles * (left > 0), tiles * (left > 0), left)]
        for times, strips, keys in kinds:
            self._strip("row_max_online", times, strips, rows, keys, reads=score, row_reads=score, row_writes=2 * score)
            sums = not self.structure.sums_in_attend
            self._strip(
                "exp_sum_online" if sums else "exp",
                times,
                strips,
                rows,
                keys,
                reads=score,
                writes=self.problem.probability_bytes,
                row_reads=(3 if sums else 1) * score,
                row_writes=sums * score,
                converts=self.problem.converts_probabilities,
            )

    def _rescale(self, count: Any, query: int, rows: Any) -> None:
        """Rescaling of outputs at every tile or strip but the first of its rows, and adding products to them."""
        p, g, s = self.problem, self.geometry, self.structure
        acc, visits = p.accumulator_bytes, count * g.strips[query]
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
        self.busy = self.busy + cycles.busy * times
        skew = (cycles.latency - cycles.busy) * times
        self.skew = self.skew + skew
        if kind == "tile_max":
            self.awaited_skew = self.awaited_skew + skew
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
            tiles, extent = tiles_along(p.queries, self.columns.query * s.interleave)[query]
            acc, apart = p.accumulator_bytes, s.sums_in_attend
            times = count * tiles
            cycles = self._vector(
                "cast" if not late else "divide_by_last" if apart else "divide",
                times,
                heads * extent,
                p.d_v,
                reads=acc,
                writes=p.output_bytes,
                row_reads=(acc if apart else p.score_bytes) if late else 0,
                converts=p.converts_output,
                aside=True,
            )
            self.finish = self.finish + cycles
            self.last_finish.add(cycles / larger(times, 1), self.is_last(query) * (times > 0))

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
        if not occurs(times):
            return 0
        unit, work = self.accelerator.vector, value_work(kind, 2) if kind == "add" else VECTOR_WORK[kind]
        if converts and "cast" not in work.per_element:
            work = VectorWork((*work.per_element, "cast"), work.per_row)
        elements = rows * width
        if rounded:
            cycles = vector_cycles(unit, work, elements, rows) * times
        else:
            of_rows = vector_cycles(unit, replace(work, per_element=()), 0, rows) * (times if tiles is None else tiles)
            price = sum(getattr(unit.prices, name) for name in work.per_element)
            cycles = ceil_divide(elements * times, max(unit.lanes, 1)) * price + of_rows
        if aside:
            self.aside = self.aside + cycles
        else:
            self.between = self.between + cycles
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
