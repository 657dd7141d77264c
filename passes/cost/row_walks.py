"""Walks through kernels of whole rows whose keys and values are on chip, for many mappings at once.

    if is_covered(problem, structure):
        cycles, = row_walks(problem, accelerator, [(structure, columns)])       # a bound of the latency of each mapping

`attention_trips` walks through one mapping and is nearly exact, but slow where thousands are to be told apart. Mappings
of a family with the same query tiles and tiles of heads issue the same operations in the same order: they differ in how
long these take. So one walk does for all of them, in which each time is an array.

Where keys and values are on chip, a trip is a query tile, whose logits follow each other on the array, and so do its
attends. All query tiles are taken; of the tiles of heads the first three and the last, and those between move on by no
less than the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.attention_prices import AttentionPrices, Tile
from flatc.passes.cost.attention_steps import attention_pipeline
from flatc.passes.cost.key_geometry import query_tiles_at, visits_of
from flatc.passes.cost.mapping_columns import Columns, Structure, mapping_at
from flatc.passes.cost.primitive_costs import ArrayCycles, MatmulTile, array_cycles, ceil_divide
from flatc.passes.cost.trip_steps import EDGE, HEAD, HEADS, KEY, NOTHING, QUERY, Issue, Pipeline
from flatc.passes.cost.visited_keys import every_row_sees_keys, sight_of
from flatc.passes.kernels.problem import AttentionProblem

MOST_HEAD_TILES = 4
"""So many tiles of heads are walked through at most."""

_NEVER = 1 << 40


def is_covered(problem: AttentionProblem, structure: Structure) -> bool:
    """Whether mappings of a structure can be walked through at once."""
    p, s = problem, structure
    changed = p.operands or p.score_ops or p.sink is not None or p.value_scale is not None or p.block is not None
    whole = all(p.has(name) for name in ("logit", "softmax", "attend"))
    on_chip = s.k_level == s.v_level == "kv_head"
    return s.algorithm == "rows" and whole and on_chip and not changed and s.interleave == 1 and every_row_sees_keys(p)


def trips_to_walk(problem: AttentionProblem, columns: Columns) -> Ints:
    """How many trips the walk of each mapping takes; more than any walk where a tile of heads is ragged."""
    import numpy as np

    p, c = problem, columns
    heads = (p.batch // c.batch) * (p.kv_heads // c.kv_head)
    rows = (p.group // c.group) * ceil_divide(p.queries, c.query)
    ragged = (p.batch % c.batch > 0) | (p.kv_heads % c.kv_head > 0) | (p.group % c.group > 0)
    return np.minimum(heads, MOST_HEAD_TILES) * rows + ragged * _NEVER


def row_walks(
    problem: AttentionProblem, accelerator: Accelerator, groups: Sequence[tuple[Structure, Columns]]
) -> list[Ints]:
    """Cycles that mappings take at the least, an array for each group of them.

    All of them agree on the tiles of heads and of queries, on slots and stages, and on everything in their structures
    but stationarities. Tiles of heads divide the heads.
    """
    import numpy as np

    structure, first = groups[0]
    mapping = mapping_at(problem, structure, first, 0)
    keys = np.concatenate([columns.key for _, columns in groups])
    products = {
        (step, query): _Products(problem, accelerator, groups, name, query)
        for step, name in (("L", "logit"), ("A", "attend"))
        for query in {mapping.tiles.query, problem.queries % mapping.tiles.query} - {0}
    }
    walk = _Walk(problem, accelerator, mapping, keys, products)
    ends = np.cumsum([columns.size for _, columns in groups])[:-1]
    return np.split(walk.cycles(), ends)


class _Products:
    """Cycles of a product of so many query rows on (full, ragged) key tiles, for all mappings of some groups."""

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        groups: Sequence[tuple[Structure, Columns]],
        name: str,
        query: int,
    ):
        self.problem, self.accelerator = problem, accelerator
        self.name, self.query = name, query
        has_ragged = any((problem.keys % columns.key).any() for _, columns in groups)
        self.kinds = self._cycles(groups), self._cycles(groups, ragged=True) if has_ragged else None

    def _cycles(self, groups: Sequence[tuple[Structure, Columns]], *, ragged: bool = False) -> ArrayCycles:
        import numpy as np

        p, name, array = self.problem, self.name, self.accelerator.array
        found: list[tuple[Any, ...]] = []
        for s, c in groups:
            keys = p.keys % c.key if ragged else c.key
            n, k = (keys, p.d_qk) if name == "logit" else (p.d_v + s.sums_in_attend, keys)
            fold = getattr(c, f"{name}_fold_rows"), getattr(c, f"{name}_fold_columns")
            tile = MatmulTile(c.batch * c.kv_head, c.group * self.query, n, k)
            cycles = array_cycles(array, getattr(s, f"{name}_stationarity"), fold, tile)
            found.append(np.broadcast_arrays(cycles.busy, cycles.latency, c.key))
        busy, latency, _ = (np.concatenate(column) for column in zip(*found, strict=True))
        return ArrayCycles(busy, latency)

    def of_rows(self, full: Ints, ragged: Ints) -> tuple[Ints, Ints]:
        """(busy, latency) of all key tiles of query tiles that visit so many, one product after the other."""
        import numpy as np

        whole, last = self.kinds
        if last is None:
            return full * whole.busy, full * whole.busy + (whole.latency - whole.busy) * (full > 0)
        of_whole, of_last = full * whole.busy, ragged * last.busy
        ends = np.maximum(
            (of_whole - whole.busy + whole.latency) * (full > 0),
            (of_whole + of_last - last.busy + last.latency) * (ragged > 0),
        )
        return of_whole + of_last, ends


Moment = list[Any]
"""Times of a pipeline (`trip_steps`), each an array of a time for each mapping. They are replaced, never changed."""


class _Walk:
    """Goes through all trips; see the module docstring."""

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        mapping: Mapping,
        keys: Ints,
        products: dict[tuple[str, int], _Products],
    ):
        import numpy as np

        self.problem, self.tiles = problem, mapping.tiles
        self.prices = AttentionPrices(problem, accelerator, mapping)
        self.pipeline: Pipeline = attention_pipeline(problem, accelerator, mapping)
        assert not self.pipeline.loops, "all that a trip does on key tiles is one step for each resource"
        self.times: Moment = [np.zeros(len(keys), dtype=np.int64)] * self.pipeline.size
        self.numbers = [0] * (KEY + 1)
        stages = self.pipeline.deepest + 1
        self.kinds, self.rows = (NOTHING,) * stages, (0,) * stages
        self.places = (tuple(self.numbers),) * stages
        self.ticks = self._ticks(keys, products)
        """For each query tile, and each step, how long it takes all mappings: (busy, latency)."""

    def _ticks(self, keys: Ints, products: dict[tuple[str, int], _Products]) -> list[list[tuple[Any, Any]]]:
        """As the prices of one mapping have it, with arrays for what depends on key tiles."""
        p, t = self.problem, self.tiles
        question = sight_of(p)
        visits = visits_of(question, query_tiles_at(question, t.query), keys)
        whole = p.queries // t.query
        found: list[list[tuple[Any, Any]]] = []
        for rows, query in ((slice(0, whole), t.query), (slice(whole, None), p.queries % t.query)):
            if query:
                found += self._ticks_of(query, keys, [some[rows] for some in visits], products)
        return found

    def _ticks_of(
        self, query: int, keys: Ints, visits: Sequence[Ints], products: dict[tuple[str, int], _Products]
    ) -> list[list[tuple[Any, Any]]]:
        """Query tiles of so many rows, which visit so many (full, ragged) key tiles, so many of them masked."""
        p, t, prices = self.problem, self.tiles, self.prices
        tile = Tile(t.batch, t.kv_head, t.group, query, 1)
        full, ragged, *masked = visits
        strips = full * keys + ragged * (p.keys % keys)
        of_steps: list[Any] = []
        for step in self.pipeline.steps:
            times: Any
            if step.name in ("L", "A"):
                times = [time * prices.ticks_per_cycle for time in products[step.name, query].of_rows(full, ragged)]
            elif step.name in ("X", "Y"):
                times = prices.of_softmax(step.name, tile.rows, strips)
            elif step.name == "M":
                whole, last = (prices.on_vector("mask", tile.rows, extent)[0] for extent in (keys, p.keys % keys))
                times = [masked[0] * whole + masked[1] * last] * 2
            else:
                of_steps.append([prices.of(step.name, tile)] * len(full))
                continue
            of_steps.append(zip(*times, strict=True))
        return [list(of_row) for of_row in zip(*of_steps, strict=True)]

    def cycles(self) -> Any:
        """From the first load to the last result."""
        import numpy as np

        p, t = self.problem, self.tiles
        heads = (p.batch // t.batch) * (p.kv_heads // t.kv_head)
        taken = min(heads, MOST_HEAD_TILES)
        before: Moment = []
        for number in range(taken):
            if number == taken - 1 and heads > taken:
                self._move_on(before, heads - taken)
            before = self._state()
            self._heads()
        for _ in range(self.pipeline.deepest):
            self._trip(NOTHING, 0)
        results = len(self.pipeline.resources)
        return reduce(np.maximum, self.times[results : 2 * results]) / self.prices.ticks_per_cycle

    def _heads(self) -> None:
        """All query tiles of a tile of heads."""
        p, t = self.problem, self.tiles
        self._enter(HEADS)
        first = HEAD
        for _ in range(p.group // t.group):
            for row in range(len(self.ticks)):
                self._enter(QUERY)
                self._trip(first | EDGE, row)  # A mask that crosses no key tile takes no time.
                first = 0

    def _enter(self, level: int) -> None:
        """The next tile of a level: what later stages do with it is not done yet."""
        self.numbers[level] += 1
        place = self.numbers[level] & (self.pipeline.ring_size - 1)
        for ring in self.pipeline.later_rings[level]:
            self.times[ring + place] = self.times[ring + place] * 0

    def _trip(self, kind: int, row: int) -> None:
        """The trip that begins to work on a query tile, and goes on with those before it."""
        self.kinds, self.rows = (kind, *self.kinds[:-1]), (row, *self.rows[:-1])
        self.places = (tuple(self.numbers), *self.places[:-1])
        for stage, _, issues in self.pipeline.plan(self.kinds):
            self._issue(issues, self.places[stage], self.ticks[self.rows[stage]])

    def _issue(self, issues: Sequence[Issue], place: Sequence[int], ticks: Sequence[tuple[Any, Any]]) -> None:
        """Operations start when their resource is free and what they wait for is over."""
        import numpy as np

        times, mask, results = self.times, self.pipeline.ring_size - 1, len(self.pipeline.resources)
        for index, resource, waits, rings in issues:
            busy, latency = ticks[index]
            start = times[resource]
            for ring, level, back in waits:
                start = np.maximum(start, times[ring + ((place[level] - back) & mask)])
            times[resource] = start + busy
            over = times[results + resource] = np.maximum(times[results + resource], start + latency)
            for ring, level in rings:
                times[ring + (place[level] & mask)] = over

    def _state(self) -> Moment:
        """All times that may still matter, none before the first free resource, as nothing begins before that."""
        import numpy as np

        times = self.pipeline.scope(HEADS).read(self.times, self.numbers, {})  # pyright: ignore[reportArgumentType]
        horizon = reduce(np.minimum, times[: len(self.pipeline.resources)])
        return [np.maximum(time, horizon) for time in times]

    def _move_on(self, before: Moment, heads: int) -> None:
        """So many tiles of heads, each of which takes no less than the last one: the least that any time moved on."""
        import numpy as np

        moved = [now - then for now, then in zip(self._state(), before, strict=True)]
        later = reduce(np.minimum, moved) * heads
        for index in self.pipeline.scope(HEADS).indices(self.numbers, {}):
            self.times[index] = self.times[index] + later * (self.times[index] > 0)
