"""A map space with prices: what its mappings share is counted once, and only what can still win is priced.

    space = PricedSpace(problem, accelerator, "auto", "latency")
    for candidates in space.families:             # the mappings of each family that fit the machine
        candidates.first_look()                   # one of them that is about the best
        candidates.before(ranking).total          # how many of them rank before another mapping
        candidates.before(ranking).first(10)      # the first of these

A ranking is the objective, the other objectives, the number of tiles, the footprint. Three rules leave mappings out.
Dominated uses of the array never win (`array_uses`). A second slot for all K or V of a head is never filled where one
tile has all heads: the mapping with one slot does the same in less room. And there are **bounds**: energy and off-chip
bytes of a mapping depend on its tiles, where K and V stay, its softmax and its use of the array, not on slots and
stages. Nor does the time that each resource is busy, below which no latency lies. So each choice of these has a ranking
that no choice of slots and stages beats; if it comes behind the one to be beaten, its mappings are not priced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.buffer_room import peak_buffer_bytes, register_bytes_per_pe
from flatc.passes.cost.closed_form import ClosedForm, evaluate
from flatc.passes.cost.expected_time import expected_cycles
from flatc.passes.cost.key_geometry import widest_rows
from flatc.passes.cost.least_times import Case
from flatc.passes.cost.mapping_columns import Columns, mapping_at
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.array_uses import ArrayUses, Uses, structure_of_family
from flatc.passes.mapping.map_space import Family, columns, families, tiles
from flatc.passes.mapping.ranking import (
    Objective,
    Ranking,
    first_row,
    objectives,
    rank_before,
    row,
    rows,
    with_latencies,
)


@frozen
class Priced:
    """A mapping's ranking by closed form; the less `promise`, the more is expected of it (see `_promises`).

    Far more mappings are ranked than tried, so the mapping itself is made when it is asked for. `pair` is its number
    among the candidates.
    """

    ranking: Ranking
    pair: int
    make: Callable[[], Mapping]
    promise: Ranking = ()

    @property
    def mapping(self) -> Mapping:
        """The mapping."""
        return self.make()


class PricedSpace:
    """The map space of one strategy, with what its families share: tiles, and the counts of tiles.

    `tiles` are those that fit the machine in some family, as only they are counted; each family has `size` mappings
    with those that fit in none. `priced` counts closed forms that were evaluated. `strip_space` has tiles and families
    of its own.
    """

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        strategy: str,
        objective: Objective,
        every: Columns | None = None,
        all_families: Iterable[Family] | None = None,
    ):
        import numpy as np

        self.problem, self.accelerator = problem, accelerator
        self.strategy = strategy
        self.objective: Objective = objective
        every = tiles(problem, accelerator, strategy) if every is None else every
        self.size = every.size
        self._all_families = list(families(problem, strategy, accelerator) if all_families is None else all_families)
        rooms = self._rooms(every, self._all_families)
        somewhere = self._with_kin(every, np.flatnonzero(np.logical_or.reduce([room.fits for room in rooms])))
        # A space without any tiles would have no geometry: where nothing fits, one that does not will do.
        kept = somewhere if somewhere.size else np.array([0])
        self.tiles = every.take(kept)
        self.priced = 0
        self.visited = _tiles_visited(problem, self.tiles)
        self.array = ArrayUses(problem, accelerator, self.tiles, objective)
        self.families = [self._candidates(room, kept) for room in rooms]
        """The mappings of every family that fit the machine."""

    def _rooms(self, every: Columns, families: Iterable[Family]) -> list[Room]:
        """What the tiles take on chip in each family."""
        problem, accelerator = self.problem, self.accelerator
        widest = widest_rows(problem, every.query, every.key)
        return [Room.of(problem, accelerator, family, every, widest) for family in families]

    def _with_kin(self, every: Columns, chosen: Ints) -> Ints:
        """Which tiles are counted, to judge the chosen ones."""
        return chosen

    def _candidates(self, room: Room, rows: Ints) -> Candidates:
        """The mappings of a family, of those tiles that are counted."""
        return Candidates(self, room.take(rows), idle=self._has_idle_slots(room.family))

    def _has_idle_slots(self, family: Family) -> Any:
        """Which tiles never fill the second slot for K or V of a head, where a family with one slot has them too."""
        problem, tiles = self.problem, self.tiles
        single = replace(family, pipelining=replace(family.pipelining, head_slots=1))
        if single == family or single not in self._all_families or "kv_head" not in (family.k_level, family.v_level):
            return False
        return (tiles.batch >= problem.batch) & (tiles.kv_head >= problem.kv_heads)


@frozen
class Room:
    """What the tiles of a family take on chip, and which of them fit; `least_bytes` is the least that any takes."""

    family: Family
    peak: Ints
    fits: Any
    least_bytes: int

    @classmethod
    def of(
        cls,
        problem: AttentionProblem,
        accelerator: Accelerator,
        family: Family,
        tiles: Columns,
        widest: Ints,
    ) -> Room:
        """The room that tiles take, given the keys of their longest rows."""
        structure, column = structure_of_family(family), columns(tiles, family)
        peak = peak_buffer_bytes(problem, structure, column, widest)
        fits = peak <= accelerator.buffer.capacity_bytes
        if family.held and (room := accelerator.registers.bytes_per_pe):
            fits &= register_bytes_per_pe(problem, structure, column, accelerator.array) <= room
        return cls(family, peak, fits, int(peak.min()))

    def take(self, indices: Ints) -> Room:
        """The room of some of the tiles."""
        return replace(self, peak=self.peak[indices], fits=self.fits[indices])


class Candidates:
    """The mappings of one family that fit the machine: some tiles, with each use of the array that is not dominated."""

    def __init__(self, space: PricedSpace, room: Room, idle: Any = False):
        import numpy as np

        self.space, self.family = space, room.family
        self.structures = space.array.structures(room.family)
        self.peak, self.fits, self.least_bytes = room.peak, room.fits, room.least_bytes
        self.size = int(np.count_nonzero(self.fits))
        """How many tiles fit."""
        self._may_win = self.fits & ~np.asarray(idle)
        self._known: tuple[Ranking, Ranked] | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self._may_win.any())

    @cached_property
    def uses(self) -> Uses:
        """Every tile with every use of the array that is not dominated."""
        return self.space.array.of(self.structures)

    @cached_property
    def pairs(self) -> Ints:
        """Those of `uses` that fit and have no slot that is never filled."""
        import numpy as np

        return np.flatnonzero(self._may_win[self.uses.tile])

    @property
    def dominated(self) -> int:
        """How many uses of the array of mappings that fit are left out by rules."""
        return self.size * len(self.structures) - len(self.pairs)

    @cached_property
    def bounds(self) -> list[Any]:
        """For each of `pairs`, numbers that its ranking cannot be below."""
        return [bound[self.pairs] for bound in self.uses.bounds]

    @cached_property
    def least_bound(self) -> Ranking:
        """What none of them can rank before."""
        return row(self.bounds, first_row(self.bounds))

    def first_look(self) -> Priced:
        """The one with the best bounds, priced."""
        return self.priced(self.pairs[[first_row(self.bounds)]]).first(1)[0]

    def before(self, ranking: Ranking) -> Ranked:
        """Those that rank before a mapping. What was priced for one answer is kept for those that need no more."""
        import numpy as np

        if self._known is None or self._known[0] < ranking:
            open_ = np.flatnonzero(rank_before(self.bounds, ranking, or_equal=True))
            self._known = ranking, self.priced(self.pairs[open_])
        found = self._known[1]
        return found.take(np.flatnonzero(rank_before(found.order, ranking))) if found.total else found

    def priced(self, pairs: Ints) -> Ranked:
        """Some of `pairs`, with their closed forms."""
        space, uses = self.space, self.uses
        space.priced += len(pairs)
        if not len(pairs):
            return Ranked(self, pairs, [], [])
        tile = uses.tile[pairs]
        counts, peak = uses.counts(pairs), self.peak[tile]
        case = Case(space.problem, space.accelerator, self.structures[0], self.columns(tile), counts)
        cost = evaluate(case.problem, case.accelerator, case.structure, case.columns, counts, peak)
        order = objectives(space.objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)
        visited = space.visited[tile]
        return Ranked(self, pairs, [*order, visited, peak], _promises(space.objective, case, cost, visited))

    def mapping(self, pair: int) -> Mapping:
        """The mapping of one of `uses`."""
        uses, index = self.uses, self.uses.tile[pair : pair + 1]
        structure = self.structures[int(uses.which[pair])]
        column = self.space.array.with_folds(self.columns(index), structure)
        return mapping_at(self.space.problem, structure, column, 0)

    def columns(self, tile: Ints) -> Columns:
        """The mappings of some tiles, with folds of 1."""
        return columns(self.space.tiles.take(tile), self.family)


@frozen
class Ranked:
    """Some candidates, and what they are compared by, a column for each number: when ranked, and when to be tried."""

    candidates: Candidates
    pairs: Ints
    order: list[Any]
    promise: list[Any]

    @property
    def total(self) -> int:
        """How many they are."""
        return len(self.pairs)

    def take(self, indices: Ints) -> Ranked:
        """Those at `indices`."""
        order, promise = ([key[indices] for key in keys] for keys in (self.order, self.promise))
        return Ranked(self.candidates, self.pairs[indices], order, promise)

    def with_latency(self, cycles: Any) -> Ranked:
        """With other latencies, none of which is 0."""
        objective = self.candidates.space.objective
        ragged, *promise = self.promise
        promise = with_latencies(promise, objective, _near(cycles))
        order = with_latencies(self.order, objective, cycles)
        return replace(self, order=order, promise=[ragged, *promise])

    def but(self, pairs: Sequence[int]) -> Ranked:
        """All but some of `Candidates.uses`."""
        import numpy as np

        return self.take(np.flatnonzero(~np.isin(self.pairs, pairs))) if pairs and self.total else self

    def first(self, most: int) -> list[Priced]:
        """The first `most` by ranking, and the first `most` by promise, each once."""
        import numpy as np

        if not self.total:
            return []
        first = [np.lexsort(keys[::-1])[:most] for keys in (self.order, self.promise)]
        return self._at(list(dict.fromkeys(np.concatenate(first).tolist())))

    def best(self) -> Priced:
        """The first by ranking."""
        return self._at([first_row(self.order)])[0]

    def _at(self, indices: Sequence[int]) -> list[Priced]:
        pairs, order, promise = self.pairs[indices].tolist(), rows(self.order, indices), rows(self.promise, indices)
        make = [partial(self.candidates.mapping, pair) for pair in pairs]
        return [Priced(*one) for one in zip(order, pairs, make, promise, strict=True)]


_STEPS = 512
"""Latencies in one of so many steps to twice the latency count as equal when it is decided what to try."""


def _promises(objective: Objective, case: Case, cost: ClosedForm, visited: Any) -> list[Any]:
    """What a mapping is expected to turn out as, beyond its closed form: decides nothing but what is simulated first.

    Resources wait for each other where tiles are uneven, so fewer dimensions with a ragged tile come first. Of
    latencies that are expected to be equal but for a 700th, the one that costs less otherwise is tried first, and of
    those that cost the same, the one that visits fewer tiles: what waits for a burst waits more often for short work.
    """
    problem, column = case.problem, case.columns
    ragged = (problem.queries % column.query > 0) * 1 + (problem.keys % column.key > 0)
    expected = expected_cycles(case, cost.busy_cycles, cost.least_times)
    return [ragged, *objectives(objective, _near(expected), cost.energy_pj, cost.offchip_bytes), visited]


def _near(cycles: Any) -> Any:
    """The same for all latencies of a step; never 0."""
    import numpy as np

    return np.floor(np.log2(np.maximum(cycles, 1)) * _STEPS) + 1


def _tiles_visited(problem: AttentionProblem, column: Columns) -> Any:
    """How many (query, key) tiles a mapping has without a mask: the fewer, the fewer transfers and operations."""
    heads = ceil_divide(problem.batch, column.batch) * ceil_divide(problem.kv_heads, column.kv_head)
    rows = heads * ceil_divide(problem.group, column.group) * ceil_divide(problem.queries, column.query)
    return rows * ceil_divide(problem.keys, column.key)
