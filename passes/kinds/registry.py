"""The kinds of kernels, and which of them a kernel is.

kind = kind_of(fused)                            # of a region
region = kind.region(fused)
kind = kind_with(problem)                        # of a problem
parts(schedule)                                  # what the kernels of a schedule compute, attentions joined
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.spatial import KernelOp, ScheduleOp
from flatc.passes.cost.bounds import AnyProblem
from flatc.passes.kernels.schedule_problem import Part, joined, placed, returned_storage
from flatc.passes.kinds.append import APPEND
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.kinds.kind import KernelKind
from flatc.passes.kinds.product import PRODUCT
from flatc.passes.kinds.vector import VECTOR

KINDS: Sequence[KernelKind[Any, Any]] = (ATTENTION, PRODUCT, VECTOR, APPEND)


def kind_of(fused: FusedOp) -> KernelKind[Any, Any]:
    """The kind of a region. Raises `FlatcError` naming the operator that no kind has."""
    ops = fused.body_ops()
    for kind in KINDS:
        if kind.computes(ops):
            return kind
    if not ops:
        raise FlatcError(f"kernel '{fused.kernel.data}' is empty", position=position_of(fused))
    strange = next((op for op in ops if not any(kind.computes([op]) for kind in KINDS)), ops[0])
    raise FlatcError(f"{strange.name} cannot be compiled yet: no kernel has it", position=position_of(strange))


def kind_with(problem: AnyProblem) -> KernelKind[Any, Any]:
    """The kind that a problem belongs to."""
    return next(kind for kind in KINDS if isinstance(problem, kind.problem_type))


def kernel_part(kernel: KernelOp) -> Part | None:
    """What one kernel computes, or None if no kind would have made it."""
    found = next((part for kind in KINDS if (part := kind.read_back(kernel)) is not None), None)
    return None if found is None else placed(found)


def parts(schedule: ScheduleOp) -> list[Part] | None:
    """What the kernels of a schedule compute, those of one attention as one part; None if a kernel is unknown."""
    return joined(map(kernel_part, schedule.kernels()), returned_storage(schedule))
