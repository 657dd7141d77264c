"""The Pareto fronts of a graph: for each attention, the mappings that none beats in one objective without losing in the
other.

    found = pareto("examples/bert_base.flat", ("latency", "energy"), "edge", simulate=True)
    [(point.latency_cycles, point.energy_pj, point.mapping) for point in found.fronts[0].points]
    print(to_text(found))

A front is over the whole map space of a strategy, by closed form: exact for energy and bytes, a lower bound for
latency. With `simulate` the latency of every mapping on it is simulated, and those that turn out to be beaten are
dropped; which of the others in the space would then be on it is not asked. Kernels that are no attention have no front
here, for their searches do not price the whole of their spaces.
"""

from __future__ import annotations

from collections.abc import Mapping as Named
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, cast

from xdsl.dialects.builtin import ModuleOp

from flatc.compiler import UNFUSED_GROUPS, apply, load_module, on_machine
from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.mapping.mapping_text import format_mappings
from flatc.passes.mapping.ranking import OBJECTIVES, Objective, objective_order
from flatc.passes.mapping.search import check_strategy

if TYPE_CHECKING:
    from flatc.builder import Graph

UNITS: dict[Objective, str] = {"latency": "cycles", "energy": "pJ", "edp": "pJ cycles", "offchip": "B"}


@frozen
class Point:
    """A mapping and what it costs; `simulated` says whether the latency is, or a lower bound."""

    mapping: Mapping
    latency_cycles: float
    energy_pj: float
    offchip_bytes: int
    simulated: bool = False

    def cost(self, objective: Objective) -> float:
        """The figure of one objective."""
        return {
            "latency": self.latency_cycles,
            "energy": self.energy_pj,
            "edp": self.latency_cycles * self.energy_pj,
            "offchip": float(self.offchip_bytes),
        }[objective]


@frozen
class Front:
    """The front of one kernel's `legal` mappings, from the least first objective to the least second one."""

    kernel: str
    legal: int
    points: tuple[Point, ...]


@frozen
class Fronts:
    """The fronts of the attentions of a graph."""

    graph: str
    accelerator: str
    strategy: str
    objectives: tuple[Objective, Objective]
    fronts: tuple[Front, ...]


def pareto(
    graph: str | PathLike[str] | Graph | ModuleOp,
    objectives: Sequence[str],
    accelerator: str | PathLike[str] | Accelerator | None = None,
    *,
    strategy: str = "auto",
    simulate: bool = False,
    bindings: Named[str, int] | None = None,
    phase: str | None = None,
    buffer_limit: str | None = None,
    max_bandwidth: str | None = None,
) -> Fronts:
    """The fronts of two objectives; the other arguments are those of `flatc.compile`. Raises `FlatcError`."""
    pair = _pair(objectives)
    check_strategy(strategy, pair[0])
    module = on_machine(load_module(graph, bindings, phase), accelerator, buffer_limit, max_bandwidth)
    machine = accelerator_of(module)
    fronts = tuple(_front(kernel, machine, strategy, pair, simulate) for kernel in _attentions(module, strategy))
    if not fronts:
        raise FlatcError("the graph has no attention to map", help="give it an attention(q, k, v)")
    return Fronts(_name(module), machine.name, strategy, pair, fronts)


def _pair(objectives: Sequence[str]) -> tuple[Objective, Objective]:
    for name in objectives:
        if name not in OBJECTIVES:
            raise FlatcError(
                f"unknown objective '{name}'",
                help=did_you_mean(name, OBJECTIVES) or f"choose two of {', '.join(OBJECTIVES)}",
            )
    if len(objectives) != 2 or objectives[0] == objectives[1]:
        raise FlatcError("a front is of two different objectives", help="write --objectives latency,energy")
    return cast("tuple[Objective, Objective]", tuple(objectives))


def _attentions(module: ModuleOp, strategy: str) -> list[FusedOp]:
    """The kernels of the graph that are attentions, or parts of one."""
    from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass

    apply(FuseAttentionPass(UNFUSED_GROUPS if strategy == "unfused" else (WHOLE,)), module)
    return [op for op in module.walk() if isinstance(op, FusedOp) and op.mapping is None]


