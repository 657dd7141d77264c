"""Choose a mapping for every fused kernel: `tile-attention`.

    %o = flat.fused "attention" (%a = %q, ...) { ... }

    %o = flat.fused "attention" (%a = %q, ...) strategy "online" mapping #flat.mapping<...> { ... }

The pass sees a kernel as a problem (sizes, mask, storage) and the module's accelerator; the search itself is
`flatc.passes.mapping.search`, knows no IR and ranks by closed form. Its best few, one of each family, are then
scheduled and simulated, and the simulator decides. A given mapping is taken as it is, if it can be scheduled at all.

Options: `strategy` (see `search.STRATEGIES`), `objective` (see `search.OBJECTIVES`), and `mapping`, the text of
one mapping or of one per kernel (see `mapping_text`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.legal_mapping import check_mapping
from flatc.passes.mapping.mapping_text import parse_mappings
from flatc.passes.mapping.search import OBJECTIVES, Choice, Objective, check_strategy, find_mappings
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

    choices: dict[str, Choice] = field(default_factory=dict[str, Choice])


def tile_module(module: ModuleOp, strategy: str, objective: Objective, mapping: str | None = None) -> Tiling:
    """Attaches a mapping to every fused kernel of `module`."""
    check_strategy(strategy, objective)
    accelerator = accelerator_of(module)
    kernels = [op for op in module.walk() if isinstance(op, FusedOp)]
    given = parse_mappings(mapping) if mapping is not None else {}
    _check_names(given, kernels)
    tiling = Tiling()
    for kernel in kernels:
        text = given.get(kernel.kernel.data, given.get(""))
        if text is not None:
            _attach_given(kernel, text, accelerator)
        elif given:
            raise FlatcError(
                f"the mapping file has no mapping for kernel '{kernel.kernel.data}'", position=position_of(kernel)
            )
        else:
            tiling.choices[kernel.kernel.data] = _attach_best(kernel, accelerator, strategy, objective)
    return tiling


def _check_names(given: dict[str, Mapping], kernels: list[FusedOp]) -> None:
    names = [kernel.kernel.data for kernel in kernels]
    for name in given:
        if name and name not in names:
            raise FlatcError(
                f"there is a mapping for kernel '{name}', and no such kernel",
                help=did_you_mean(name, names) or f"the kernels are {', '.join(names)}",
            )


def _attach_given(kernel: FusedOp, mapping: Mapping, accelerator: Accelerator) -> None:
    check_mapping(match_kernel(kernel).problem, mapping, accelerator, kernel.kernel.data)
    kernel.mapping, kernel.strategy = MappingAttr(mapping), StringAttr("given")


def _attach_best(kernel: FusedOp, accelerator: Accelerator, strategy: str, objective: Objective) -> Choice:
    problem = match_kernel(kernel).problem
    whole = problem.has("logit") and problem.has("softmax") and problem.has("attend")
    if strategy == "unfused" and whole:
        raise FlatcError(
            f"kernel '{kernel.kernel.data}' is fused and the strategy is unfused",
            position=position_of(kernel),
            help='run fuse-attention{groups="logit","mask+softmax","attend"} before',
        )
    name = strategy if whole else "unfused"
    choices = find_mappings(problem, accelerator, name, objective, kernel=kernel.kernel.data)
    choice = _simulated_best(kernel, choices, accelerator, objective)
    kernel.mapping, kernel.strategy = MappingAttr(choice.mapping), StringAttr(choice.strategy)
    return choice


MOST_EFFORT = 40_000
"""What simulating one mapping may take, in events walked, before it is judged on a shorter problem: about 0.2 s."""


def _simulated_best(kernel: FusedOp, choices: list[Choice], accelerator: Accelerator, objective: Objective) -> Choice:
    """The best of the choices by simulated latency.

    The closed form never lies above the simulator, so a choice that its closed form ranks behind what was simulated
    cannot win and is not simulated.
    """
    best: tuple[tuple[float, ...], Choice] | None = None
    for choice in choices:
        if best is not None and choice.ranking >= best[0]:
            break
        ranking = _with_latency(choice.ranking, objective, _judged_cycles(kernel, choice.mapping, accelerator))
        if best is None or ranking < best[0]:
            best = ranking, choice
    assert best is not None
    return best[1]


def _judged_cycles(kernel: FusedOp, mapping: Mapping, accelerator: Accelerator) -> float:
    """Simulated latency; where that takes too long, the closed form scaled by how far it is off when shortened."""
    found = try_simulate(lower_kernel_alone(kernel, mapping), accelerator, MOST_EFFORT)
    if found is not None:
        return float(found.latency_cycles)
    problem = match_kernel(kernel).problem
    whole = float(evaluate_mapping(problem, accelerator, mapping).latency_cycles[0])
    short = _shortened(problem, mapping)
    simulated = try_simulate(lower_kernel_alone(kernel, mapping, short), accelerator, MOST_EFFORT)
    if simulated is None:
        return whole
    return (
        whole * float(simulated.latency_cycles) / float(evaluate_mapping(short, accelerator, mapping).latency_cycles[0])
    )


def _shortened(problem: AttentionProblem, mapping: Mapping) -> AttentionProblem:
    """A problem of the same kind with few tiles of each dimension and no mask, which repeats itself soon."""
    tiles = mapping.tiles
    return replace(
        problem,
        batch=min(problem.batch, 2 * tiles.batch),
        kv_heads=min(problem.kv_heads, 2 * tiles.kv_head),
        group=min(problem.group, 2 * tiles.group),
        queries=min(problem.queries, 12 * tiles.query),
        keys=min(problem.keys, 24 * tiles.key),
        mask=None,
    )


def _with_latency(ranking: tuple[float, ...], objective: Objective, cycles: float) -> tuple[float, ...]:
    """A ranking (objective, then the others in order, then footprint) with another latency."""
    order = [objective, *(other for other in OBJECTIVES if other != objective)]
    found = dict(zip(order, ranking, strict=False))
    found["edp"] *= cycles / found["latency"]
    found["latency"] = cycles
    return (*(found[name] for name in order), *ranking[len(order) :])
