"""Simulate what may be better until the best is known, or enough is enough.

    Judge(choices, "latency", cycles, least).best()         # (ranking, Choice(mapping, simulated=2, open=477, ...))

A search ranks mappings by closed form, which never lies above the simulator. So a mapping that it ranks behind the best
one simulated cannot win, and the others are rivals: `Choices.before` counts them and gives the first. A rival is judged
in three steps, each much dearer than the one before: the closed form of the search; a walk through the trips of its
pipeline, which bounds its latency as well, from so near below that it tells who is the best; and the simulation. Only
some rivals have their turn, those that promise most; what is left is counted (`Choice.open`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flatc.dialects.kernel_mapping import KernelMapping
from flatc.passes.mapping.ranking import CLOSE_ENOUGH, Objective, Ranking, latency_of, with_latency
from flatc.passes.mapping.search import Choice, Choices, Name, Rival

MOST_SIMULATED = 10
"""How many mappings of a kernel are simulated at most: about 0.15 s. `Choice.open` says what was left."""

FEW_ENOUGH = 10
"""So many more are simulated where that shows that no other mapping is better."""

MOST_TURNS = 60
"""So many mappings have their turn at most: a walk takes a tenth of a simulation or less."""

NEARLY = 1.02
"""The first one to have its turn is the most promising of those within this factor of the least closed form."""

Candidate = tuple[Ranking, Choice[KernelMapping]]
"""A mapping, ranked with the latency that is known of it."""


class Judge:
    """One kernel's candidates, and what the simulator made of some of them: `cycles` simulates a mapping.

    Turns are taken: the mapping of most promise, and the one with the least closed form, times what the last one of its
    family turned out as. The first one is looked for among those that are nearly the best by closed form. In its turn a
    mapping gets a tighter bound by `least`; where it is 0, for none is known, the mapping is simulated at once. When
    the turns are over, the mappings of the least bounds are simulated, until none may be better than the leader. No
    more than `most` are simulated, and no more than `MOST_TURNS` have a turn; but where `most` is not below
    `FEW_ENOUGH`, so have all that are left if they are as few, which proves that the leader is the best. `enough` may
    end it sooner. A thousandth of the latency is given for less energy and traffic.
    """

    def __init__(
        self,
        choices: Choices[KernelMapping],
        objective: Objective,
        cycles: Callable[[KernelMapping], float],
        least: Callable[[KernelMapping], float] = lambda mapping: 0.0,
        most: int = MOST_SIMULATED,
        enough: Callable[[], bool] = lambda: False,
    ):
        self.choices, self.cycles, self.least, self.most, self.enough = choices, cycles, least, most, enough
        self.objective: Objective = objective
        self.factors: dict[int, float] = {}
        self.tried: set[Name] = set()
        """Those that had their turn."""
        self.walked: list[Candidate] = []
        """Those that have a tighter bound and were not simulated."""
        self.seen: list[Candidate] = []
        """Those that were simulated."""
        self.leader: Candidate | None = None

    def best(self) -> Candidate:
        """The best of what was simulated, as the simulator ranks it; `Choice.open` says how many may be better."""
        self._turn(self._first())
        self._take_turns()
        while self._goes_on() and self._simulate_the_first():
            self._take_turns()
        self._finish_a_few()
        self._settle_for_less()
        assert self.leader is not None
        ranking, leader = self.leader
        total, rivals = self._rivals(ranking)
        others = [one.ranking for one in rivals]
        faster = [one for one, _ in (*self.walked, *self.seen) if one < ranking]
        least = min([ranking, *others, *faster])[0]
        first = self.choices[0]
        return ranking, replace(
            leader,
            covered=first.covered,
            legal=first.legal,
            dominated=first.dominated,
            priced=first.priced,
            simulated=self.simulated,
            open=total + len(faster) if self.choices.complete else None,
            gain=1 - least / ranking[0] if ranking[0] else 0.0,
        )

    @property
    def simulated(self) -> int:
        """How many were simulated so far."""
        return len(self.seen)

    # --- Turns ----------------------------------------------------------------------------------------------

    def _first(self) -> Rival[KernelMapping]:
        """The most promising of those that are nearly the best by closed form."""
        best = self.choices.best()
        _, rivals = self.choices.before(self._times(best.ranking, NEARLY), 1)
        return min(rivals, key=_promise) if rivals else best

    def _goes_on(self) -> bool:
        """Whether more may be simulated; one has to be."""
        return self.leader is None or (self.simulated < self.most and not self.enough())

    def _take_turns(self) -> None:
        """Turns of those that may be better than the best known, as long as there is room."""
        pool: list[Rival[KernelMapping]] = []
        while self._goes_on() and len(self.tried) < MOST_TURNS:
            best = self._best_known()
            pool = self._worthwhile(pool, best) or self._worthwhile(self._rivals(best)[1], best)
            if not pool:
                return
            self._turn(self._next_of(pool))

    def _turn(self, rival: Rival[KernelMapping]) -> None:
        """Bounds a mapping, or simulates it where no tighter bound is known."""
        self.tried.add(rival.name)
        choice = rival.make()
        priced = latency_of(choice.ranking, self.objective)
        least = self.least(choice.mapping)
        if not least:
            self._simulate(choice)
            return
        self.factors[choice.kin] = least / priced if priced else 1.0
        self.walked.append((with_latency(choice.ranking, self.objective, max(least, priced)), choice))

    def _next_of(self, pool: list[Rival[KernelMapping]]) -> Rival[KernelMapping]:
        """Takes the next one out of the pool."""
        found = min(pool, key=_promise) if len(self.tried) % 2 == 0 else min(pool, key=self._expected)
        pool.remove(found)
        return found

    # --- Simulations ----------------------------------------------------------------------------------------

    def _simulate(self, choice: Choice[KernelMapping]) -> Candidate:
        """Simulates a mapping, which may be the new leader."""
        cycles = self.cycles(choice.mapping)
        priced = latency_of(choice.ranking, self.objective)
        self.factors[choice.kin] = cycles / priced if priced else 1.0
        found = with_latency(choice.ranking, self.objective, cycles), choice
        self.seen.append(found)
        self.leader = found if self.leader is None else min(self.leader, found, key=_of_candidate)
        return found

    def _simulate_the_first(self) -> bool:
        """Simulates one of those that were walked through, if it may be better than the leader by enough.

        Of about the least latencies, the one that costs least: as a rule it turns out to be the choice.
        """
        first = min(self.walked, key=_of_candidate, default=None)
        if first is None or (self.leader is not None and not self._times(first[0], CLOSE_ENOUGH) < self.leader[0]):
            return False
        self._simulate_walked(self._cheapest(self.walked, first[0]))
        return True

    def _simulate_walked(self, candidate: Candidate) -> None:
        self.walked.remove(candidate)
        self._simulate(candidate[1])

    def _cheapest(self, candidates: list[Candidate], fastest: Ranking) -> Candidate:
        """Where latency counts, the one that costs least of those about as fast as the fastest."""
        if self.objective != "latency":
            return min(candidates, key=_of_candidate)
        slowest = self._times(fastest, CLOSE_ENOUGH)[0]
        return min((one for one in candidates if one[0][0] <= slowest), key=lambda one: (one[0][1:], one[0]))

    def _finish_a_few(self) -> None:
        """Where few are left, all of them have their turn."""
        assert self.leader is not None
        total, left = self._rivals(self.leader[0])
        if not total <= FEW_ENOUGH <= self.most:
            return
        for rival in self._worthwhile(left, self.leader[0]):
            if self.enough():
                return
            self._turn(rival)
        while not self.enough() and self._simulate_the_first():
            pass

    def _settle_for_less(self) -> None:
        """Where latency counts, the one that costs least of those about as fast as the leader takes its place."""
        if self.objective != "latency":
            return
        assert self.leader is not None
        fastest = self._best_known()
        found = self._cheapest([*self.seen, *self.walked, self.leader], fastest)
        if found in self.walked:
            self._simulate_walked(found)
            found = self.seen[-1]
        if found[0][0] <= self._times(fastest, CLOSE_ENOUGH)[0]:
            self.leader = found

    # --- Rivals ---------------------------------------------------------------------------------------------

    def _best_known(self) -> Ranking:
        """What a mapping must be better than to be of interest; walks are about as long as simulations."""
        known = [one for one, _ in self.walked]
        return min([*known, self.leader[0]]) if self.leader is not None else min(known, default=(float("inf"),))

    def _rivals(self, ranking: Ranking) -> tuple[int, list[Rival[KernelMapping]]]:
        """How many candidates without a turn may be better than a ranking, and the first of them."""
        return self.choices.before(ranking, MOST_SIMULATED + FEW_ENOUGH, self.tried, closely=True)

    def _worthwhile(self, pool: list[Rival[KernelMapping]], best: Ranking) -> list[Rival[KernelMapping]]:
        """Those that may be better by enough."""
        return [one for one in pool if self._times(one.ranking, CLOSE_ENOUGH) < best]

    def _expected(self, rival: Rival[KernelMapping]) -> Ranking:
        return self._times(rival.ranking, self.factors.get(rival.kin, 1.0))

    def _times(self, ranking: Ranking, factor: float) -> Ranking:
        """A ranking where it takes so many times as long."""
        return with_latency(ranking, self.objective, latency_of(ranking, self.objective) * factor)


def _promise(rival: Rival[KernelMapping]) -> tuple[Ranking, Ranking]:
    return rival.promise, rival.ranking


def _of_candidate(candidate: Candidate) -> Ranking:
    return candidate[0]
