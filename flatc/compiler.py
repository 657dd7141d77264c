"""From a graph to an executed and priced schedule: what `flatc.compile` does, step by step.

    result = compile("examples/bert_base.flat", "edge", bindings={"B": 1, "S": 128})
    print(to_text(result.report))
    result.run().passed                      # True: executed in NumPy and compared with float64 attention
    str(result.schedule)                     # MLIR; `compile` reads it back

A graph is a path (`.flat`, `.mlir`), `.flat` text (a string of several lines), a `flatc.builder.Graph`, or a module.
The steps are those of `flatc-opt`, one pass each, verified in between:

    fuse-attention -> fuse-layers -> choose-fusion -> tile-attention -> (keep-on-chip) -> lower-to-spatial
    -> allocate-buffers -> report

A module may enter at any level. Fused kernels that all have mappings keep them, a schedule is only verified and priced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import MODULE_ATTRIBUTE, Accelerator, accelerator_of, attach_accelerator
from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping as AttentionMapping
from flatc.dialects.spatial import ScheduleOp
from flatc.passes.cost.kernel_costs import SIMULATE, Simulate
from flatc.passes.mapping.mapping_text import format_mappings, parse_mappings
from flatc.passes.mapping.search import Choice, Objective, check_strategy
from flatc.report.build import build_report
from flatc.report.model import Report

if TYPE_CHECKING:
    from flatc.builder import Graph
    from flatc.execution import RunResult
    from flatc.passes.tile_attention import KernelSearch

UNFUSED_GROUPS = ("logit", "mask+softmax", "attend")
DEFAULT_ACCELERATOR = "edge"


@frozen
class Compilation:
    """A compiled graph. `graph` is None where a schedule was given; `search` tells by kernel what was looked at."""

    graph: ModuleOp | None
    schedule: ModuleOp
    report: Report
    search: Mapping[str, Choice[KernelMapping]] = field(default_factory=dict[str, Choice[KernelMapping]])

    @property
    def mappings(self) -> dict[str, KernelMapping]:
        """The mapping of each kernel, by name."""
        return {kernel.name: kernel.mapping for kernel in self.report.kernels if kernel.mapping is not None}

    @property
    def mapping_text(self) -> str:
        """The mappings as a file that `compile(..., mapping=)` and `--mapping` take."""
        return format_mappings(self.mappings)

    def run(self, inputs: Mapping[str, Any] | None = None, seed: int = 0) -> RunResult:
        """Executes the schedule in NumPy and compares it with attention in float64; inputs are seeded unless given."""
        from flatc.execution import run

        return run(self.schedule, self.graph, inputs, seed)


def compile(
    graph: str | PathLike[str] | Graph | ModuleOp,
    accelerator: str | PathLike[str] | Accelerator | None = None,
    *,
    strategy: str = "auto",
    objective: Objective = "latency",
    mapping: str | PathLike[str] | KernelMapping | Mapping[str, KernelMapping] | None = None,
    bindings: Mapping[str, int] | None = None,
    phase: str | None = None,
    simulate: Simulate = "auto",
    buffer_limit: str | None = None,
    max_bandwidth: str | None = None,
    keep_on_chip: bool = False,
) -> Compilation:
    """Compiles a graph for an accelerator: a name, a YAML file or a record; without one, the module's own or edge.

    `mapping` replaces the search: the text of mappings, a file of them, one mapping, or one for each kernel.
    `buffer_limit` ("256 KiB") and `max_bandwidth` ("20 GB/s") are the most that schedules may use of the machine.
    With `keep_on_chip`, results that fit beside the tiles of kernels stay on chip for the kernels that use them.
    `simulate` says when latency is simulated rather than priced (see `flatc.passes.cost.kernel_costs`).
    Raises `FlatcError` for everything that a user can get wrong.
    """
    check_strategy(strategy, objective)
    _check_simulate(simulate)
    given = _mappings(mapping)
    source = load_module(graph, bindings, phase)
    module = on_machine(source, accelerator, buffer_limit, max_bandwidth)
    if any(isinstance(op, ScheduleOp) for op in module.ops):
        if given is not None:
            raise FlatcError("a mapping was given for a schedule", help="a schedule already has its mappings")
        return Compilation(None, module, build_report(module, simulate))
    search = _tile(module, strategy, objective, given, keep_on_chip=keep_on_chip)
    lower(module)
    return Compilation(source, module, build_report(module, simulate), search)


def _check_simulate(simulate: str) -> None:
    if simulate not in SIMULATE:
        help = did_you_mean(simulate, SIMULATE) or f"choose one of {', '.join(SIMULATE)}"
        raise FlatcError(f"unknown way to simulate '{simulate}'", help=help)


# --- What comes in --------------------------------------------------------------------------------------------


def load_module(
    graph: str | PathLike[str] | Graph | ModuleOp, bindings: Mapping[str, int] | None = None, phase: str | None = None
) -> ModuleOp:
    """The module of a graph in any of the forms that `compile` takes."""
    from flatc.frontend import load_graph, parse_flat

    if isinstance(graph, str) and "\n" in graph:
        return parse_flat(graph, "<graph>", bindings=bindings, phase=phase)
    if isinstance(graph, str | PathLike):
        return load_graph(graph, bindings=bindings, phase=phase)
    if bindings or phase:
        raise FlatcError("bindings and phases belong to .flat graphs", help="build the graph with the sizes you want")
    return graph if isinstance(graph, ModuleOp) else graph.module()


def on_machine(
    source: ModuleOp,
    accelerator: str | PathLike[str] | Accelerator | None,
    buffer_limit: str | None = None,
    max_bandwidth: str | None = None,
) -> ModuleOp:
    """A verified copy of a module with an accelerator, and no more of it than the limits say."""
    module = source.clone()
    _attach(module, accelerator)
    if buffer_limit is not None or max_bandwidth is not None:
        from flatc.accelerators.limits import limited

        attach_accelerator(module, limited(accelerator_of(module), buffer_limit, max_bandwidth))
    verify(module)
    return module


def _attach(module: ModuleOp, accelerator: str | PathLike[str] | Accelerator | None) -> None:
    if accelerator is None:
        if MODULE_ATTRIBUTE in module.attributes:
            return
        accelerator = DEFAULT_ACCELERATOR
    if not isinstance(accelerator, Accelerator):
        from flatc.accelerators import load

        accelerator = load(str(accelerator))
    attach_accelerator(module, accelerator)


def _mappings(
    mapping: str | PathLike[str] | KernelMapping | Mapping[str, KernelMapping] | None,
) -> Mapping[str, KernelMapping] | None:
    """Given mappings by kernel name; the empty name stands for every kernel."""
    if mapping is None:
        return None
    if isinstance(mapping, KernelMapping):
        return {"": mapping}
    if isinstance(mapping, str) and "#flat.mapping" in mapping:
        return parse_mappings(mapping)
    if isinstance(mapping, str | PathLike):
        from flatc.frontend import read_text

        return parse_mappings(read_text(str(mapping)), Path(mapping).as_posix())
    return mapping


# --- The pipeline ---------------------------------------------------------------------------------------------


def _tile(
    module: ModuleOp,
    strategy: str,
    objective: Objective,
    given: Mapping[str, KernelMapping] | None,
    *,
    keep_on_chip: bool,
) -> Mapping[str, Choice[KernelMapping]]:
    """Fuses, gives every kernel a mapping, and decides what stays on chip; what the search looked at."""
    from flatc.passes.choose_fusion import apart_as_named, choose_fusion
    from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
    from flatc.passes.fuse_layers import FuseLayersPass
    from flatc.passes.tile_attention import KernelSearch, tile_module

    groups = UNFUSED_GROUPS if strategy == "unfused" else (WHOLE,)
    if given is not None and _is_unfused(given, module):
        strategy, groups = "unfused", UNFUSED_GROUPS
    apply(FuseAttentionPass(groups), module)
    apply(FuseLayersPass(), module)
    kernels = _kernels(module)
    if not kernels:
        raise FlatcError("the graph computes nothing", help="give it an attention(q, k, v), or a product x @ w")
    if given is None and all(kernel.mapping is not None for kernel in kernels):
        if keep_on_chip:
            _keep_on_chip(module, None)
        return {}
    search = KernelSearch(accelerator_of(module), strategy, objective)
    if given is not None:
        apart_as_named(module, given)
    elif strategy == "auto":
        choose_fusion(module, search)
    verify(module)
    text = None if given is None else format_mappings(given)
    choices = tile_module(module, strategy, objective, text, search).choices
    if keep_on_chip:
        choices |= _keep_on_chip(module, search if given is None else None)
    for kernel in _kernels(module):
        kernel.strategy = StringAttr(strategy)
    verify(module)
    return choices


def _keep_on_chip(module: ModuleOp, search: KernelSearch | None) -> Mapping[str, Choice[KernelMapping]]:
    """Lets results stay on chip; with a `search`, looks for mappings that leave more of them there."""
    from flatc.passes.keep_on_chip import keep_what_fits, tile_again

    if search is not None:
        return tile_again(module, search)
    keep_what_fits(module)
    return {}


def _kernels(module: ModuleOp) -> list[FusedOp]:
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def _is_unfused(given: Mapping[str, KernelMapping], module: ModuleOp) -> bool:
    """Whether mappings are for an unfused attention: they name kernels that it has, and that a fused one has not."""
    from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass

    def kernels(groups: Sequence[str]) -> set[str]:
        copy = module.clone()
        FuseAttentionPass(tuple(groups)).apply(Context(), copy)
        return {op.kernel.data for op in _kernels(copy)}

    named = {name for name, mapping in given.items() if isinstance(mapping, AttentionMapping)}
    return named <= kernels(UNFUSED_GROUPS) and not named <= kernels((WHOLE,))


def lower(module: ModuleOp) -> None:
    """Lowers kernels that have mappings to a schedule with addresses, in place."""
    from flatc.passes.allocate_buffers import AllocateBuffersPass
    from flatc.passes.lower_to_spatial import LowerToSpatialPass

    apply(LowerToSpatialPass(), module)
    apply(AllocateBuffersPass(), module)


def apply(step: ModulePass, module: ModuleOp) -> None:
    """Applies a pass and verifies what it made."""
    step.apply(Context(), module)
    verify(module)


def verify(module: ModuleOp) -> None:
    """Verifies a module; the error is about the operation at fault, without the rest of the module."""
    try:
        module.verify()
    except (VerifyException, FlatcError) as error:
        raise _blame(module, error) from error


def _blame(module: ModuleOp, error: Exception) -> FlatcError:
    for op in module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except FlatcError as found:
            return found
        except VerifyException as found:
            return FlatcError(f"{op.name}: {found}", position=position_of(op))
    return FlatcError(str(error).split("\n")[0])
