"""Which candidates are simulated: the closed form is a lower bound, and the best of few is always found."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.mapping.judge import CLOSE_ENOUGH, FEW_ENOUGH, MOST_SIMULATED, Judge
from flatc.passes.mapping.search import Choice, Choices

MAPPING = Mapping(
    Tiles(1, 1, 1, 1, 1, 1, 1),
    Keep(1, 1, 1, 1, 1),
    ArrayUse("output"),
    ArrayUse("output"),
    Softmax("online"),
    Stages(0, 0, 0, 0, 0),
)


def simulated_best(seed: int, count: int) -> tuple[Choice[KernelMapping], float]:
    """What the judge makes of candidates that take longer than their closed forms, and how near it is to the best."""
    rng = random.Random(seed)
    found: list[Choice[KernelMapping]] = [
        Choice(replace(MAPPING, interleave=i + 1), "online", count, count, (closed, 1.0, closed, 1.0), kin=i % 3)
        for i, closed in enumerate(sorted(rng.randint(100, 120) * 1.0 for _ in range(count)))
    ]
    cycles = {one.mapping: one.ranking[0] * rng.choice([1.02, 1.1, 1.5]) for one in found}
    choices = Choices(found)
    choices.complete = True
    choice = Judge(choices, "latency", lambda mapping: cycles[mapping]).best()[1]
    assert choice.simulated <= MOST_SIMULATED + FEW_ENOUGH
    return choice, min(cycles.values()) / cycles[choice.mapping]


@pytest.mark.parametrize("seed", range(20))
def test_where_nothing_is_left_open_the_best_of_all_was_found(seed: int):
    choice, ratio = simulated_best(seed, 4 + seed)
    if not choice.open:
        assert ratio == 1
    else:
        assert choice.simulated == MOST_SIMULATED or choice.gain < CLOSE_ENOUGH - 1
    assert ratio >= 1 - choice.gain


def test_what_cannot_be_better_by_much_is_not_simulated():
    """99 mappings whose closed forms lie 0.05 % below what the first is simulated as."""
    found: list[Choice[KernelMapping]] = [
        Choice(replace(MAPPING, interleave=i + 1), "online", 100, 100, (1000.0 + i / 1000, 1.0, 1000.0 + i / 1000, 1.0))
        for i in range(100)
    ]
    choices = Choices(found)
    choices.complete = True
    choice = Judge(choices, "latency", lambda mapping: 1000.5).best()[1]
    assert (choice.simulated, choice.open) == (1, 99)
    assert 0.00049 < choice.gain < 0.0005


def test_a_few_candidates_are_never_left_open():
    """But for those that cannot be better by a thousandth."""
    assert all(simulated_best(seed, MOST_SIMULATED)[0].gain < CLOSE_ENOUGH - 1 for seed in range(20))
    assert any(simulated_best(seed, 200)[0].open for seed in range(20))


@pytest.mark.parametrize(("slower", "settles"), [(1.0005, True), (1.002, False)])
def test_less_energy_is_worth_a_thousandth_of_the_latency(slower: float, settles: bool):
    """The frugal mapping is a little slower than the fast one, and takes half the energy."""
    fast, frugal = (replace(MAPPING, interleave=i + 1) for i in range(2))
    cycles: dict[KernelMapping, float] = {fast: 1000.0, frugal: 1000.0 * slower}
    energy = {fast: 2.0, frugal: 1.0}
    found: list[Choice[KernelMapping]] = [
        Choice(one, "online", 2, 2, (990.0, energy[one], 990.0 * energy[one], 1.0), kin=i)
        for i, one in enumerate((fast, frugal))
    ]
    choices = Choices(found)
    choices.complete = True
    ranking, choice = Judge(choices, "latency", lambda one: cycles[one], least=lambda one: cycles[one] * 0.9999).best()
    assert choice.mapping == (frugal if settles else fast)
    assert ranking[0] == cycles[choice.mapping]
    assert (choice.open, choice.gain > 0) == ((1, True) if settles else (0, False))
