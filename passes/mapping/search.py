"""Finding the best mapping of a kernel: enumerate, drop what does not fit, price what may be best, rank.

The space is `map_space`; `priced_space` prices it by closed form and says which rules leave mappings out. The
ranking is by the objective, ties by the other objectives, by the number of tiles, by the footprint, and then by the
order of enumeration, so the same question always has the same answer.

`find_mappings` gives the best mapping and remembers the space: `Choices.before` tells how many mappings rank before a
given ranking. The closed form of a latency is a lower bound, so with the simulated
ranking of the best mapping it tells what would still have to be simulated before that mapping is proved to be the best.
`tile-attention` does so, and `Choice` records how far it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Generic

from typing_extensions import TypeVar, override

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.frozen import frozen
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.priced_space import Candidates, Priced, PricedSpace
from flatc.passes.mapping.ranking import OBJECTIVES, Objective, Ranking, latency_of, with_latency
from flatc.passes.mapping.row_bounds import RowBounds
from flatc.passes.mapping.strip_space import strip_spaces

STRATEGIES = ("unfused", "flat-m", "flat-b", "flat-h", "flat-r", "flat", "online", "auto")
"""`unfused`: one kernel per operator. `flat-*`: FLAT's granularities; `flat`: the best of them. `online`: online
softmax. `auto`: the best of everything."""

_PARTS = {"flat": ("flat-m", "flat-b", "flat-h", "flat-r")}


class NothingFits(FlatcError):
    """No mapping of a strategy fits the machine's buffer."""


M = TypeVar("M", bound=KernelMapping, default=Mapping)


@frozen
class Choice(Generic[M]):
    """The chosen mapping, the concrete strategy it belongs to, and how much of the space was looked at.

    `covered` mappings were enumerated, `legal` of them fit the machine; these are counted without their uses of the
    array. Of all uses of legal mappings, `dominated` are left out by that rule, and `priced` were priced by closed
    form; the others have bounds that rank behind. `simulated` mappings were simulated. `open` mappings rank before the
    chosen one by closed form and were not simulated: where there are none, the choice is the best of the space; None
    where the search does not count them. None of these is better by more than the fraction `gain` of the objective.
    `kin` numbers the family.
    """

    mapping: M
    strategy: str
    covered: int
    legal: int
    ranking: Ranking
    dominated: int = 0
    priced: int = 0
    simulated: int = 0
    open: int | None = None
    gain: float = 0.0
    kin: int = 0


Name = tuple[int, int]
"""Names a mapping without making it: its family, and its number there."""


@frozen
class Rival(Generic[M]):
    """A mapping that may be better than another one: its ranking by closed form, its name, and how to make it.

    Mappings of less `promise` are simulated sooner.
    """

    ranking: Ranking
    name: Name
    make: Callable[[], Choice[M]]
    promise: Ranking = ()

    @property
    def kin(self) -> int:
        """The number of the family."""
        return self.name[0]


class Choices(list[Choice[M]], Generic[M]):
    """The mappings worth simulating, best by closed form first. `complete` ones stand for their whole space."""

    complete = False

    def best(self) -> Rival[M]:
        """The best by closed form."""
        return self._rival(0)

    def before(
        self, ranking: Ranking, most: int, but: Set[Name] = frozenset(), *, closely: bool = False
    ) -> tuple[int, list[Rival[M]]]:
        """How many mappings rank before another by closed form, `but` some; of each family the first `most` to try.

        If `closely`, latencies of what may be better by enough are bounded tighter before, as far as a space can.
        """
        every = [self._rival(number) for number in range(len(self))]
        found = [one for one in every if one.ranking < ranking and one.name not in but]
        return len(found), found

    def _rival(self, number: int) -> Rival[M]:
        choice = self[number]
        return Rival(choice.ranking, (choice.kin, number), partial(_itself, choice))


def _itself(choice: Choice[M]) -> Choice[M]:
    return choice


class _SpaceChoices(Choices[Mapping]):
    """The best of a few spaces, which are remembered."""

    complete = True

    def __init__(self, best: Choice[Mapping], pair: int, candidates: list[tuple[PricedSpace, Candidates]]):
        super().__init__([best])
        self._pair = pair
        bounds = {id(space): RowBounds(space) for space, _ in candidates}
        self._candidates = [(space, family, bounds[id(space)]) for space, family in candidates]

    @override
    def best(self) -> Rival[Mapping]:
        return Rival(self[0].ranking, (self[0].kin, self._pair), partial(_itself, self[0]))

    @override
    def before(
        self, ranking: Ranking, most: int, but: Set[Name] = frozenset(), *, closely: bool = False
    ) -> tuple[int, list[Rival[Mapping]]]:
        total = 0
        found: list[Rival[Mapping]] = []
        for kin, (space, candidates, bounds) in enumerate(self._candidates):
            before = candidates.before(ranking).but([number for of, number in but if of == kin])
            if closely:
                before = bounds.tighten(candidates, before, ranking)
            total += before.total
            for one in before.first(most):
                found.append(Rival(one.ranking, (kin, one.pair), partial(_made, space.strategy, kin, one), one.promise))
        return total, found


