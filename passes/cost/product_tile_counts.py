"""Array cycles and traffic of logit and attend, added up over the kinds of tiles of a column of mappings."""

from __future__ import annotations

from typing import Any, Literal

from flatc.passes.cost.arrays import larger, occurs
from flatc.passes.cost.primitive_costs import (
    ArrayCycles,
    MatmulTile,
    array_cycles,
    chained_traffic,
    operand_traffic,
)
from flatc.passes.cost.tile_counts import HeadKind, LeastOf, Tally, TileKinds, kinds_along


class ProductTileCounts:
    """Adds the products of one kind, logit or attend, to a tally (see `Counts`)."""

    def __init__(self, tiles: TileKinds, tally: Tally, name: Literal["logit", "attend"]):
        self.tiles, self.tally = tiles, tally
        self.name: Literal["logit", "attend"] = name
        p, c, s = tiles.problem, tiles.columns, tiles.structure
        self.array = tiles.accelerator.array
        if name == "attend":
            self.stationarity, self.fold = s.attend_stationarity, (c.attend_fold_rows, c.attend_fold_columns)
            self.bytes = p.probability_bytes, p.v_bytes, p.accumulator_bytes
        else:
            self.stationarity, self.fold = s.logit_stationarity, (c.logit_fold_rows, c.logit_fold_columns)
            self.bytes = p.q_bytes, p.k_bytes, p.score_bytes
        attend = name == "attend"
        sums = attend and s.add == "array" and not tiles.product_rows
        self.accumulate = 1 - p.sums_at_once(c.key) if sums else tiles.product_rows
        self.chained = attend and p.has("logit") and not p.converts_probabilities and not s.held
        zero = c.batch * 0
        self.busy = self.skew = self.awaited_skew = self.largest = zero
        self.end, self.waves = LeastOf(), LeastOf()

    def add(self) -> None:
        """Adds all of them: nothing, where the kernel has none."""
        name, tally, g = self.name, self.tally, self.tiles.geometry
        if self.tiles.problem.has(name):
            queries = [(query, extent) for query, extent in enumerate(g.q_extents) if occurs(g.q_counts[query])]
            for head in self.tiles.heads:
                for query, extent in queries:
                    if name == "logit" and self.tiles.product_rows:
                        self._add_rows(head, query, extent)
                    else:
                        self._add_tiles(head, query, extent)
        tally.product[name] = self.busy
        tally.skew[name] = self.skew
        tally.awaited_skew[name] = self.awaited_skew
        tally.largest[name] = self.largest
        if self.tiles.whole_rows:
            tally.ends[name] = self.end.number
            if name == "attend":
                tally.ends["waves"] = self.waves.number

    def _add_tiles(self, head: HeadKind, query: int, extent: Any) -> None:
        """The products of one kind of query tiles, over the keys that they visit."""
        tiles = self.tiles
        p, g = tiles.problem, tiles.geometry
        count, batch, group = head
        m, width = group * extent, p.d_v + tiles.structure.sums_in_attend
        made: dict[int, ArrayCycles] = {}
        for key, k_extent in enumerate(g.k_extents):
            times = count * g.visits[query][key]
            if not occurs(times):
                continue
            waits = count * self._strips_ending_in(query, key) if tiles.has_strips else times
            if self.name == "logit":
                made[key] = self._product(MatmulTile(batch, m, k_extent, p.d_qk), times * tiles.passes, waits)
                continue
            waits = times * 0 if tiles.product_rows else waits
            made[key] = cycles = self._product(MatmulTile(batch, m, width, k_extent), times, waits)
            if tiles.structure.chains_attends and key == 0:
                # Only the last tile of a row is ragged, and nobody rescales behind it.
                later = g.strips[query] - g.nonempty[query]
                self.tally.rescaling = self.tally.rescaling + (cycles.latency - cycles.busy) * count * later
        if tiles.whole_rows:
            self._add_end(query, count, made)

    def _add_end(self, query: int, count: Any, made: dict[int, ArrayCycles]) -> None:
        """The logits of the first query tile, or the attends of the last, which may be these; key tiles by kind."""
        g = self.tiles.geometry
        tiles, is_end = (g.first, 1 - query) if self.name == "logit" else (g.last, self.tiles.is_last(query))
        busy = sum(tiles[key] * cycles.busy for key, cycles in made.items())
        waves = {key: cycles.latency - cycles.busy for key, cycles in made.items()}
        ends_in_ragged = tiles[1] > 0
        skew = waves.get(0, 0) * (1 - ends_in_ragged) + waves.get(1, 0) * ends_in_ragged
        self.end.add(busy + skew, is_end * (count > 0))
        self.waves.add(skew, is_end * (count > 0))

    def _strips_ending_in(self, query: int, key: int) -> Any:
        """How many strips end in a full or in a ragged tile: they wait for the last of their products only.

        A ragged tile is the last one of its row, and nothing but a full or a ragged tile ends a strip.
        """
        g = self.tiles.geometry
        in_ragged = g.visits[query][1]
        strips = g.nonempty[query] if self.tiles.structure.algorithm == "rows" else g.strips[query]
        return in_ragged if key else strips - in_ragged

    def _add_rows(self, head: HeadKind, query: int, extent: Any) -> None:
        """The logits of one kind of query tiles whose rows of scores stay on chip without a softmax: blocks of them."""
        tiles = self.tiles
        p, g, s = tiles.problem, tiles.geometry, tiles.structure
        count, batch, group = head
        keys = list(zip(g.visits[query], g.k_extents, strict=True))
        if s.k_level == "query":
            keys = [(g.q_counts[query], tiles.columns.key * 0 + p.keys)]
        for times, k_extent in keys:
            if not occurs(times):
                continue
            for depths, depth in kinds_along(p.d_qk, s.d_qk or p.d_qk):
                self._product(MatmulTile(batch, group * extent, k_extent, depth), count * (times * depths), count * 0)

    def _product(self, tile: MatmulTile, times: Any, waits: Any) -> ArrayCycles:
        """Adds `times` products of one kind, `waits` of which somebody waits for; gives the cycles of one."""
        cycles = array_cycles(self.array, self.stationarity, self.fold, tile)
        there = times > 0
        latency = cycles.latency * there
        self.tally.tile_cycles.append(ArrayCycles(cycles.busy * there, latency))
        self.busy = self.busy + cycles.busy * times
        self.largest = larger(self.largest, latency)
        skew = cycles.latency - cycles.busy
        self.skew = self.skew + skew * times
        self.awaited_skew = self.awaited_skew + skew * waits
        self._moved(tile, times)
        return cycles

    def _moved(self, tile: MatmulTile, times: Any) -> None:
        """Adds the work of `times` products."""
        tally = self.tally
        traffic = operand_traffic(self.array, self.stationarity, tile, accumulate=self.accumulate)
        a, b, out = self.bytes
        first, read, written = traffic.a_reads * a, traffic.c_reads * out, traffic.c_writes * out
        if self.tiles.structure.held:  # the scores, which attend reads and logit writes
            registers = first if self.name == "attend" else read + written
            tally.registers = tally.registers + registers * times
            first, read, written = (0, read, written) if self.name == "attend" else (first, 0, 0)
        if self.chained:
            copied = chained_traffic(self.array, tile) * a
            read, written = read + copied, written + copied
        tally.macs = tally.macs + tile.batch * tile.m * tile.n * tile.k * times
        tally.reads = tally.reads + (first + traffic.b_reads * b + read) * times
        tally.writes = tally.writes + written * times
