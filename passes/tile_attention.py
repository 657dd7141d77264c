"""Choose a mapping for every fused kernel: `tile-attention`.

    %o = flat.fused "attention" (%a = %q, ...) { ... }

    %o = flat.fused "attention" (%a = %q, ...) strategy "online" mapping #flat.mapping<...> { ... }

The pass sees a kernel as a problem (sizes, mask, storage) and the module's accelerator; the search is that of the
kernel's kind (`kinds`), knows no IR and ranks by closed form. The best of each family, and then whatever else may be
better, are scheduled and simulated, and the simulator decides. Where much is left open in auto's space, the spaces of
strategies that are part of it are searched as well. Kernels with equal problems are searched once. A given mapping is
taken as it is, if it can be scheduled at all.

Options: `strategy` (see `search.STRATEGIES`), `objective` (see `search.OBJECTIVES`), and `mapping`, the text of
one mapping or of one per kernel (see `mapping_text`).
"""

from __future__ import annotations

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
from flatc.passes.mapping.judge import Judge
from flatc.passes.mapping.mapping_text import parse_mappings
from flatc.passes.mapping.ranking import OBJECTIVES, Objective, Ranking, objectives
from flatc.passes.mapping.search import Choice, Choices, check_strategy
from flatc.passes.simulation.budget import Budget
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


def tile_module(
    module: ModuleOp,
    strategy: str,
    objective: Objective,
    mapping: str | None = None,
    search: KernelSearch | None = None,
) -> Tiling:
    """Attaches a mapping to every fused kernel of `module`; a `search` that has begun goes on."""
    check_strategy(strategy, objective)
    accelerator = accelerator_of(module)
    kernels = [op for op in module.walk() if isinstance(op, FusedOp)]
    given = parse_mappings(mapping) if mapping is not None else {}
    _check_names(given, kernels)
    tiling = Tiling()
    search = search or KernelSearch(accelerator, strategy, objective)
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
    kind.check(kind.region(kernel).problem, kind.own(mapping, name), accelerator, name)
    kernel.mapping, kernel.strategy = MappingAttr(mapping), StringAttr("given")


def _problem_of(kernel: FusedOp) -> tuple[KernelKind[Any, Any], AnyProblem]:
    kind = kind_of(kernel)
    return kind, kind.region(kernel).problem


MOST_EFFORT = 40_000
"""What simulating one mapping may take, in events walked, before it is judged on a shorter problem: about 0.2 s."""

LITTLE_EFFORT = 8_000
"""The same where the closed form comes near, so that the mapping may be judged by that."""

ENOUGH_EFFORT = 16_000
"""What simulating mappings of one space may take together, in events walked, before the best so far is taken."""