def _made(strategy: str, kin: int, priced: Priced) -> Choice[Mapping]:
    return Choice(priced.mapping, strategy, 0, 0, priced.ranking, kin=kin)


def check_strategy(strategy: str, objective: str) -> None:
    """Raises `FlatcError` for a name that is not known."""
    for what, word, known in (("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)):
        if word not in known:
            raise FlatcError(
                f"unknown {what} '{word}'", help=did_you_mean(word, known) or f"choose one of {', '.join(known)}"
            )


def find_mapping(
    problem: AttentionProblem,
    accelerator: Accelerator,
    strategy: str = "auto",
    objective: Objective = "latency",
    *,
    kernel: str = "kernel",
) -> Choice:
    """The best mapping of a kernel under a strategy. Raises `FlatcError` if none fits the machine."""
    return find_mappings(problem, accelerator, strategy, objective, kernel=kernel)[0]


def find_mappings(
    problem: AttentionProblem,
    accelerator: Accelerator,
    strategy: str = "auto",
    objective: Objective = "latency",
    *,
    kernel: str = "kernel",
) -> Choices[Mapping]:
    """The best mapping by closed form of all that a strategy admits; the others are remembered."""
    every = spaces(problem, accelerator, strategy, objective, kernel=kernel)
    fitting = [(space, candidates) for space in every for candidates in space.families if candidates.any]
    kin, best = _first([candidates for _, candidates in fitting], objective)
    choice = replace(_made(fitting[kin][0].strategy, kin, best), **_counts(every))
    return _SpaceChoices(choice, best.pair, fitting)


SLACK = 1.05
"""Mappings that much slower than the best by closed form are priced as well: simulation will ask for them."""


def _first(families: Sequence[Candidates], objective: Objective) -> tuple[int, Priced]:
    """The number of the family of the first of all candidates, and that one; the best bounds are priced first."""
    bounds = [candidates.least_bound for candidates in families]
    order = sorted(range(len(families)), key=lambda kin: bounds[kin])
    best = order[0], families[order[0]].first_look()
    for kin in order:
        ranking = best[1].ranking
        if bounds[kin] <= ranking:
            before = families[kin].before(with_latency(ranking, objective, latency_of(ranking, objective) * SLACK))
            if before.total:
                best = min(best, (kin, before.best()), key=lambda found: (found[1].ranking, found[0]))
    return best


def _counts(searched: Sequence[PricedSpace]) -> dict[str, int]:
    """The numbers of what was looked at."""
    fitting = [candidates for space in searched for candidates in space.families if candidates.size]
    return {
        "covered": sum(space.size * len(space.families) for space in searched),
        "legal": sum(candidates.size for candidates in fitting),
        "dominated": sum(candidates.dominated for candidates in fitting),
        "priced": sum(space.priced for space in searched),
    }


def spaces(
    problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective, *, kernel: str = "kernel"
) -> list[PricedSpace]:
    """The map spaces that a strategy admits, priced as they are asked. Raises `FlatcError` if nothing in them fits."""
    check_strategy(strategy, objective)
    _check_machine(problem, accelerator, kernel)
    found = [PricedSpace(problem, accelerator, part, objective) for part in _PARTS.get(strategy, (strategy,))]
    found += strip_spaces(problem, accelerator, strategy, objective)
    families = [candidates for space in found for candidates in space.families]
    if not any(candidates.size for candidates in families):
        raise _nothing_fits(accelerator, strategy, kernel, min(candidates.least_bytes for candidates in families))
    return found


def _check_machine(problem: AttentionProblem, accelerator: Accelerator, kernel: str) -> None:
    works = problem.has("softmax") or problem.has("mask") or problem.converts_output
    works = works or problem.score_ops or problem.value_scale is not None
    if not accelerator.vector.lanes and works:
        raise FlatcError(
            f"{kernel}: accelerator '{accelerator.name}' has no vector unit, and the kernel needs one",
            help="choose an accelerator with a vector unit",
        )


def _nothing_fits(accelerator: Accelerator, strategy: str, kernel: str, least_bytes: int) -> NothingFits:
    return NothingFits(
        f"{kernel}: no '{strategy}' mapping fits the {accelerator.buffer.capacity_bytes} bytes of "
        f"{accelerator.name}'s buffer; the smallest needs {least_bytes}",
        help="use strategy online or auto, whose footprint does not grow with length"
        if strategy not in ("online", "auto")
        else "give the accelerator a larger buffer",
    )
