"""Attention as a recurrence: how its nest goes, tile by tile, with alike ones in a row together.

    walk(problem, accelerator, mapping)        # Walked(a lower bound of the latency, close to it); None if not covered

`attention_steps` says what the steps are and what waits for what, `attention_work` what is done in each trip. Here is
the nest: tiles of heads, query tiles, key tiles, as rounds of which `recurrence` takes few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd, prod

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.attention_prices import AttentionPrices
from flatc.passes.cost.attention_steps import attention_pipeline
from flatc.passes.cost.attention_work import AttentionWork, Heads
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.query_tiles import (
    MOST_QUERY_TILES,
    GrowingTiles,
    QueryTiles,
    TilesInOrder,
    query_tiles,
    strips_of,
)
from flatc.passes.cost.recurrence import Recurrence, Rounds, Work
from flatc.passes.cost.trip_states import TripState
from flatc.passes.cost.trip_steps import FIRST, HEAD, HEADS, KEY, QUERY, STRIP, Pipeline
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
) -> Walked | None:
    """A walk through a kernel; None where its nest is not covered.

    The fewer kinds of query tiles are told apart, the sooner it is done, and the farther from the simulation it may be.
    Not covered are interleaved query tiles, rows without a softmax, and masks that leave rows without a key.
    """
    softmax = mapping.softmax
    by_rows = softmax.algorithm == "rows"
    if mapping.interleave > 1 or (by_rows and not problem.has("softmax")):
        return None
    if not every_row_sees_keys(problem) or "query" in (mapping.keep.k_level, mapping.keep.v_level):
        return None
    prices, pipeline = AttentionPrices(problem, accelerator, mapping), attention_pipeline(problem, accelerator, mapping)
    tiles = query_tiles(problem, mapping.tiles.query, mapping.tiles.key, most_query_tiles)
    walker = _Walk(problem, mapping, pipeline, prices, tiles)
    return Walked(walker.cycles(), walker.recurrence.evenly and not tiles.merged)


_Body = Callable[[int], None]
"""Works on a tile of so many."""

_Moment = tuple[Heads, int, TripState[Work]]
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
        self.problem, self.mapping, self.ticks_per_cycle = problem, mapping, prices.ticks_per_cycle
        self.by_rows, self.strip_tiles = (
            mapping.softmax.algorithm in ("rows", "streamed"),
            mapping.softmax.rescaled_every,
        )
        self.steps, self.recurrence = pipeline.steps, Recurrence(pipeline)
        # Where query tiles are taken to have less key tiles than they do, strips begin elsewhere: masks are left out.
        edges = self.strip_tiles == 1 or not tiles.merged
        self.work = AttentionWork(problem, mapping, pipeline, prices, edges=edges)
        self._begins = True
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
        return self.recurrence.finish() / self.ticks_per_cycle

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

    def _queries(self, heads: Heads) -> None:
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

    def _alike(self, heads: Heads, tiles: QueryTiles) -> None:
        body = (self._row if self.by_rows else self._strips if self.strip_tiles > 1 else self._stream)(heads, tiles)
        if tiles.count == 1:
            body()
        else:
            self.recurrence.repeat(tiles.count, body, QUERY, self._trips_of(tiles))

    def _growing(self, heads: Heads, tiles: GrowingTiles) -> None:
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
        self, heads: Heads, tiles: GrowingTiles, at: tuple[int, int], moves: tuple[int, Sequence[int]]
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

    def _in_flight(self, heads: Heads, tiles: GrowingTiles, index: int) -> list[Work]:
        """The trips under way behind the kind before `index`, where they are whole rows; else they are alike."""
        found: list[Work] = []
        while self.by_rows and len(found) <= self.recurrence.pipeline.deepest:
            index -= 1
            kind = tiles[index]
            found += [self.work.with_loops((heads, kind.extent), kind.parts)] * kind.count
        return found

    def _trips_of(self, tiles: QueryTiles) -> int:
        return 1 if self.by_rows else ceil_divide(tiles.trips, self.strip_tiles)

    def _next_query(self) -> int:
        """The kind of the first trip of a query tile."""
        self.recurrence.enter(QUERY)
        begins, self._begins = self._begins, False
        return HEAD if begins else 0

    def _stream(self, heads: Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trips of a query tile, one for each key tile."""
        parts = self.work.key_tiles((heads, tiles.extent), tiles.parts)
        return lambda: self.recurrence.stream(parts, self._next_query() | FIRST, KEY)

    def _strips(self, heads: Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trips of a query tile, one for each strip of key tiles."""
        rows = heads, tiles.extent
        cut = strips_of(tiles.parts, self.strip_tiles)
        strips = [Rounds(count, self.work.with_loops(rows, parts)) for count, parts in cut]
        return lambda: self.recurrence.stream(strips, self._next_query() | FIRST, STRIP)

    def _row(self, heads: Heads, tiles: QueryTiles) -> Callable[[], None]:
        """The trip of a query tile whose rows stay on chip."""
        work = self.work.with_loops((heads, tiles.extent), tiles.parts)
        return lambda: self.recurrence.trip(work, self._next_query())


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
