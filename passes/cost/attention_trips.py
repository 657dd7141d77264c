"""Attention as a recurrence: how its nest goes, tile by tile, with alike ones in a row together.

    walk(problem, accelerator, mapping)        # Walked(a lower bound of the latency, close to it); None if not covered

`attention_steps` says what the steps are and what waits for what, `attention_prices` what each takes on a tile. Here
is the nest: tiles of heads, query tiles, key tiles, as rounds of which `recurrence` takes few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd, prod

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.attention_prices import AttentionPrices, Tile
from flatc.passes.cost.attention_steps import attention_pipeline
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.query_tiles import (
    MOST_QUERY_TILES,
    GrowingTiles,
    KeyTiles,
    QueryTiles,
    TilesInOrder,
    query_tiles,
    strips_of,
)
from flatc.passes.cost.recurrence import Recurrence, Rounds, Work
from flatc.passes.cost.tick_prices import Times
from flatc.passes.cost.trip_states import TripState
from flatc.passes.cost.trip_steps import EDGE, FIRST, HEAD, HEADS, KEY, QUERY, STRIP, Pipeline, Ticks
from flatc.passes.cost.visited_keys import every_row_sees_keys
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class Walked:
    """Cycles that a kernel takes at the least; `evenly` if all that was passed over moves on by just that."""

    cycles: float
    evenly: bool


def trip_cycles(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> float | None:
    """Cycles that a kernel takes at the least; None where its nest is not covered (see `walk`)."""
    walked = walk(problem, accelerator, mapping)
    return None if walked is None else walked.cycles


def walk(
    problem: AttentionProblem,
    accelerator: Accelerator,
    mapping: Mapping,
    most_query_tiles: int = MOST_QUERY_TILES,
    *,
    grows: bool = True,
) -> Walked | None:
    """A walk through a kernel; None where its nest is not covered.

    The fewer kinds of query tiles are told apart, the sooner it is done, and the farther from the simulation it may be;
    so it may if those that grow evenly are not told apart (`grows`).
    Not covered are interleaved query tiles, rows without a softmax, and masks that leave rows without a key.
    """
    softmax = mapping.softmax
    by_rows = softmax.algorithm == "rows"
    if mapping.interleave > 1 or (by_rows and not problem.has("softmax")):
        return None
    if not every_row_sees_keys(problem) or "query" in (mapping.keep.k_level, mapping.keep.v_level):
        return None
    prices, pipeline = AttentionPrices(problem, accelerator, mapping), attention_pipeline(problem, accelerator, mapping)
    tiles = query_tiles(problem, mapping.tiles.query, mapping.tiles.key, most_query_tiles, grows=grows)
    walker = _Walk(problem, mapping, pipeline, prices, tiles)
    return Walked(walker.cycles(), walker.recurrence.evenly and not tiles.merged)


_Body = Callable[[int], None]
"""Works on a tile of so many."""

_Heads = tuple[int, int, int]
"""Sequences, kv heads and query heads of each in a tile."""

_Rows = tuple[_Heads, int]
"""A tile of heads and so many queries."""

_Moment = tuple[_Heads, int, TripState[Work]]
"""Heads, the place among the query tiles, and the state behind the last trip."""

WORTH_A_LOOK = 4
"""With more kinds of query tiles than these, it is worth remembering what followed a state."""


# --- The walk ---------------------------------------------------------------------------------------------


class _Walk:
    """Goes through the nest: tiles of heads, query tiles, key tiles; alike ones in a row as rounds."""

    def __init__(
        self,
        problem: AttentionProblem,
        mapping: Mapping,
        pipeline: Pipeline,
        prices: AttentionPrices,
        tiles: TilesInOrder,
    ):
        self.problem, self.mapping, self.prices = problem, mapping, prices
        self.by_rows, self.strip_tiles = (
            mapping.softmax.algorithm in ("rows", "streamed"),
            mapping.softmax.rescaled_every,
        )
        self.steps, self.recurrence = pipeline.steps, Recurrence(pipeline)
        self._loops = tuple(pipeline.loops)
        self._loops_with_masks = {step.loop for step in pipeline.steps if step.loop and step.only & EDGE}
        self._folded = [(index, step.only) for index, step in enumerate(pipeline.steps) if step.folded]
        self._begins = True
        # Where query tiles are taken to have less key tiles than they do, strips begin elsewhere: masks are left out.
        self._edge = 0 if self.strip_tiles > 1 and tiles.merged else EDGE
        self._inside: dict[tuple[_Rows, int, bool], Work] = {}
        self._known_of_rows: dict[_Rows, Ticks] = {}
        self._trips_known: dict[tuple[_Rows, tuple[KeyTiles, ...]], Work] = {}
        numbered, by_tiles = list(enumerate(self.steps)), not self.by_rows and self.strip_tiles == 1
        self._of_width = [i for i, step in numbered if not by_tiles and not step.loop and step.name in ("X", "Y")]
        self._of_keys = [
            i for i, step in numbered if (prices.depends_on_keys(step.name) if by_tiles else step.loop or step.folded)
        ]
        t = mapping.tiles
        self._comes_again = problem.batch > t.batch or problem.kv_heads > t.kv_head or problem.group > t.group
        """Whether there are several tiles of query heads."""
        self._followed: dict[_Moment, tuple[TripState[Work], int]] = {}
        self._tiles = tiles.parts
        least = (
            (tiles.count, 1 if isinstance(tiles, GrowingTiles) else self._trips_of(tiles)) for tiles in self._tiles
        )
        self._trips = sum(count * trips for count, trips in least)
        """So many trips at least the query tiles of a tile of query heads take."""

    def cycles(self) -> float:
        """From the first load to the last result."""
        if not self._tiles:
            return 0.0
        p, t = self.problem, self.mapping.tiles
        heads = ((p.batch, t.batch), (p.kv_heads, t.kv_head), (p.group, t.group))
        if not any(size % tile for size, tile in heads) and all(step.level != HEADS for step in self.steps):
            # Nothing is loaded for tiles of heads, and these are alike: their loops are one.
            count = prod(size // tile for size, tile in heads)
            self.recurrence.repeat(count, lambda: self._queries((t.batch, t.kv_head, t.group)), QUERY, self._trips)
        else:
            self._rounds(p.batch, t.batch, self._kv_heads, HEADS)
        return self.recurrence.finish() / self.prices.ticks_per_cycle

    def _kv_heads(self, batch: int) -> None:
        p, t = self.problem, self.mapping.tiles
        self._rounds(p.kv_heads, t.kv_head, lambda kv_head: self._heads(batch, kv_head), HEADS)

    def _rounds(self, size: int, tile: int, body: _Body, level: int) -> None:
        """All tiles along a dimension, the last of which may be ragged."""
        for count, extent in ((size // tile, tile), (1, size % tile)):
            if count and extent:
                self.recurrence.repeat(count, lambda extent=extent: body(extent), level, self._trips)

    def _heads(self, batch: int, kv_head: int) -> None:
        self.recurrence.enter(HEADS)
        self._begins = True
        p, t = self.problem, self.mapping.tiles
        self._rounds(p.group, t.group, lambda group: self._queries((batch, kv_head, group)), QUERY)

    def _queries(self, heads: _Heads) -> None:
        """All query tiles of a tile of heads.

        Where a state is met that was met before in the same place, what follows is what followed then.
        """
        met: list[tuple[_Moment, int]] = []
        for place, tiles in enumerate(self._tiles):
            if isinstance(tiles, GrowingTiles):
                self._growing(heads, tiles)
            else:
                self._alike(heads, tiles)
            if self._comes_again and len(self._tiles) > WORTH_A_LOOK:
                state, since = self.recurrence.moment()
                moment = heads, place, state
                known = self._followed.get(moment)
                if known is not None:
                    end, later = known
                    self.recurrence.go_to(end, since + later)
                    return
                met.append((moment, since))
        if met:
            end, now = self.recurrence.moment()
            self._followed |= {moment: (end, now - since) for moment, since in met}

    def _alike(self, heads: _Heads, tiles: QueryTiles) -> None:
        body = (self._row if self.by_rows else self._strips if self.strip_tiles > 1 else self._stream)(heads, tiles)
        if tiles.count == 1:
            body()
        else:
            self.recurrence.repeat(tiles.count, body, QUERY, self._trips_of(tiles))

    def _growing(self, heads: _Heads, tiles: GrowingTiles) -> None:
        """Query tiles that visit more and more key tiles.

        Their times are maxima of sums in which the number of key tiles is a factor, so they are convex in it: where
        all have moved on by the same more in each of three periods than in the one before, they move on by no less in
        the periods that follow; and if they do so in a later period as well, then in all between.
        """
        seen: list[tuple[int, ...]] = []
        index, shortest = 0, self._growth_period(tiles)
        patience = 0
        while index < tiles.count:
            kind = tiles[index]
            self._alike(heads, kind)
            index += 1
            seen.append(self.recurrence.all_times())
            if len(seen) < patience or not self._is_deep(kind):
                continue
            for period in (shortest, 2 * shortest):
                moves = _steady_growth(seen[::-period][:4])
                if moves is None or tiles.count - index < 2 * period:
                    continue
                passed = self._pass_over(heads, tiles, (index, period), moves)
                index += passed
                patience = 0 if passed else 2 * len(seen)
                if passed:
                    seen.clear()
                break

    def _pass_over(
        self, heads: _Heads, tiles: GrowingTiles, at: tuple[int, int], moves: tuple[int, Sequence[int]]
    ) -> int:
        """How many kinds from an index on move on in periods as expected; as if they were taken."""
        (index, period), before = at, self.recurrence.moment()
        times, left = self.recurrence.all_times(), (tiles.count - index) // period - 1
        while left:
            later = index + left * period
            self.recurrence.move_to(_grown(times, moves, left), self._in_flight(heads, tiles, later))
            for kind in range(later, later + period):
                self._alike(heads, tiles[kind])
            if self.recurrence.all_times() == _grown(times, moves, left + 1):
                return (left + 1) * period
            self.recurrence.go_to(*before)
            left //= 4
        return 0

    def _growth_period(self, tiles: GrowingTiles) -> int:
        """After so many kinds, whole strips of key tiles are added; two slots in turn may double it."""
        return len(tiles.first) * (self.strip_tiles // gcd(self.strip_tiles, tiles.growth))

    def _is_deep(self, tiles: QueryTiles) -> bool:
        """Whether nothing of the query tiles before is under way when one of these is over, but in whole rows."""
        return self.by_rows or self._trips_of(tiles) > self.recurrence.pipeline.deepest + 1

    def _in_flight(self, heads: _Heads, tiles: GrowingTiles, index: int) -> list[Work]:
        """The trips under way behind the kind before `index`, where they are whole rows; else they are alike."""
        found: list[Work] = []
        while self.by_rows and len(found) <= self.recurrence.pipeline.deepest:
            index -= 1
            kind = tiles[index]
            found += [self._with_loops((heads, kind.extent), kind.parts)] * kind.count
        return found

    def _trips_of(self, tiles: QueryTiles) -> int:
        return 1 if self.by_rows else ceil_divide(tiles.trips, self.strip_tiles)

    def _next_query(self) -> int:
        """The kind of the first trip of a query tile."""
        self.recurrence.enter(QUERY)
        begins, self._begins = self._begins, False
        return HEAD if begins else 0

    def _stream(self, heads: _Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trips of a query tile, one for each key tile."""
        parts = self._key_tiles((heads, tiles.extent), tiles.parts)
        return lambda: self.recurrence.stream(parts, self._next_query() | FIRST, KEY)

    def _strips(self, heads: _Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trips of a query tile, one for each strip of key tiles."""
        rows = heads, tiles.extent
        strips = [
            Rounds(count, self._with_loops(rows, parts)) for count, parts in strips_of(tiles.parts, self.strip_tiles)
        ]
        return lambda: self.recurrence.stream(strips, self._next_query() | FIRST, STRIP)

    def _row(self, heads: _Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trip of a query tile whose rows stay on chip."""
        work = self._with_loops((heads, tiles.extent), tiles.parts)
        return lambda: self.recurrence.trip(work, self._next_query())

    # --- What trips do --------------------------------------------------------------------------------------

    def _key_tiles(self, rows: _Rows, parts: Sequence[KeyTiles]) -> tuple[Rounds, ...]:
        """Rounds of a loop, or trips where there are no loops."""
        return tuple([Rounds(part.trips, self._key_tile(rows, part.extent, masked=part.masked)) for part in parts])

    def _key_tile(self, rows: _Rows, extent: int, *, masked: bool) -> Work:
        found = self._inside.get((rows, extent, masked))
        if found is None:
            ticks = list(self._of_rows(rows))
            tile = Tile(*rows[0], rows[1], extent)
            for index in self._of_keys:
                ticks[index] = self.prices.of(self.steps[index].name, tile)
            found = self._inside[rows, extent, masked] = Work(tuple(ticks), self._edge * masked)
        return found

    def _with_loops(self, rows: _Rows, parts: tuple[KeyTiles, ...]) -> Work:
        """A trip with loops over key tiles."""
        found = self._trips_known.get((rows, parts))
        if found is None:
            found = self._trips_known[rows, parts] = self._new_trip(rows, parts)
        return found

    def _new_trip(self, rows: _Rows, parts: Sequence[KeyTiles]) -> Work:
        """Loops without a mask's step do not care which key tiles its edge crosses."""
        alike = self._without_edges(rows, parts)
        masked = self._key_tiles(rows, [part for part in parts if part.masked and self._edge])
        loops = dict.fromkeys(self._loops, alike)
        for loop in self._loops_with_masks:
            loops[loop] = self._key_tiles(rows, parts) if loop != "change" or self.problem.score_ops else masked
        ticks = self._around_loops(rows, sum([part.trips * part.extent for part in parts]))
        for index, only in self._folded:
            ticks[index] = _together(masked if only else alike, index)
        return Work(tuple(ticks), EDGE if masked else 0, loops)

    def _without_edges(self, rows: _Rows, parts: Sequence[KeyTiles]) -> tuple[Rounds, ...]:
        """Rounds as if no mask's edge crossed any key tile: those that are as wide as each other together.

        Only the last key tile is of another width, if any.
        """
        trips: dict[int, int] = {}
        for part in parts:
            trips[part.extent] = trips.get(part.extent, 0) + part.trips
        return tuple([Rounds(count, self._key_tile(rows, extent, masked=False)) for extent, count in trips.items()])

    def _around_loops(self, rows: _Rows, width: int) -> list[Times]:
        """What the steps of a trip take that are not in its loops, where its scores are so wide."""
        found, (heads, queries) = list(self._of_rows(rows)), rows
        for index in self._of_width:
            found[index] = self.prices.of_softmax(self.steps[index].name, prod(heads) * queries, width)
        return found

    def _of_rows(self, rows: _Rows) -> Ticks:
        """What the steps take that do not depend on keys."""
        found = self._known_of_rows.get(rows)
        if found is None:
            tile, others = Tile(*rows[0], rows[1], 1), {*self._of_keys, *self._of_width}
            found = self._known_of_rows[rows] = tuple(
                [
                    _NO_TIME if index in others else self.prices.of(step.name, tile)
                    for index, step in enumerate(self.steps)
                ]
            )
        return found


_NO_TIME: Times = 0, 0


def _together(parts: Sequence[Rounds], index: int) -> Times:
    """What a step takes in rounds one after the other: until its resource is free, and until all is there."""
    free, there = 0, 0
    for part in parts:
        busy, latency = part.work.ticks[index]
        free += part.count * busy
        there = max(there, free - busy + latency)
    return free, there


def _steady_growth(times: Sequence[tuple[int, ...]]) -> tuple[int, Sequence[int]] | None:
    """(growth of the moves, last moves) of times now and one, two and three periods ago; None if they do not grow so.

    Each of the times that somebody may wait for moves on by `growth` more in each period than in the one before.
    """
    if len(times) < 4:
        return None
    (a, *_), (b, *_), (c, *_), (d, *_) = times
    if a - b - (b - c) != b - c - (c - d):  # Mostly the first resource tells.
        return None
    moves = [[a - b for a, b in zip(now, before, strict=True)] for now, before in pairwise(times)]
    growths = {(a - b, b - c) for a, b, c, now in zip(*moves, times[0], strict=True) if now}
    if len(growths) != 1:
        return None
    (growth, before), *_ = growths
    return (growth, moves[0]) if growth == before else None


def _grown(times: Sequence[int], moves: tuple[int, Sequence[int]], periods: int) -> tuple[int, ...]:
    """Times so many periods later."""
    growth, last = moves
    more = growth * periods * (periods + 1) // 2
    return tuple([time and time + move * periods + more for time, move in zip(times, last, strict=True)])
