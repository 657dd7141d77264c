"""Choose a mapping for every fused kernel: `tile-attention`.

    %o = flat.fused "attention" (%a = %q, ...) { ... }

    %o = flat.fused "attention" (%a = %q, ...) strategy "online" mapping #flat.mapping<...> { ... }

The pass sees a kernel as a problem (sizes, mask, storage) and the module's accelerator; the search is that of the
kernel's kind (`kinds`), knows no IR and ranks by closed form. The best of each family, and then whatever else may be
better, are scheduled and simulated, and the simulator decides. Kernels with equal problems are searched once. A given
mapping is taken as it is, if it can be scheduled at all.

Options: `strategy` (see `search.STRATEGIES`), `objective` (see `search.OBJECTIVES`), and `mapping`, the text of
one mapping or of one per kernel (see `mapping_text`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.passes.cost.bounds import AnyProblem
from flatc.passes.kinds.kind import KernelKind
from flatc.passes.kinds.registry import kind_of
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.mapping_text import parse_mappings
from flatc.passes.mapping.ranking import Objective, Ranking, objective_order
from flatc.passes.mapping.search import Choice, Choices, check_strategy
from flatc.passes.simulation.simulator import try_simulate


@dataclass(frozen=True)
class TileAttentionPass(ModulePass):
    """See the module docstring. After `apply`, `choices` tells by kernel what the search looked at."""

    name = "tile-attention"

    strategy: str = "auto"
    objective: str = "latency"
    mapping: str | None = None

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        tile_module(op, self.strategy, cast(Objective, self.objective), self.mapping)


@dataclass
class Tiling:
    """What tiling a module did: the choice of each searched kernel, by name."""

    choices: dict[str, Choice[KernelMapping]] = field(default_factory=dict[str, Choice[KernelMapping]])


def tile_module(module: ModuleOp, strategy: str, objective: Objective, mapping: str | None = None) -> Tiling:
    """Attaches a mapping to every fused kernel of `module`."""
    check_strategy(strategy, objective)
    accelerator = accelerator_of(module)
    kernels = [op for op in module.walk() if isinstance(op, FusedOp)]
    given = parse_mappings(mapping) if mapping is not None else {}
    _check_names(given, kernels)
    tiling = Tiling()
    search = _Search(accelerator, strategy, objective)
    for kernel in kernels:
        text = given.get(kernel.kernel.data, given.get(""))
        if text is not None:
            _attach_given(kernel, text, accelerator)
        elif given:
            raise FlatcError(
                f"the mapping file has no mapping for kernel '{kernel.kernel.data}'", position=position_of(kernel)
            )
        else:
            tiling.choices[kernel.kernel.data] = search.attach(kernel)
    return tiling


def _check_names(given: dict[str, KernelMapping], kernels: list[FusedOp]) -> None:
    names = [kernel.kernel.data for kernel in kernels]
    for name in given:
        if name and name not in names:
            raise FlatcError(
                f"there is a mapping for kernel '{name}', and no such kernel",
                help=did_you_mean(name, names) or f"the kernels are {', '.join(names)}",
            )


def _attach_given(kernel: FusedOp, mapping: KernelMapping, accelerator: Accelerator) -> None:
    kind, name = kind_of(kernel), kernel.kernel.data
    kind.check(kind.match(kernel).problem, kind.own(mapping, name), accelerator, name)
    kernel.mapping, kernel.strategy = MappingAttr(mapping), StringAttr("given")


MOST_EFFORT = 40_000
"""What simulating one mapping may take, in events walked, before it is judged on a shorter problem: about 0.2 s."""

MOST_SIMULATED = 10
"""How many mappings of a kernel are simulated at most: about 0.15 s. `Choice.open` says what was left."""

FEW_ENOUGH = 10
"""So many more are simulated where that shows that no other mapping is better."""


class _Search:
    """The search of all kernels of a module, each problem once."""

    def __init__(self, accelerator: Accelerator, strategy: str, objective: Objective):
        self.accelerator, self.strategy = accelerator, strategy
        self.objective: Objective = objective
        self._found: dict[tuple[str, AnyProblem], Choice[KernelMapping]] = {}

    def attach(self, kernel: FusedOp) -> Choice[KernelMapping]:
        """Gives a kernel the best mapping."""
        kind = kind_of(kernel)
        problem: AnyProblem = kind.match(kernel).problem
        choice = self._found.get((kind.name, problem))
        if choice is None:
            found = kind.find(problem, self.accelerator, self.strategy, self.objective, kernel.kernel.data)
            choices = cast("Choices[KernelMapping]", found) if isinstance(found, Choices) else Choices(found)
            judge = Judge(choices, self.objective, lambda one: self._judged_cycles(kernel, kind, problem, one))
            choice = self._found[kind.name, problem] = judge.best()
        kernel.mapping, kernel.strategy = MappingAttr(choice.mapping), StringAttr(choice.strategy)
        return choice

    def _judged_cycles(
        self, kernel: FusedOp, kind: KernelKind[Any, Any], problem: AnyProblem, mapping: KernelMapping
    ) -> float:
        """Simulated latency; where that takes too long, the closed form scaled by how far it is off when shortened."""
        found = try_simulate(lower_kernel_alone(kernel, mapping), self.accelerator, MOST_EFFORT)
        if found is not None:
            return float(found.latency_cycles)
        whole = float(kind.price(problem, self.accelerator, mapping).latency_cycles[0])
        short = kind.shortened(problem, mapping)
        simulated = try_simulate(lower_kernel_alone(kernel, mapping, short), self.accelerator, MOST_EFFORT)
        if simulated is None:
            return whole
        return (
            whole
            * float(simulated.latency_cycles)
            / float(kind.price(short, self.accelerator, mapping).latency_cycles[0])
        )


class Judge:
    """Simulates candidates until none can be better than the best, or enough is enough.

    The closed form never lies above the simulator, so a candidate that it ranks behind the best one simulated cannot
    win. The first by closed form begins. Then turns are taken: the most promising one, and the one with the
    least closed form, times what the simulator made of the last one of its family.
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
        while len(self.tried) < MOST_SIMULATED and (pool := self._before_the_leader()[1]):
            while pool and len(self.tried) < MOST_SIMULATED:
                self._simulate_one_of(pool)
                pool = [one for one in pool if self._is_open(one)]
        total, left = self._before_the_leader()
        if total <= FEW_ENOUGH:
            for one in left:
                if self._is_open(one):
                    self._simulate(one)
            total, left = self._before_the_leader()
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

    def _simulate_one_of(self, pool: list[Choice[KernelMapping]]) -> None:
        promising = len(self.tried) % 2 == 1
        self._simulate(min(pool, key=lambda one: (one.promise, one.ranking) if promising else (self._expected(one),)))

    def _simulate(self, choice: Choice[KernelMapping]) -> None:
        self.leader = min(self.leader, self._simulated(choice), key=lambda one: one[0])

    def _is_open(self, choice: Choice[KernelMapping]) -> bool:
        """Whether a choice may be better than the best one simulated."""
        return choice.mapping not in self.tried and choice.ranking < self.leader[0]

    def _before_the_leader(self) -> tuple[int, list[Choice[KernelMapping]]]:
        """How many candidates may be better than the best one simulated, and the first of them."""
        ranking = self.leader[0]
        total, found = self.choices.before(ranking, 2 * (MOST_SIMULATED + FEW_ENOUGH))
        tried = sum(priced < ranking for priced in self.tried.values())
        return total - tried, [one for one in found if self._is_open(one)]

    def _simulated(self, choice: Choice[KernelMapping]) -> tuple[Ranking, Choice[KernelMapping]]:
        """A choice with its ranking as the simulator sees it."""
        cycles = self.cycles(choice.mapping)
        self.tried[choice.mapping] = choice.ranking
        priced = _latency_of(choice.ranking, self.objective)
        self.factors[choice.kin] = cycles / priced if priced else 1.0
        return _with_latency(choice.ranking, self.objective, cycles), choice

    def _expected(self, choice: Choice[KernelMapping]) -> Ranking:
        cycles = _latency_of(choice.ranking, self.objective) * self.factors.get(choice.kin, 1.0)
        return _with_latency(choice.ranking, self.objective, cycles)


def _latency_of(ranking: Ranking, objective: Objective) -> float:
    return ranking[objective_order(objective).index("latency")]


def _with_latency(ranking: Ranking, objective: Objective, cycles: float) -> Ranking:
    """A ranking (objective, then the others in order, then footprint) with another latency."""
    order = objective_order(objective)
    found = dict(zip(order, ranking, strict=False))
    found["edp"] *= cycles / found["latency"] if found["latency"] else 1.0
    found["latency"] = cycles
    return (*(found[name] for name in order), *ranking[len(order) :])