class KernelSearch:
    """The search of all kernels of a module, each problem once."""

    def __init__(self, accelerator: Accelerator, strategy: str, objective: Objective):
        self.accelerator, self.strategy = accelerator, strategy
        self.objective: Objective = objective
        self._choices: dict[tuple[str, AnyProblem, int], Choices[KernelMapping]] = {}
        self._judged: dict[tuple[str, AnyProblem, int], tuple[Ranking, Choice[KernelMapping]]] = {}
        self._least: dict[tuple[AnyProblem, KernelMapping], float] = {}
        self._known: dict[tuple[AnyProblem, KernelMapping], Ranking] = {}

    def attach(self, kernel: FusedOp, reserved_bytes: int = 0) -> Choice[KernelMapping]:
        """Gives a kernel the best mapping that leaves so many bytes of the buffer to others."""
        _, choice = self._best(kernel, reserved_bytes)
        kernel.mapping, kernel.strategy = MappingAttr(choice.mapping), StringAttr(choice.strategy)
        return choice

    def priced(self, kernel: FusedOp) -> Ranking:
        """The ranking of the best mapping by closed form, which nothing ranks before."""
        return self._found(kernel)[0].ranking

    def simulated(self, kernel: FusedOp) -> Ranking:
        """The ranking of the best mapping, with its simulated latency."""
        return self._best(kernel)[0]

    def judged(self, kernel: FusedOp) -> Ranking:
        """The ranking of the mapping that a kernel has, with its simulated latency."""
        kind, problem = _problem_of(kernel)
        mapping = kind.mapping_of(kernel)
        found = self._known.get((problem, mapping))
        if found is None:
            form = kind.price(problem, self.accelerator, mapping)
            cycles = self._judged_cycles(kernel, kind, problem, mapping)
            energy, offchip = float(form.energy_pj[0]), float(form.offchip_bytes[0])
            found = self._known[problem, mapping] = tuple(objectives(self.objective, cycles, energy, offchip))
        return found

    def _best(self, kernel: FusedOp, reserved_bytes: int = 0) -> tuple[Ranking, Choice[KernelMapping]]:
        kind, problem = _problem_of(kernel)
        found = self._judged.get((kind.name, problem, reserved_bytes))
        if found is None:
            choices = self._found(kernel, reserved_bytes)
            found = self._judge(kernel, choices)
            self._judged[kind.name, problem, reserved_bytes] = found
            self._known[problem, found[1].mapping] = found[0][: len(OBJECTIVES)]
        return found

    def _machine(self, reserved_bytes: int) -> Accelerator:
        """The accelerator without so many bytes of its buffer."""
        buffer = self.accelerator.buffer
        left = replace(buffer, capacity_bytes=buffer.capacity_bytes - reserved_bytes)
        return replace(self.accelerator, buffer=left) if reserved_bytes else self.accelerator

    def _judge(self, kernel: FusedOp, choices: Choices[KernelMapping]) -> tuple[Ranking, Choice[KernelMapping]]:
        """The best of some choices, with its ranking as the simulator sees it."""
        kind, problem = _problem_of(kernel)
        effort = Budget(None)
        judge = Judge(
            choices,
            self.objective,
            lambda one: self._judged_cycles(kernel, kind, problem, one, effort),
            least=lambda one: self._least_cycles(kind, problem, one),
            enough=lambda: effort.spent > ENOUGH_EFFORT,
        )
        return judge.best()

    def _found(self, kernel: FusedOp, reserved_bytes: int = 0) -> Choices[KernelMapping]:
        kind, problem = _problem_of(kernel)
        choices = self._choices.get((kind.name, problem, reserved_bytes))
        if choices is None:
            machine = self._machine(reserved_bytes)
            found = kind.find(problem, machine, self.strategy, self.objective, kernel.kernel.data)
            choices = cast("Choices[KernelMapping]", found) if isinstance(found, Choices) else Choices(found)
            self._choices[kind.name, problem, reserved_bytes] = choices
        return choices

    def _least_cycles(self, kind: KernelKind[Any, Any], problem: AnyProblem, mapping: KernelMapping) -> float:
        found = self._least.get((problem, mapping))
        if found is None:
            found = self._least[problem, mapping] = kind.least_cycles(problem, self.accelerator, mapping)
        return found

    def _judged_cycles(
        self,
        kernel: FusedOp,
        kind: KernelKind[Any, Any],
        problem: AnyProblem,
        mapping: KernelMapping,
        effort: Budget | None = None,
    ) -> float:
        """Simulated latency, whose effort is added up. Where that takes too long, the closed form, or, where that is
        not near, the closed form scaled by how far it is off when the kernel is shortened."""
        near = bool(self._least_cycles(kind, problem, mapping))
        budget = Budget(LITTLE_EFFORT if near else MOST_EFFORT)
        found = try_simulate(lower_kernel_alone(kernel, mapping), self.accelerator, budget)
        if effort is not None:
            effort.spend(budget.spent)
        if found is not None:
            return float(found.latency_cycles)
        if near:
            return self._least_cycles(kind, problem, mapping)
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
