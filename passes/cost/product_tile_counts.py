"""Array cycles and traffic of logit and attend, added up over the kinds of tiles of a column of mappings."""

from __future__ import annotations

from typing import Any, Literal

from flatc.passes.cost.arrays import larger, occurs
from flatc.passes.cost.primitive_costs import (
    ArrayCycles,
    MatmulTile,
    Work,
    array_cycles,
    chained_traffic,
    operand_traffic,
)
from flatc.passes.cost.tile_counts import Counts, LeastOf, TileKinds, tiles_along


class ProductTileCounts(TileKinds):
    """Adds up the products of one kind; `counts` gives the sums (see `Counts`)."""

    def counts(self, name: Literal["logit", "attend"]) -> Counts:
        """What logit or attend adds up to: nothing, where the kernel has none."""
        self.work = Work()
        self.busy = self.skew = self.awaited_skew = self.columns.batch * 0
        self.largest: Any = self.columns.batch * 0
        self.rescaling: Any = 0
        self.tile_cycles: list[ArrayCycles] = []
        self.end, self.waves = LeastOf(), LeastOf()
        if self.problem.has(name):
            self._add_product(name)
        ends = {name: self.end.number, **({"waves": self.waves.number} if name == "attend" else {})}
        return Counts(
            self.work,
            product={name: self.busy},
            skew={name: self.skew},
            awaited_skew={name: self.awaited_skew},
            largest={name: self.largest},
            rescaling=self.rescaling,
            ends=ends if self.whole_rows else {},
            tile_cycles=tuple(self.tile_cycles),
        )

    def _add_product(self, name: str) -> None:
        """Array cycles and traffic of logit or attend."""
        p, g = self.problem, self.geometry
        for count, batch, group in self.head_kinds():
            for query, q_extent in enumerate(g.q_extents):
                m = group * q_extent
                if name == "logit" and self.product_rows:
                    for times, keys, depth in self._logit_tiles(query):
                        self._product("logit", MatmulTile(batch, m, keys, depth), count * times, count * 0)
                    continue
                made: dict[int, ArrayCycles] = {}
                for key, k_extent in enumerate(g.k_extents):
                    times = count * g.visits[query][key]
                    if not occurs(times):
                        continue
                    waits = count * self._strips_ending_in(query, key) if self.has_strips else times
                    if self.product_rows:
                        waits = times * 0
                    if name == "logit":
                        tile = MatmulTile(batch, m, k_extent, p.d_qk)
                        made[key] = self._product("logit", tile, times * self.passes, waits)
                    else:
                        width = p.d_v + self.structure.sums_in_attend
                        made[key] = cycles = self._product(
                            "attend", MatmulTile(batch, m, width, k_extent), times, waits
                        )
                        if self.structure.chains_attends:
                            # Only the last tile of a row is ragged, and nobody rescales behind it.
                            later = g.strips[query] - g.nonempty[query] if key == 0 else 0
                            self.rescaling = self.rescaling + (cycles.latency - cycles.busy) * count * later
                if self.whole_rows:
                    self._add_end(name, query, count, made)

    def _add_end(self, name: str, query: int, count: Any, made: dict[int, ArrayCycles]) -> None:
        """The logits of the first query tile, or the attends of the last, which may be these; key tiles by kind."""
        g = self.geometry
        tiles, is_end = (g.first, 1 - query) if name == "logit" else (g.last, self.is_last(query))
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
        g = self.geometry
        in_ragged = g.visits[query][1]
        strips = g.nonempty[query] if self.structure.algorithm == "rows" else g.strips[query]
        return in_ragged if key else strips - in_ragged

    def _logit_tiles(self, query: int) -> list[tuple[Any, Any, int]]:
        """(how many, keys, depth) of the blocks that fill the rows of all query tiles of a kind."""
        p, g, s = self.problem, self.geometry, self.structure
        keys = list(zip(g.visits[query], g.k_extents, strict=True))
        if s.k_level == "query":
            keys = [(g.q_counts[query], self.columns.key * 0 + p.keys)]
        return [
            (times * depths, extent, depth)
            for times, extent in keys
            for depths, depth in tiles_along(p.d_qk, s.d_qk or p.d_qk)
            if depths and occurs(times)
        ]

    def _product(self, name: str, tile: MatmulTile, times: Any, waits: Any) -> ArrayCycles:
        """Adds `times` products of one kind, `waits` of which somebody waits for; gives the cycles of one."""
        p, c, array = self.problem, self.columns, self.accelerator.array
        stationarity: str = getattr(self.structure, f"{name}_stationarity")
        fold = (getattr(c, f"{name}_fold_rows"), getattr(c, f"{name}_fold_columns"))
        cycles = array_cycles(array, stationarity, fold, tile)
        self.tile_cycles.append(ArrayCycles(cycles.busy * (times > 0), cycles.latency * (times > 0)))
        self.busy = self.busy + cycles.busy * times
        self.largest = larger(self.largest, cycles.latency * (times > 0))
        skew = cycles.latency - cycles.busy
        self.skew = self.skew + skew * times
        self.awaited_skew = self.awaited_skew + skew * waits
        attend, held = name == "attend", self.structure.held
        sums = attend and self.structure.add == "array" and not self.product_rows
        accumulate = 1 - p.sums_at_once(c.key) if sums else self.product_rows
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
        return cycles
