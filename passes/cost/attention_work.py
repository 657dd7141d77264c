"""What is done in each trip of an attention, and in each round of the loops inside: what its steps take there.

    work = AttentionWork(problem, mapping, pipeline, prices)
    work.key_tiles(((1, 1, 4), 64), parts)         # trips that are one tile of scores each
    work.with_loops(((1, 1, 4), 64), parts)        # a trip of whole rows, or of a strip of them: loops over key tiles

Whoever asks for the same tiles again is given the same object, which is how `recurrence` knows trips again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from flatc.dialects.mapping import Mapping
from flatc.passes.cost.attention_prices import AttentionPrices, Tile
from flatc.passes.cost.query_tiles import KeyTiles
from flatc.passes.cost.recurrence import Rounds, Work
from flatc.passes.cost.tick_prices import Times
from flatc.passes.cost.trip_steps import EDGE, Pipeline, Ticks
from flatc.passes.kernels.problem import AttentionProblem

Heads = tuple[int, int, int]
"""Sequences, kv heads and query heads of each in a tile."""

Rows = tuple[Heads, int]
"""A tile of heads and so many queries."""

_NO_TIME: Times = 0, 0


class AttentionWork:
    """The work of one mapping; `edges` says that masks are applied to the key tiles that their edge crosses."""

    def __init__(
        self,
        problem: AttentionProblem,
        mapping: Mapping,
        pipeline: Pipeline,
        prices: AttentionPrices,
        *,
        edges: bool = True,
    ):
        self.prices, self.steps = prices, pipeline.steps
        self._edge = EDGE if edges else 0
        self._loops = tuple(pipeline.loops)
        self._loops_with_masks = {step.loop for step in self.steps if step.loop and step.only & EDGE}
        self._changes_all = bool(problem.score_ops)
        numbered = list(enumerate(self.steps))
        self._folded = [(index, step.only) for index, step in numbered if step.folded]
        by_tiles = mapping.softmax.algorithm not in ("rows", "streamed") and mapping.softmax.rescaled_every == 1
        self._of_width = [i for i, step in numbered if not by_tiles and not step.loop and step.name in ("X", "Y")]
        self._of_keys = [
            i for i, step in numbered if (prices.depends_on_keys(step.name) if by_tiles else step.loop or step.folded)
        ]
        self._known_tiles: dict[tuple[Rows, int, bool], Work] = {}
        self._known_rows: dict[Rows, Ticks] = {}
        self._known_trips: dict[tuple[Rows, tuple[KeyTiles, ...]], Work] = {}

    def key_tiles(self, rows: Rows, parts: Sequence[KeyTiles]) -> tuple[Rounds, ...]:
        """Rounds of a loop, or trips where there are no loops."""
        return tuple([Rounds(part.trips, self._key_tile(rows, part.extent, masked=part.masked)) for part in parts])

    def _key_tile(self, rows: Rows, extent: int, *, masked: bool) -> Work:
        found = self._known_tiles.get((rows, extent, masked))
        if found is None:
            ticks = list(self._of_rows(rows))
            tile = Tile(*rows[0], rows[1], extent)
            for index in self._of_keys:
                ticks[index] = self.prices.of(self.steps[index].name, tile)
            found = self._known_tiles[rows, extent, masked] = Work(tuple(ticks), self._edge * masked)
        return found

    def with_loops(self, rows: Rows, parts: tuple[KeyTiles, ...]) -> Work:
        """A trip with loops over key tiles."""
        found = self._known_trips.get((rows, parts))
        if found is None:
            found = self._known_trips[rows, parts] = self._new_trip(rows, parts)
        return found

    def _new_trip(self, rows: Rows, parts: Sequence[KeyTiles]) -> Work:
        """Loops without a mask's step do not care which key tiles its edge crosses."""
        alike = self._without_edges(rows, parts)
        masked = self.key_tiles(rows, [part for part in parts if part.masked and self._edge])
        loops = dict.fromkeys(self._loops, alike)
        for loop in self._loops_with_masks:
            loops[loop] = self.key_tiles(rows, parts) if loop != "change" or self._changes_all else masked
        ticks = self._around_loops(rows, sum([part.trips * part.extent for part in parts]))
        for index, only in self._folded:
            ticks[index] = _together(masked if only else alike, index)
        return Work(tuple(ticks), EDGE if masked else 0, loops)

    def _without_edges(self, rows: Rows, parts: Sequence[KeyTiles]) -> tuple[Rounds, ...]:
        """Rounds as if no mask's edge crossed any key tile: those that are as wide as each other together.

        Only the last key tile is of another width, if any.
        """
        trips: dict[int, int] = {}
        for part in parts:
            trips[part.extent] = trips.get(part.extent, 0) + part.trips
        return tuple([Rounds(count, self._key_tile(rows, extent, masked=False)) for extent, count in trips.items()])

    def _around_loops(self, rows: Rows, width: int) -> list[Times]:
        """What the steps of a trip take that are not in its loops, where its scores are so wide."""
        found, (heads, queries) = list(self._of_rows(rows)), rows
        for index in self._of_width:
            found[index] = self.prices.of_softmax(self.steps[index].name, prod(heads) * queries, width)
        return found

    def _of_rows(self, rows: Rows) -> Ticks:
        """What the steps take that do not depend on keys."""
        found = self._known_rows.get(rows)
        if found is None:
            tile, others = Tile(*rows[0], rows[1], 1), {*self._of_keys, *self._of_width}
            found = self._known_rows[rows] = tuple(
                [
                    _NO_TIME if index in others else self.prices.of(step.name, tile)
                    for index, step in enumerate(self.steps)
                ]
            )
        return found


def _together(parts: Sequence[Rounds], index: int) -> Times:
    """What a step takes in rounds one after the other: until its resource is free, and until all is there."""
    free, there = 0, 0
    for part in parts:
        busy, latency = part.work.ticks[index]
        free += part.count * busy
        there = max(there, free - busy + latency)
    return free, there
