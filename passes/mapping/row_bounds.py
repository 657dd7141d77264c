"""Tighter bounds of mappings with whole rows on chip, many at once, for what may still win.

    bounds = RowBounds(space)
    bounds.tighten(candidates, candidates.before(ranking), ranking)     # with latencies that are nearly simulated ones

The closed form of a search knows how long a resource is busy, not how products and softmax of short rows wait for each
other: under a mask it may be 20 % off at a few hundred tokens. A walk through all query tiles (`row_walks`) is exact,
and takes hardly longer for all mappings that share tiles of heads and query tiles than for one of them. Those with the
least bounds come first, and no more than `MOST_TRIPS` are walked through for a space.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.row_walks import is_covered, row_walks, trips_to_walk
from flatc.passes.mapping.priced_space import Candidates, PricedSpace, Ranked
from flatc.passes.mapping.ranking import CLOSE_ENOUGH, Ranking, rank_before

MOST_TRIPS = 1500
"""So many trips of all walks together take about a tenth of a second."""

LONGEST_WALK = 256
"""Longer ones are not for many mappings: `attention_trips` passes over most of the trips of each."""


class RowBounds:
    """Walks through the mappings of one space; what was walked through is remembered."""

    def __init__(self, space: PricedSpace):
        self.space = space
        self.left = MOST_TRIPS
        self.least = float("inf")
        """The least cycles of all."""
        self._cycles: dict[int, Any] = {}
        """For each family, by its identity: cycles of each pair, 0 where it was not walked through."""

    def tighten(self, candidates: Candidates, ranked: Ranked, ranking: Ranking) -> Ranked:
        """Those of some candidates that still rank before `ranking`, when those that may be better by enough are
        walked through."""
        import numpy as np

        objective = self.space.objective
        if objective != "latency" or not ranked.total or not self._covers(candidates):
            return ranked
        open_ = ranked.pairs[rank_before(ranked.order, (ranking[0] / CLOSE_ENOUGH,))]
        cycles = self._walked(candidates, open_, ranked)[ranked.pairs]
        tighter = ranked.with_latency(np.maximum(cycles, ranked.order[0]))
        return tighter.take(np.flatnonzero(rank_before(tighter.order, ranking)))

    def _covers(self, candidates: Candidates) -> bool:
        """Whether there is something to tell apart: without a mask, rows are as long as each other."""
        return self.space.problem.mask is not None and is_covered(self.space.problem, candidates.structures[0])

    def _walked(self, candidates: Candidates, open_: Ints, ranked: Ranked) -> Any:
        """The cycles of a family's pairs, those of the groups of the open ones among them as far as there is room."""
        import numpy as np

        uses = candidates.uses
        cycles = self._cycles.get(id(candidates))
        if cycles is None:
            cycles = self._cycles[id(candidates)] = np.zeros(len(uses.tile))
        groups, trips = self._groups[uses.tile], self._trips[uses.tile]
        found = open_[cycles[open_] == 0]
        latency = np.zeros(len(uses.tile))
        latency[ranked.pairs] = ranked.order[0]
        for pair in found[np.argsort(latency[found], kind="stable")].tolist():
            if latency[pair] * CLOSE_ENOUGH >= self.least:
                break
            if cycles[pair] or trips[pair] > LONGEST_WALK:
                continue
            alike = found[groups[found] == groups[pair]]
            if trips[pair] > self.left:
                break
            self.left -= int(trips[pair])
            cycles[alike] = self._walk(candidates, alike)
            self.least = min(self.least, float(cycles[alike].min()))
        return cycles

    def _walk(self, candidates: Candidates, pairs: Ints) -> Any:
        """Cycles of pairs that share tiles of heads and query tiles."""
        import numpy as np

        space, columns = self.space, candidates.columns(candidates.uses.tile[pairs])
        which = candidates.uses.which[pairs]
        places = [np.flatnonzero(which == number) for number in range(len(candidates.structures))]
        groups: list[tuple[Structure, Columns]] = []
        for structure, place in zip(candidates.structures, places, strict=True):
            if place.size:
                groups.append((structure, space.array.with_folds(columns.take(place), structure)))
        cycles = np.zeros(len(pairs))
        cycles[np.concatenate(places)] = np.concatenate(row_walks(space.problem, space.accelerator, groups))
        return cycles

    @cached_property
    def _trips(self) -> Any:
        """How many trips a walk takes with each tile of the space."""
        return trips_to_walk(self.space.problem, self.space.tiles)

    @cached_property
    def _groups(self) -> Any:
        """A number for each tile of the space: the same for the same tiles of heads and query tiles."""
        import numpy as np

        t = self.space.tiles
        tiles = np.stack([t.batch, t.kv_head, t.group, t.query])
        return np.unique(tiles, axis=1, return_inverse=True)[1].reshape(-1)
