"""Choose a mapping for every fused kernel: `tile-attention`.

    %o = flat.fused "attention" (%a = %q, ...) { ... }

    %o = flat.fused "attention" (%a = %q, ...) strategy "online" mapping #flat.mapping<...> { ... }

The pass sees a kernel as a problem (sizes, mask, storage) and the module's accelerator; the search itself is
`flatc.passes.search` and knows no IR. A given mapping is taken as it is, if it can be scheduled at all.

Options: `strategy` (see `search.STRATEGIES`), `objective` (see `search.OBJECTIVES`), and `mapping`, the text of
one mapping or of one per kernel (see `mapping_text`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import Mapping
from flatc.passes.legal_mapping import check_mapping
from flatc.passes.mapping_text import parse_mappings
from flatc.passes.problem import match_kernel
from flatc.passes.search import Choice, Objective, check_strategy, find_mapping


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
    choice = find_mapping(problem, accelerator, strategy if whole else "unfused", objective, kernel=kernel.kernel.data)
    kernel.mapping, kernel.strategy = MappingAttr(choice.mapping), StringAttr(choice.strategy)
    return choice
