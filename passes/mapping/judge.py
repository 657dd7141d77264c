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


class Judge:
    """One kernel's candidates, and what the simulator made of some of them: `cycles` simulates a mapping.

    The first by closed form begins. Then turns are taken: the rival of most promise, and the one with the least closed
    form, times what the simulator made of the last one of its family.
    """

    def __init__(
        self,
        choices: Choices[KernelMapping],
        objective: Objective,
        cycles: Callable[[KernelMapping], float],
    ):
        self.choices, self.cycles = choices, cycles
        self.objective: Objective = objective
        self.factors: dict[int, float] = {}
        self.tried: dict[KernelMapping, Ranking] = {}
        self.leader = self._simulated(choices[0])

    def best(self) -> Choice[KernelMapping]:
        """The best of what was simulated; `Choice.open` says how many could still be better."""
        total, pool = self._before_the_leader()
        while pool and len(self.tried) < MOST_SIMULATED:
            self._simulate(self._next_of(pool))
            pool = [one for one in pool if one.ranking < self.leader[0]]
        total, left = self._before_the_leader()
        if total <= FEW_ENOUGH:
            for one in left:
                self._simulate(one)
            total, _ = self._before_the_leader()
        first = self.choices[0]
        return replace(
            self.leader[1],
            covered=first.covered,
            legal=first.legal,
            dominated=first.dominated,
            priced=first.priced,
            simulated=len(self.tried),
            open=total if self.choices.complete else None,
        )

    def _next_of(self, pool: list[Rival[KernelMapping]]) -> Rival[KernelMapping]:
        """Takes the next one to be simulated out of the pool."""
        promising = len(self.tried) % 2 == 1
        found = min(pool, key=lambda one: (one.promise, one.ranking) if promising else (self._expected(one),))
        pool.remove(found)
        return found

    def _simulate(self, rival: Rival[KernelMapping]) -> None:
        """Simulates a mapping that may be better than the leader, unless it was simulated before."""
        if rival.ranking < self.leader[0]:
            choice = rival.make()
            if choice.mapping not in self.tried:
                self.leader = min(self.leader, self._simulated(choice), key=lambda one: one[0])

    def _before_the_leader(self) -> tuple[int, list[Rival[KernelMapping]]]:
        """How many candidates may be better than the best one simulated, and the first of them."""
        ranking = self.leader[0]
        total, found = self.choices.before(ranking, MOST_SIMULATED + FEW_ENOUGH)
        return total - sum(priced < ranking for priced in self.tried.values()), found

    def _simulated(self, choice: Choice[KernelMapping]) -> tuple[Ranking, Choice[KernelMapping]]:
        """A choice with its ranking as the simulator sees it."""
        cycles = self.cycles(choice.mapping)
        self.tried[choice.mapping] = choice.ranking
        priced = latency_of(choice.ranking, self.objective)
        self.factors[choice.kin] = cycles / priced if priced else 1.0
        return with_latency(choice.ranking, self.objective, cycles), choice

    def _expected(self, rival: Rival[KernelMapping]) -> Ranking:
        cycles = latency_of(rival.ranking, self.objective) * self.factors.get(rival.kin, 1.0)
        return with_latency(rival.ranking, self.objective, cycles)
