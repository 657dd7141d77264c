"""`choose-fusion`: take an attention apart where several kernels cost less than one.

    %o = flat.fused "attention" (...)  -->  %s = flat.fused "logit_softmax" (...)
                                            %o = flat.fused "attend" (...)

`fuse-attention` makes one kernel of each attention, which nearly always is best: scores stay on chip. But where the
buffer is too small for good tiles of everything at once, or for any, kernels with less to keep may win. For each way
to run the attention as several kernels (`take_apart.PARTITIONS`) three questions are asked, each only if the one
before leaves it open:

    bound        can it cost less at all? What its kernels must compute and must move is compared with what the fused
                 kernel costs, simulated. This settles nearly every attention without a search.
    closed form  do its best mappings cost less, priced by lower bounds?
    simulated    do they cost less?

Costs of kernels add up, for they run one after the other; energy-delay products are those of the sums. The least cost
is taken, of equals the attention in one kernel. `tile-attention` gives the kernels their mappings afterwards.

Option: `objective` (see `search.OBJECTIVES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import accelerator_of
from flatc.dialects.flat import FusedOp
from flatc.passes.cost.bounds import compulsory_bytes, least_macs, problem_bounds
from flatc.passes.cost.primitive_costs import Work, energy_pj
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.kernels.take_apart import PARTITIONS, take_apart
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.kinds.registry import kind_of
from flatc.passes.mapping.ranking import Objective, in_turn, objectives
from flatc.passes.mapping.search import NothingFits
from flatc.passes.tile_attention import KernelSearch


@dataclass(frozen=True)
class ChooseFusionPass(ModulePass):
    """See the module docstring."""

    name = "choose-fusion"

    objective: str = "latency"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        objective = cast(Objective, self.objective)
        choose_fusion(op, KernelSearch(accelerator_of(op), "auto", objective))


def choose_fusion(module: ModuleOp, search: KernelSearch) -> None:
    """Takes apart, in place, the attentions that cost less as several kernels; `search` remembers what it found."""
    decided: dict[AttentionProblem, Sequence[str] | None] = {}
    for fused in [op for op in module.walk() if isinstance(op, FusedOp) and is_whole_attention(op)]:
        problem = match_kernel(fused).problem
        if problem not in decided:
            decided[problem] = _Decision(module, fused, search).best()
        partition = decided[problem]
        if partition is not None:
            take_apart(fused, partition, _names(module) - {fused.kernel.data})


def is_whole_attention(fused: FusedOp) -> bool:
    """Whether logit, softmax and attend are in one kernel that has no mapping yet."""
    if fused.mapping is not None or kind_of(fused) is not ATTENTION:
        return False
    problem = match_kernel(fused).problem
    return all(problem.has(stage) for stage in ("logit", "softmax", "attend"))


def apart_as_named(module: ModuleOp, named: Iterable[str]) -> None:
    """Takes apart, in place, the attentions for whose kernels alone there are names."""
    names = set(named)
    for fused in [op for op in module.walk() if isinstance(op, FusedOp) and is_whole_attention(op)]:
        if fused.kernel.data in names or "" in names:
            continue
        for partition in PARTITIONS:
            if names.issuperset(kernel.kernel.data for kernel in _parts(module, fused, partition)):
                take_apart(fused, partition, _names(module) - {fused.kernel.data})
                break


def _names(module: ModuleOp) -> set[str]:
    return {op.kernel.data for op in module.walk() if isinstance(op, FusedOp)}


def _parts(module: ModuleOp, fused: FusedOp, partition: Sequence[str]) -> list[FusedOp]:
    """The kernels of a partition, in a copy of the module."""
    copy = module.clone()
    name = fused.kernel.data
    (twin,) = (op for op in copy.walk() if isinstance(op, FusedOp) and op.kernel.data == name)
    return take_apart(twin, partition, _names(copy) - {name})


class _Decision:
    """One attention: which partition costs less than all of it in one kernel, if any does."""

    def __init__(self, module: ModuleOp, fused: FusedOp, search: KernelSearch):
        self.module, self.fused, self.search = module, fused, search
        self.objective: Objective = search.objective

    def best(self) -> Sequence[str] | None:
        """The partition of least cost; None where one kernel costs no more. Raises `FlatcError` if nothing fits."""
        refused: NothingFits | None = None
        least: tuple[float, ...] = (float("inf"),)
        try:
            least = in_turn([self.search.simulated(self.fused)], self.objective)
        except NothingFits as error:
            refused = error
        chosen: Sequence[str] | None = None
        for partition in PARTITIONS:
            parts = _parts(self.module, self.fused, partition)
            if self._bound(parts) >= least:
                continue
            try:
                if in_turn([self.search.priced(part) for part in parts], self.objective) >= least:
                    continue
                cost = in_turn([self.search.simulated(part) for part in parts], self.objective)
            except NothingFits:
                continue
            if cost < least:
                least, chosen = cost, partition
        if chosen is None and refused is not None:
            raise refused
        return chosen

    def _bound(self, parts: Sequence[FusedOp]) -> tuple[float, ...]:
        """What kernels cost at the least: of their objectives in order, the first."""
        machine = self.search.accelerator
        problems: list[Any] = [match_kernel(part).problem for part in parts]
        moved = sum(sum(compulsory_bytes(problem).values()) for problem in problems)
        work = Work(macs=sum(map(least_macs, problems)), offchip_read_bytes=moved)
        latency = float(sum(problem_bounds([problem], machine).cycles for problem in problems))
        return tuple(objectives(self.objective, latency, sum(energy_pj(machine, work).values()), moved))[:1]
