"""Which results of kernels stay on chip, which could, and where they lie meanwhile.

%h = flat.fused "up" (...) on_chip [0] {...}         # kernel 0 makes it, kernel 1 uses it:
%s = attn.split_heads %h into 8                      # a view moves nothing
%o = flat.fused "attention" (%a = %s, ...) {...}

roles_on_chip(attention, {"q": %a, ...})             # {"q"}
users_of(%h)                                         # [attention]
places([(4096, 0, 1), (2048, 1, 2)])                 # [0, 4096]: (bytes, first kernel, last kernel)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from xdsl.ir import Operation, SSAValue

from flatc.dialects.attn import AppendOp, FeaturesOp, MergeHeadsOp, SplitHeadsOp
from flatc.dialects.flat import FusedOp

VIEWS = (SplitHeadsOp, MergeHeadsOp, FeaturesOp)
"""What gives the elements of a tensor another shape, in place."""


def roles_on_chip(fused: FusedOp, values: Mapping[str, SSAValue]) -> frozenset[str]:
    """The roles of a kernel whose tensors stay on chip; `values` are those inside of its region."""
    return frozenset(role for role, value in outside_values(fused, values).items() if _stays(source_of(value)))


def outside_values(fused: FusedOp, values: Mapping[str, SSAValue]) -> dict[str, SSAValue]:
    """By role, the operand or the result of a kernel that a value inside of its region is."""
    outside = dict[SSAValue, SSAValue](zip(fused.body.block.args, fused.inputs, strict=True))
    outside |= zip(fused.yield_op.values, fused.results, strict=True)
    return {role: outside[value] for role, value in values.items() if value in outside}


def source_of(value: SSAValue) -> SSAValue:
    """What a value outside of kernels is a view of."""
    while isinstance(value.owner, VIEWS):
        value = value.owner.x
    return value


def _stays(value: SSAValue) -> bool:
    return isinstance(value.owner, FusedOp) and value in value.owner.kept


def users_of(result: SSAValue) -> list[FusedOp] | None:
    """The kernels that read a result of a kernel; None if anything else needs it, or it is a cache that grew."""
    kernel, found = result.owner, list[FusedOp]()
    assert isinstance(kernel, FusedOp)
    made = dict(zip(kernel.results, kernel.yield_op.values, strict=True))[result]  # pyright: ignore[reportArgumentType]
    if isinstance(made.owner, AppendOp):
        return None
    for op in _users(result):
        if not isinstance(op, FusedOp):
            return None
        found.append(op)
    return found


def _users(value: SSAValue) -> Iterator[Operation]:
    for use in value.uses:
        if isinstance(use.operation, VIEWS):
            yield from _users(use.operation.result)
        else:
            yield use.operation


def places(tensors: Sequence[tuple[int, int, int]]) -> list[int]:
    """Addresses of tensors (bytes, first kernel, last kernel) such that no two overlap that live at the same time.

    Those that live longest lie lowest; each takes the lowest place that is free all the while.
    """
    found: dict[int, int] = {}
    for number in sorted(range(len(tensors)), key=lambda i: (tensors[i][1] - tensors[i][2], -tensors[i][0], i)):
        size, first, last = tensors[number]
        address = 0
        for start, end in sorted(
            (found[other], found[other] + tensors[other][0])
            for other in found
            if tensors[other][1] <= last and first <= tensors[other][2]
        ):
            if address + size <= start:
                break
            address = max(address, end)
        found[number] = address
    return [found[number] for number in range(len(tensors))]


def heights(tensors: Sequence[tuple[int, int, int]], kernels: int) -> list[int]:
    """For each of so many kernels, the first byte above all tensors that live meanwhile."""
    tops = [0] * kernels
    for (size, first, last), address in zip(tensors, places(tensors), strict=True):
        for number in range(first, last + 1):
            tops[number] = max(tops[number], address + size)
    return tops
