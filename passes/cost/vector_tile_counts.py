"""Vector work around the products, added up over the kinds of tiles of a column of mappings.

What PEs do of the softmax is counted here too: it is the same work on another unit.
"""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.arrays import larger, occurs, smaller
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    KindPrice,
    ScoreTile,
    ceil_divide,
    kind_prices,
    pe_cycles,
)
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.cost.tile_counts import HeadKind, LeastOf, Tally, TileKinds, tiles_along

Visited = list[tuple[Any, Any]]
"""How often each width of key tiles is visited: (times, keys), of those that are."""


class VectorTileCounts:
    """Adds vector cycles, counts and traffic of everything around the products to a tally (see `Counts`)."""

    def __init__(self, tiles: TileKinds, tally: Tally):
        self.tiles, self.tally = tiles, tally
        self.problem, self.structure = tiles.problem, tiles.structure
        self.columns, self.geometry = tiles.columns, tiles.geometry
        self.prices = kind_prices(tiles.accelerator.vector)
        zero = tiles.columns.batch * 0
        self.last_finish = LeastOf()
        self.busy = self.skew = self.awaited_skew = zero
        # A kernel without any of these has a column of none of them.
        tally.energy_pj = zero * 0.0
        tally.between = tally.aside = tally.finish = tally.elements = zero
        tally.registers = tally.registers + zero

    def add(self) -> None:
        """Adds what the vector unit does, and PEs of the softmax."""
        p, g, tally = self.problem, self.geometry, self.tally
        for head in self.tiles.heads:
            for query, q_extent in enumerate(g.q_extents):
                if occurs(g.q_counts[query]):
                    self._add_scores(head, query, q_extent)
                if p.has("attend"):
                    self._outputs(head, query)
        if p.operands:
            scores = ScoreCosts(p, self.structure.algorithm, self.structure.k_level, self.columns)
            tally.reads = tally.reads + scores.buffer_read_bytes(g)
        if self.structure.held:
            tally.product["softmax"], tally.skew["softmax"] = self.busy, self.skew
            tally.awaited_skew["softmax"] = self.awaited_skew
        tally.largest_row = self._largest_row()
        tally.ends["finish"] = self.last_finish.number

    def _largest_row(self) -> Any:
        """The share of all products, loads and vector work of a tile of query heads that one query tile has, at most.

        It has so many of all visits, and so many of all keys, rounded up to what the vector unit works on at a time.
        Where a ragged key tile is among them, some wait for more waves in the array than others: no share is known.
        """
        p, g, c = self.problem, self.geometry, self.columns
        if p.mask is None:
            return 1 / larger(p.queries // c.query, 1)
        rows = c.batch * c.kv_head * c.group * c.query
        keys = (g.width + self.tiles.accelerator.vector.lanes / rows) / larger(g.strip_keys[0], 1)
        visits = g.most_visits / larger(g.visits[0][0] + g.visits[0][1], 1)
        return smaller(larger(larger(keys, visits), p.keys % c.key > 0), 1)

    def _add_scores(self, head: HeadKind, query: int, q_extent: Any) -> None:
        """The work on the scores of one kind of query tiles."""
        p, g = self.problem, self.geometry
        count, batch, group = head
        rows = batch * group * q_extent
        visited = self._visited(count, g.visits[query])
        self._score_ops(count, query, rows, visited)
        if p.mask is not None:
            self._mask(self._visited(count * self.tiles.passes, g.edges[query]), rows)
        if p.has("softmax"):
            self._softmax(count, query, batch, group * q_extent, visited)
        if p.value_scale is not None:
            size = p.probability_bytes  # the scales of values, on every tile of probabilities
            for times, keys in visited:
                self._vector("scale_columns", times, rows, keys, reads=size, writes=size)

    def _visited(self, count: Any, visits: tuple[Any, Any]) -> Visited:
        """What `count` tiles of heads visit, all together."""
        found = zip(visits, self.geometry.k_extents, strict=True)
        return [(count * times, keys) for times, keys in found if occurs(times)]

    def _score_ops(self, count: Any, query: int, rows: Any, visited: Visited) -> None:
        """The steps that scores take, on every tile that is visited, and the sink, on every row."""
        p, score = self.problem, self.problem.score_bytes
        for step in p.score_ops:
            reads = score + sum(operand.element_bytes for operand in step.operands if operand.buckets)
            for times, keys in visited:
                self._vector(step.kind, times * self.tiles.passes, rows, keys, reads=reads, writes=score)
        if p.sink is not None:
            times = count * self.geometry.q_counts[query]
            self._vector("sink", times, rows, 1, row_reads=score, row_writes=2 * score, aside=True)

    def _mask(self, masked: Visited, rows: Any) -> None:
        """Tiles with an edge of the mask on them."""
        held, score = self.structure.held, self.problem.score_bytes
        size, registers = (0, 2 * score) if held else (score, 0)
        for times, keys in masked:
            self._vector("mask", times, rows, keys, reads=size, writes=size, registers=registers, aside=True)

    def _softmax(self, count: Any, query: int, batch: Any, m: Any, visited: Visited) -> None:
        """The softmax of `batch` x `m` rows."""
        s, rows = self.structure, batch * m
        if s.algorithm == "rows":
            self._softmax_rows(count, query, rows)
            return
        if s.held:
            for times, keys in visited:
                self._held_softmax(times, ScoreTile(batch, m, keys))
        elif s.in_strips:
            self._strips(count, query, rows)
        else:
            for times, keys in visited:
                self._softmax_tile(times, rows, keys)
        if s.algorithm == "online":
            self._rescale(count, query, rows)

    def _softmax_tile(self, times: Any, rows: Any, keys: Any) -> None:
        """Maximum, exponentials and sum of tiles of scores, one by one; of a streamed softmax the probabilities too."""
        p, score = self.problem, self.problem.score_bytes
        streamed = self.structure.algorithm == "streamed"
        self._vector("row_max_online", times, rows, keys, reads=score, row_reads=score, row_writes=2 * score)
        if self.structure.sums_in_attend:
            self._exp("exp", times, rows, keys, row_reads=1, row_writes=0, final=True)
        else:
            self._exp("exp_sum_online", times, rows, keys, row_reads=3, row_writes=1, final=not streamed)
        if streamed:
            self._exp("exp", times, rows, keys, row_reads=1, row_writes=0, final=False)
            out, converts = p.probability_bytes, p.converts_probabilities
            self._vector("divide", times, rows, keys, reads=score, writes=out, row_reads=score, converts=converts)

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
            self.tally.rescaling = self.tally.rescaling + cycles
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
        c = self.columns
        fold = (c.attend_fold_rows, c.attend_fold_columns)
        cycles = pe_cycles(self.tiles.accelerator.array, VECTOR_WORK[kind].per_element, fold, tile)
        self.busy = self.busy + cycles.busy * times
        skew = (cycles.latency - cycles.busy) * times
        self.skew = self.skew + skew
        if kind == "tile_max":
            self.awaited_skew = self.awaited_skew + skew
        price, of_rows = self.prices[kind, False], rows * times
        self._count(price, of_rows * tile.keys, of_rows, registers=registers, **bytes)

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
        """Adds an operation on `times` strips of rows x width; where they differ in length, there are `tiles` of them.

        Then `times` x width is their total length, and the last partly filled vector of each is not rounded up.
        """
        if self.geometry.constant_width is not None:
            self._vector(kind, times, rows, width, **bytes)
            return
        converts: bool = bytes.pop("converts", False)
        price, elements = self.prices[kind, converts], rows * width * times
        of_elements = ceil_divide(elements, max(price.lanes, 1)) * price.element_cycles
        self.tally.between = self.tally.between + of_elements + price.cycles(0, rows) * tiles
        self._count(price, elements, rows * tiles, **bytes)

    def _outputs(self, head: HeadKind, query: int) -> None:
        """Division or conversion of the finished outputs of a kind of query tiles, or of blocks of them."""
        p, s = self.problem, self.structure
        late = p.has("softmax") and s.divide == "late"
        if late or p.converts_output:
            count, batch, group = head
            tiles, extent = tiles_along(p.queries, self.columns.query * s.interleave)[query]
            acc, apart = p.accumulator_bytes, s.sums_in_attend
            times = count * tiles
            cycles = self._vector(
                "cast" if not late else "divide_by_last" if apart else "divide",
                times,
                batch * group * extent,
                p.d_v,
                reads=acc,
                writes=p.output_bytes,
                row_reads=(acc if apart else p.score_bytes) if late else 0,
                converts=p.converts_output,
                aside=True,
            )
            self.tally.finish = self.tally.finish + cycles
            self.last_finish.add(cycles / larger(times, 1), self.tiles.is_last(query) * (times > 0))

    def _vector(
        self,
        kind: str,
        times: Any,
        rows: Any,
        width: Any,
        *,
        reads: int = 0,
        writes: int = 0,
        row_reads: int = 0,
        row_writes: int = 0,
        registers: int = 0,
        converts: bool = False,
        aside: bool = False,
    ) -> Any:
        """Adds `times` operations over tiles of rows x width, with the bytes of `_count`. Gives the cycles of all."""
        if not occurs(times):
            return 0
        price, tally, elements = self.prices[kind, converts], self.tally, rows * width
        cycles = price.cycles(elements, rows) * times
        if aside:
            tally.aside = tally.aside + cycles
        else:
            tally.between = tally.between + cycles
        self._count(price, elements * times, rows * times, reads, writes, row_reads, row_writes, registers)
        return cycles

    def _count(
        self,
        price: KindPrice,
        elements: Any,
        rows: Any,
        reads: int = 0,
        writes: int = 0,
        row_reads: int = 0,
        row_writes: int = 0,
        registers: int = 0,
    ) -> None:
        """Adds what operations on so many elements and rows read, write and spend.

        The numbers are bytes of each element and of each row in the buffer, and of each element in registers.
        """
        tally = self.tally
        tally.energy_pj = tally.energy_pj + price.energy_pj(elements, rows)
        tally.elements = tally.elements + elements * price.element_operations
        if reads:
            tally.reads = tally.reads + elements * reads
        if row_reads:
            tally.reads = tally.reads + rows * row_reads
        if writes:
            tally.writes = tally.writes + elements * writes
        if row_writes:
            tally.writes = tally.writes + rows * row_writes
        if registers:
            tally.registers = tally.registers + elements * registers