def _name(module: ModuleOp) -> str:
    from xdsl.dialects.func import FuncOp

    return next(op.sym_name.data for op in module.ops if isinstance(op, FuncOp))


def _front(
    kernel: FusedOp, machine: Accelerator, strategy: str, pair: tuple[Objective, Objective], simulate: bool
) -> Front:
    from flatc.passes.kernels.problem import match_kernel
    from flatc.passes.mapping.pareto_front import pareto_front
    from flatc.passes.mapping.search import spaces

    problem, name = match_kernel(kernel).problem, kernel.kernel.data
    whole = all(problem.has(stage) for stage in ("logit", "softmax", "attend"))
    found = spaces(problem, machine, strategy if whole else "unfused", pair[0], kernel=name)
    order = objective_order(pair[0])
    points: list[Point] = []
    for one in pareto_front(found, pair):
        latency, energy, offchip = (one.ranking[order.index(of)] for of in ("latency", "energy", "offchip"))
        points.append(Point(one.mapping(), latency, energy, int(offchip)))
    if simulate:
        points = _unbeaten([_simulated(kernel, machine, point) for point in points], pair)
    legal = sum(candidates.size for space in found for candidates in space.families)
    return Front(name, legal, tuple(points))


def _simulated(kernel: FusedOp, machine: Accelerator, point: Point) -> Point:
    from flatc.passes.lower_to_spatial import lower_kernel_alone
    from flatc.passes.simulation.simulator import simulate_kernel

    cycles = simulate_kernel(lower_kernel_alone(kernel, point.mapping), machine).latency_cycles
    return replace(point, latency_cycles=float(cycles), simulated=True)


def _unbeaten(points: Sequence[Point], pair: tuple[Objective, Objective]) -> list[Point]:
    """The points that no other is as good as in both objectives, in the order of the first."""
    first, second = pair
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost(first), point.cost(second))):
        if not kept or point.cost(second) < kept[-1].cost(second):
            kept.append(point)
    return kept


# --- Words ----------------------------------------------------------------------------------------------------


def to_text(found: Fronts) -> str:
    """The fronts as tables, each mapping under its figures, ready for `--mapping`."""
    lines = [f"{found.graph} on {found.accelerator}, strategy {found.strategy}: {' against '.join(found.objectives)}"]
    for front in found.fronts:
        source = "simulated" if all(point.simulated for point in front.points) else "closed form, a lower bound"
        lines += ["", f'kernel "{front.kernel}": {len(front.points)} on the front of {front.legal:,} mappings that fit']
        lines.append(f"latency: {source}")
        for number, point in enumerate(front.points, start=1):
            figures = (f"{name} {_figure(point.cost(name), name)} {UNITS[name]}" for name in OBJECTIVES)
            lines += ["", f"{number}. " + ", ".join(figures)]
            lines += [f"   {line}" for line in format_mappings({front.kernel: point.mapping}).splitlines()]
    return "\n".join(lines) + "\n"


def _figure(number: float, objective: Objective) -> str:
    return f"{number:.4g}" if objective == "edp" else f"{number:,.0f}"


def to_json(found: Fronts) -> str:
    """The fronts with every figure, machine-readable."""
    import json

    kernels = [
        {
            "name": front.kernel,
            "legal": front.legal,
            "points": [
                {
                    "latency_cycles": point.latency_cycles,
                    "latency_source": "simulated" if point.simulated else "closed form",
                    "energy_pj": point.energy_pj,
                    "offchip_bytes": point.offchip_bytes,
                    "mapping": format_mappings({front.kernel: point.mapping}),
                }
                for point in front.points
            ],
        }
        for front in found.fronts
    ]
    head = {"schema_version": 1, "graph": found.graph, "accelerator": found.accelerator, "strategy": found.strategy}
    return json.dumps({**head, "objectives": found.objectives, "kernels": kernels}, indent=2) + "\n"
