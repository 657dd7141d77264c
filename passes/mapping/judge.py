"""Simulate what may be better until the best is known, or enough is enough.

    Judge(choices, "latency", cycles).best()         # Choice(mapping, simulated=10, open=477, ...)

A search ranks mappings by closed form, which never lies above the simulator. So a mapping that it ranks behind the best
one simulated cannot win, and the others are rivals: `Choices.before` counts them and gives the first. Each simulation
takes as long as pricing thousands of mappings, so only a few rivals get one, those that promise most; what is left is
counted (`Choice.open`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flatc.dialects.kernel_mapping import KernelMapping
from flatc.passes.mapping.ranking import Objective, Ranking, latency_of, with_latency
from flatc.passes.mapping.search import Choice, Choices, Rival

MOST_SIMULATED = 10
"""How many mappings of a kernel are simulated at most: about 0.15 s. `Choice.open` says what was left."""

FEW_ENOUGH = 10
"""So many more are simulated where that shows that no other mapping is better."""

MOST_TURNS = 30
"""So many mappings have their turn at most: to rule one out by `least` costs a tenth of a simulation."""

CLOSE_ENOUGH = 1.001
"""A mapping that cannot be faster than the best one simulated by this factor is not worth a simulation."""

NEARLY = 1.02
"""The first one to be simulated is the most promising of those within this factor of the least closed form."""


class Judge:
    """One kernel's candidates, and what the simulator made of some of them: `cycles` simulates a mapping.

    Turns are taken: the mapping of most promise, and the one with the least closed form, times what the simulator made
    of the last one of its family. The first one is looked for among those that are nearly the best by closed form.
    When its turn comes, a mapping is not simulated if `least`, a bound nearer to the simulator than the closed form
    that ranks, proves that it cannot win. No more than `most` are simulated, and no more than `MOST_TURNS` have a turn;
    but where `most` is not below `FEW_ENOUGH`, so are all that are left if they are as few, which proves that the
    leader is the best. `enough` may end it sooner.
    """

    def __init__(
        self,
        choices: Choices[KernelMapping],
        objective: Objective,
        cycles: Callable[[KernelMapping], float],
        most: int = MOST_SIMULATED,
        least: Callable[[KernelMapping], float] = lambda mapping: 0.0,
        enough: Callable[[], bool] = lambda: False,
    ):
        self.choices, self.cycles, self.least, self.most, self.enough = choices, cycles, least, most, enough
        self.objective: Objective = objective
        self.factors: dict[int, float] = {}
        self.tried: dict[KernelMapping, Ranking] = {}
        self.ruled_out = 0
        self.leader = self._simulated(self._first())

    def best(self) -> Choice[KernelMapping]:
        """The best of what was simulated; `Choice.open` says how many could still be better."""
        _, pool = self._before_the_leader()
        pool, leader = self._worthwhile(pool), self.leader
        while pool and self._goes_on():
            self._simulate(self._next_of(pool))
            if self.leader is not leader:
                pool, leader = self._worthwhile(pool), self.leader
        total, left = self._before_the_leader()
        if total <= FEW_ENOUGH <= self.most:
            while (left := self._worthwhile(left)) and not self.enough():
                self._simulate(left.pop())
            total, left = self._before_the_leader()
        first, (ranking, leader) = self.choices[0], self.leader
        others = (one for one in sorted(left, key=_ranking) if one.make().mapping not in self.tried)
        least = next((one.ranking[0] for one in others), ranking[0])
        return replace(
            leader,
            covered=first.covered,
            legal=first.legal,
            dominated=first.dominated,
            priced=first.priced,
            simulated=self.simulated,
            open=max(total, 0) if self.choices.complete else None,
            gain=1 - least / ranking[0] if ranking[0] else 0.0,
        )

    def _goes_on(self) -> bool:
        return self.simulated < self.most and len(self.tried) < MOST_TURNS and not self.enough()

    @property
    def simulated(self) -> int:
        """How many were simulated so far."""
        return len(self.tried) - self.ruled_out

    def _first(self) -> Choice[KernelMapping]:
        """The most promising of those that are nearly the best by closed form."""
        best = self.choices[0]
        slower = with_latency(best.ranking, self.objective, latency_of(best.ranking, self.objective) * NEARLY)
        _, rivals = self.choices.before(slower, 1)
        return min(rivals, key=_promise).make() if rivals else best

    def _next_of(self, pool: list[Rival[KernelMapping]]) -> Rival[KernelMapping]:
        """Takes the next one to be simulated out of the pool."""
        found = min(pool, key=_promise) if len(self.tried) % 2 == 0 else min(pool, key=self._expected)
        pool.remove(found)
        return found

    def _worthwhile(self, pool: list[Rival[KernelMapping]]) -> list[Rival[KernelMapping]]:
        """Those that may be better than the leader by enough."""
        return [one for one in pool if self._times(one, CLOSE_ENOUGH) < self.leader[0]]

    def _simulate(self, rival: Rival[KernelMapping]) -> None:
        """Simulates a mapping that may be better than the leader, unless it had its turn or proves not to be."""
        choice = rival.make()
        if choice.mapping in self.tried:
            return
        priced = latency_of(choice.ranking, self.objective)
        least = max(priced, self.least(choice.mapping))
        if with_latency(choice.ranking, self.objective, least) > self.leader[0]:
            self.ruled_out += 1
            self._note(choice, least)
        else:
            self.leader = min(self.leader, self._simulated(choice), key=lambda one: one[0])

    def _before_the_leader(self) -> tuple[int, list[Rival[KernelMapping]]]:
        """How many candidates may be better than the best one simulated, and the first of them."""
        ranking = self.leader[0]
        total, found = self.choices.before(ranking, MOST_SIMULATED + FEW_ENOUGH)
        return total - sum(priced < ranking for priced in self.tried.values()), found

    def _simulated(self, choice: Choice[KernelMapping]) -> tuple[Ranking, Choice[KernelMapping]]:
        """A choice with its ranking as the simulator sees it."""
        cycles = self.cycles(choice.mapping)
        self._note(choice, cycles)
        return with_latency(choice.ranking, self.objective, cycles), choice

    def _note(self, choice: Choice[KernelMapping], cycles: float) -> None:
        """Remembers that a choice had its turn, and how its family's closed forms compare."""
        self.tried[choice.mapping] = choice.ranking
        priced = latency_of(choice.ranking, self.objective)
        self.factors[choice.kin] = cycles / priced if priced else 1.0

    def _expected(self, rival: Rival[KernelMapping]) -> Ranking:
        return self._times(rival, self.factors.get(rival.kin, 1.0))

    def _times(self, rival: Rival[KernelMapping], factor: float) -> Ranking:
        """A rival's ranking if it takes so many times as long."""
        return with_latency(rival.ranking, self.objective, latency_of(rival.ranking, self.objective) * factor)


def _promise(rival: Rival[KernelMapping]) -> tuple[Ranking, Ranking]:
    return rival.promise, rival.ranking


def _ranking(rival: Rival[KernelMapping]) -> Ranking:
    return rival.ranking
