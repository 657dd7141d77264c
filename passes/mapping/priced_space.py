"""A map space with prices: what its mappings share is counted once, and only what can still win is priced.

    space = PricedSpace(problem, accelerator, "auto", "latency")
    for family in families(problem, "auto"):
        candidates = space.of(family)             # the mappings that fit the machine
        candidates.best()                         # the first of them by ranking
        candidates.before(ranking, most=10)       # all that rank before another mapping: how many, and the first ones

A ranking is the objective, the other objectives, the number of tiles, the footprint. Two rules leave mappings out:

**Dominated array uses.** With the same tiles, slots and stages, a product may use the array in several ways
(stationarities). One that takes no longer on any kind of tile, until the array is free and until the result is
there, and no more energy, makes no operation end later: each starts when its tokens, its slot and its resource are
ready, in an order that is fixed. So the other way never ranks before it, neither simulated nor by closed form.

**Bounds.** Energy and off-chip bytes of a mapping depend on its tiles, where K and V stay, its softmax and its use of
the array, not on slots and stages. Nor does the time that each resource is busy, below which no latency lies. So each
choice of these has a ranking that no choice of slots and stages beats; if it comes behind the one to be beaten, its
mappings are not priced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from itertools import product
from typing import Any, Literal

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.buffer_room import peak_buffer_bytes, register_bytes_per_pe
from flatc.passes.cost.closed_form import ClosedForm, busy_cycles, evaluate, total_work
from flatc.passes.cost.expected_time import expected_cycles
from flatc.passes.cost.least_times import Case
from flatc.passes.cost.mapping_columns import Columns, Structure, mapping_at
from flatc.passes.cost.primitive_costs import MatmulTile, ceil_divide, energy_pj, largest_folds
from flatc.passes.cost.shared_counts import SharedCounts, relevant
from flatc.passes.cost.tile_counts import Counts
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.map_space import Family, columns, families, tiles
from flatc.passes.mapping.ranking import Objective, Ranking, first_row, objectives, rank_before, row


@dataclass(frozen=True)
class Priced:
    """A mapping's ranking by closed form; the less `promise`, the more is expected of it (see `_promises`).

    Far more mappings are ranked than tried, so the mapping itself is made when it is asked for.
    """

    ranking: Ranking
    make: Callable[[], Mapping]
    promise: Ranking = ()

    @property
    def mapping(self) -> Mapping:
        """The mapping."""
        return self.make()


@dataclass(frozen=True)
class Before:
    """How many mappings rank before another one, and the first of them."""

    total: int
    first: list[Priced]


class PricedSpace:
    """The map space of one strategy, with what its families share: tiles, and the counts of tiles.

    `priced` counts closed forms that were evaluated.
    """

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective):
        self.problem, self.accelerator = problem, accelerator
        self.strategy = strategy
        self.objective: Objective = objective
        self.tiles = tiles(problem, accelerator, strategy)
        self.priced = 0
        self.visited = _tiles_visited(problem, self.tiles)
        self.shared = SharedCounts(problem, accelerator, self.tiles, self._folds_of_all)
        self._lower: dict[Structure, list[Any]] = {}
        self._uses: dict[tuple[str, Structure], dict[str, Any]] = {}
        self._undominated: dict[Structure, Any] = {}

    @property
    def size(self) -> int:
        """How many mappings each family has."""
        return self.tiles.size

    def of(self, family: Family) -> Candidates:
        """The mappings of a family that fit the machine."""
        return Candidates(self, family)

    @cached_property
    def families(self) -> list[Candidates]:
        """The mappings of every family that fit the machine."""
        return [self.of(family) for family in families(self.problem, self.strategy, self.accelerator)]

    def structures(self, family: Family) -> list[Structure]:
        """A family with every stationarity of each product."""
        f, place = family, family.placement
        uses = product(*(self._stationarities(name) for name in ("logit", "attend")))
        uses = [("output", "input")] if family.held else list(uses)
        whole = Structure(
            *(f.algorithm, f.divide, f.k_level, f.v_level, "", ""),
            maximum=place.maximum,
            exponential=place.exponential,
            total=place.total,
            add=place.add,
        )
        return [replace(whole, logit_stationarity=logit, attend_stationarity=attend) for logit, attend in uses]

    def _stationarities(self, name: str) -> tuple[str, ...]:
        found = self.accelerator.array.stationarities
        return found if self.problem.has(name) else found[:1]

    def undominated(self, structure: Structure) -> Any:
        """Which tiles have no better use of the array than that of a structure; see the module docstring."""
        found = self._undominated.get(structure)
        if found is None:
            found = self._not_dominated("logit", structure) & self._not_dominated("attend", structure)
            self._undominated[structure] = found
        return found

    def _not_dominated(self, name: Literal["logit", "attend"], structure: Structure) -> Any:
        import numpy as np

        if not self.problem.has(name) or structure.held:
            # Where PEs work on score tiles, there is one use of the array.
            return np.ones(self.size, dtype=bool)
        ours = getattr(structure, f"{name}_stationarity")
        stationarities = self._stationarities(name)
        structures = [replace(structure, **{f"{name}_stationarity": one}) for one in stationarities]
        key = name, relevant(name, structures[0])
        if key not in self._uses:
            parts = [self.shared.part(name, one) for one in structures]
            measures = [_measures(self.accelerator, part, self.size) for part in parts]
            self._uses[key] = dict(zip(stationarities, _undominated(measures), strict=True))
        return self._uses[key][ours]

    def lower_bounds(self, structure: Structure) -> list[Any]:
        """For each tile, numbers that the ranking of its mappings cannot be below; slots and stages do not matter."""
        found = self._lower.get(structure)
        if found is None:
            counts = self.shared.counts(structure)
            found = objectives(
                self.objective,
                latency=_largest(busy_cycles(self.accelerator, counts).values()),
                energy=sum(energy_pj(self.accelerator, total_work(counts)).values()),
                offchip=sum(counts.tensor_bytes.values()),
            )
            self._lower[structure] = found
        return found

    def _folds_of_all(self, name: str, structure: Structure) -> tuple[Any, Any]:
        return self._folds(name, structure, self.tiles)

    def _folds(self, name: str, structure: Structure, tiles: Columns) -> tuple[Any, Any]:
        """The largest folds of a product that the machine permits and the tile has pieces for.

        None where score tiles stay in registers, which both products and the softmax must lay out alike.
        """
        if structure.held:
            return tiles.batch * 0 + 1, tiles.batch * 0 + 1
        array = self.accelerator.array
        batch, rows = tiles.batch * tiles.kv_head, tiles.group * tiles.query
        if name == "logit":
            tile = MatmulTile(batch, rows, tiles.key, rows * 0 + self.problem.d_qk)
        else:
            width = self.problem.d_v + structure.sums_in_attend
            tile = MatmulTile(batch, rows, rows * 0 + width, tiles.key)
        return largest_folds(array, getattr(structure, f"{name}_stationarity"), tile)

    def with_folds(self, columns: Columns, structure: Structure) -> Columns:
        """`columns` with the folds of a structure."""
        folds: dict[str, Any] = {}
        for name in ("logit", "attend"):
            if self.problem.has(name):
                rows, across = self._folds(name, structure, columns)
                folds |= {f"{name}_fold_rows": rows, f"{name}_fold_columns": across}
        return replace(columns, **folds)


class Candidates:
    """The mappings of one family that fit the machine; their use of the array is still to be chosen."""

    def __init__(self, space: PricedSpace, family: Family):
        import numpy as np

        self.space, self.family = space, family
        self.structures = space.structures(family)
        column = columns(space.tiles, family)
        peak = peak_buffer_bytes(space.problem, self.structures[0], column, space.shared.geometry)
        self.least_bytes = int(peak.min())
        fits = peak <= space.accelerator.buffer.capacity_bytes
        room, array = space.accelerator.registers.bytes_per_pe, space.accelerator.array
        if family.held and room:
            fits &= register_bytes_per_pe(space.problem, self.structures[0], column, array) <= room
        self.rows = np.flatnonzero(fits)
        self.columns, self.peak = column.take(self.rows), peak[self.rows]
        self._known: dict[Structure, tuple[Ranking, Any, _Order]] = {}

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.rows)

    def best(self) -> Priced:
        """The best of them under the best use of the array; the first to be priced is the one with the best bounds."""
        import numpy as np

        bounds = [[bound[self.rows] for bound in self.space.lower_bounds(s)] for s in self.structures]
        first = [first_row(bound) for bound in bounds]
        order = sorted(range(len(bounds)), key=lambda i: [float(bound[first[i]]) for bound in bounds[i]])
        best = self._least(self.structures[order[0]], np.array([first[order[0]]]))
        for i in order:
            open_ = self._open(self.structures[i], bounds[i], best[0])
            if len(open_):
                best = min(best, self._least(self.structures[i], open_), key=lambda found: found[0])
        ranking, structure, index = best
        return Priced(ranking, lambda: self._mapping(structure, index))

    def before(self, ranking: Ranking, most: int) -> Before:
        """How many of them rank before a mapping, and `most` of these: the first by ranking, the first by promise."""
        import numpy as np

        every = ((structure, *self._before(structure, ranking)) for structure in self.structures)
        found = [(structure, indices, priced) for structure, indices, priced in every if len(indices)]
        if not found:
            return Before(0, [])
        structures = [structure for structure, indices, _ in found for _ in range(len(indices))]
        indices = np.concatenate([indices for _, indices, _ in found])
        order, promise = (
            [np.concatenate(columns) for columns in zip(*keys, strict=True)]
            for keys in ([priced.order for *_, priced in found], [priced.promise for *_, priced in found])
        )
        chosen = dict.fromkeys(int(i) for keys in (order, promise) for i in np.lexsort(keys[::-1])[: most // 2])
        makes = [partial(self._mapping, structures[i], int(indices[i])) for i in chosen]
        first = [Priced(row(order, i), make, row(promise, i)) for i, make in zip(chosen, makes, strict=True)]
        return Before(len(indices), first)

    def _before(self, structure: Structure, ranking: Ranking) -> tuple[Any, _Order]:
        """The candidates that rank before a mapping under one structure: their indices, and what they are compared by.

        A search asks for less and less, so what was priced for one answer is kept for the next.
        """
        import numpy as np

        known = self._known.get(structure)
        if known is None or known[0] < ranking:
            bounds = [bound[self.rows] for bound in self.space.lower_bounds(structure)]
            open_ = self._open(structure, bounds, ranking)
            known = ranking, open_, self._rankings(structure, open_) if len(open_) else _Order([], [])
        _, indices, priced = known
        if len(indices):
            here = np.flatnonzero(rank_before(priced.order, ranking))
            indices, priced = indices[here], priced.take(here)
        self._known[structure] = ranking, indices, priced
        return indices, priced

    def rankings(self, structure: Structure, indices: Any) -> list[Any]:
        """The rankings of the candidates at `indices` under one use of the array, a column for each number of them."""
        return self._rankings(structure, indices).order

    def mapping(self, structure: Structure, index: int) -> Mapping:
        """The candidate at `index` under one use of the array."""
        return self._mapping(structure, index)

    def uses(self) -> Iterator[tuple[Structure, Any]]:
        """Every use of the array, and which of the candidates it is not dominated for."""
        for structure in self.structures:
            yield structure, self.space.undominated(structure)[self.rows]

    def _open(self, structure: Structure, bounds: list[Any], ranking: Ranking) -> Any:
        """Indices of the candidates that no rule leaves out."""
        import numpy as np

        may = rank_before(bounds, ranking, or_equal=True)
        return np.flatnonzero(may & self.space.undominated(structure)[self.rows])

    def _rankings(self, structure: Structure, indices: Any) -> _Order:
        """The rankings and promises of the candidates at `indices`, a column for each number of them."""
        space, rows = self.space, self.rows[indices]
        space.priced += len(rows)
        counts, peak = space.shared.counts(structure, rows), self.peak[indices]
        case = Case(space.problem, space.accelerator, structure, self.columns.take(indices), counts)
        cost = evaluate(case.problem, case.accelerator, structure, case.columns, counts, peak)
        order = objectives(space.objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)
        return _Order([*order, space.visited[rows], peak], _promises(space.objective, case, cost))

    def _least(self, structure: Structure, indices: Any) -> tuple[Ranking, Structure, int]:
        """(ranking, structure, index) of the best of the candidates at `indices` under one structure."""
        order = self._rankings(structure, indices).order
        best = first_row(order)
        return row(order, best), structure, int(indices[best])

    def _mapping(self, structure: Structure, index: int) -> Mapping:
        import numpy as np

        column = self.space.with_folds(self.columns.take(np.array([index])), structure)
        return mapping_at(self.space.problem, structure, column, 0)


@dataclass(frozen=True)
class _Order:
    """What mappings are compared by, a column for each number: when they are ranked, and when they are to be tried."""

    order: list[Any]
    promise: list[Any]

    def take(self, indices: Any) -> _Order:
        """The rows at `indices`."""
        return _Order([key[indices] for key in self.order], [key[indices] for key in self.promise])


_STEPS = 512
"""Latencies in one of so many steps to twice the latency count as equal when it is decided what to try."""


def _promises(objective: Objective, case: Case, cost: ClosedForm) -> list[Any]:
    """What a mapping is expected to turn out as, beyond its closed form: decides nothing but what is simulated first.

    Resources wait for each other where tiles are uneven, so fewer dimensions with a ragged tile come first. Of
    latencies that are expected to be equal but for a 700th, the one that costs less otherwise is tried first.
    """
    import numpy as np

    problem, column = case.problem, case.columns
    ragged = (problem.queries % column.query > 0) * 1 + (problem.keys % column.key > 0)
    expected = expected_cycles(case, cost.busy_cycles, cost.least_times)
    near = np.floor(np.log2(np.maximum(expected, 1)) * _STEPS)
    return [ragged, *objectives(objective, near, cost.energy_pj, cost.offchip_bytes)]


def _measures(accelerator: Accelerator, part: Counts, size: int) -> list[Any]:
    """What one use of the array is compared by: times of every kind of tile, and the energy of all.

    Where a mask hides everything there is no kind of tile, and the energy is one number for all mappings.
    """
    import numpy as np

    times = [time for cycles in part.tile_cycles for time in (cycles.busy, cycles.latency)]
    measures = [*times, sum(energy_pj(accelerator, part.work).values())]
    return [np.broadcast_to(measure, (size,)) for measure in measures]


def _undominated(measures: list[list[Any]]) -> list[Any]:
    """For each of several uses, where no other is as good in every measure; of equals the first stays."""
    import numpy as np

    kept: list[Any] = []
    for i, ours in enumerate(measures):
        mine = np.ones(len(ours[-1]), dtype=bool)
        for j, theirs in enumerate(measures):
            if i == j:
                continue
            no_worse = reduce(np.logical_and, [b <= a for a, b in zip(ours, theirs, strict=True)])
            if j > i:
                no_worse = no_worse & reduce(np.logical_or, [b < a for a, b in zip(ours, theirs, strict=True)])
            mine &= ~no_worse
        kept.append(mine)
    return kept


def _largest(arrays: Iterable[Any]) -> Any:
    """The largest of several numbers, row by row."""
    import numpy as np

    return reduce(np.maximum, arrays)


def _tiles_visited(problem: AttentionProblem, column: Columns) -> Any:
    """How many (query, key) tiles a mapping has without a mask: the fewer, the fewer transfers and operations."""
    heads = ceil_divide(problem.batch, column.batch) * ceil_divide(problem.kv_heads, column.kv_head)
    rows = heads * ceil_divide(problem.group, column.group) * ceil_divide(problem.queries, column.query)
    return rows * ceil_divide(problem.keys, column.key)
