"""The Pareto front of two objectives: every mapping of a kernel that none beats in one without losing in the other.

    front = pareto_front(spaces(problem, accelerator, "auto", "latency"), ("latency", "energy"))
    [(point.ranking, point.mapping()) for point in front]         # least latency first, least energy last

Priced by closed form, which is exact for energy and bytes and a lower bound for latency. Of mappings that are equal in
both objectives the one that ranks first stands for all. What `priced_space` proves to be dominated in time and energy
alike is left out, and what cannot be on the front by its bounds is not priced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.mapping.priced_space import PricedSpace
from flatc.passes.mapping.ranking import Objective, Ranking, objective_order, row

Pair = tuple[Objective, Objective]


@frozen
class FrontPoint:
    """One mapping: its ranking by closed form, in the order of the spaces' objective, and how it is made."""

    ranking: Ranking
    mapping: Callable[[], Mapping]


def pareto_front(spaces: Sequence[PricedSpace], pair: Pair) -> list[FrontPoint]:
    """The front of all mappings of some spaces that fit the machine, from the first objective's end to the second's."""
    front = _Front(pair)
    for space in spaces:
        places = [objective_order(space.objective).index(name) for name in pair]
        for candidates in space.families:
            open_ = ~front.beats(*(candidates.bounds[place] for place in places))
            if open_.any():
                priced = candidates.priced(candidates.pairs[open_])
                front.add(priced.order, places, [(candidates.mapping, int(pair)) for pair in priced.pairs])
    return front.points()


class _Front:
    """The front of what was added so far, from the least first objective to the least second one."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self.order: list[Any] = []
        self.places: list[int] = []
        self.makes: list[tuple[Callable[[int], Mapping], int]] = []

    def beats(self, first: Any, second: Any) -> Any:
        """Whether some point is as good as each pair of numbers in both of them."""
        import numpy as np

        if not self.order:
            return np.zeros(first.shape, dtype=bool)
        ours, theirs = (self.order[place] for place in self.places)
        at = ours.searchsorted(first, side="right")
        # The points up to there are as good in the first objective, and the last of them is the best in the second.
        return (at > 0) & (theirs[np.maximum(at, 1) - 1] <= second)

    def add(self, order: list[Any], places: list[int], makes: list[tuple[Callable[[int], Mapping], int]]) -> None:
        """Adds mappings by their rankings, a column for each number, and drops what is now beaten."""
        import numpy as np

        self.places = places
        columns = [np.concatenate(pair) for pair in zip(self.order, order, strict=True)] if self.order else order
        every = [*self.makes, *makes]
        first, second = (columns[place] for place in places)
        sorted_ = np.lexsort([*columns[::-1], second, first])
        least = np.minimum.accumulate(second[sorted_])
        kept = sorted_[np.concatenate([[True], second[sorted_][1:] < least[:-1]])]
        self.order = [column[kept] for column in columns]
        self.makes = [every[int(index)] for index in kept]

    def points(self) -> list[FrontPoint]:
        """The front; mappings are made when they are asked for."""
        return [FrontPoint(row(self.order, i), partial(make, index)) for i, (make, index) in enumerate(self.makes)]
