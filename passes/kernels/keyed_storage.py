"""How keys and values lie off chip: V among the features of K, both in the pages of a pool.

A region sees plain tensors; what they are outside of it decides what a kernel loads, and in how many transfers.

    %k = attn.paged %pool, %table ...
    %v = attn.features %k from 0 ...
    flat.fused "attention" (%a = %q, %b = %k, %c = %v, %d = %table) { ... }
                                 -->  values_in_keys 0, pages of %pool, whose table is the argument %d
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from flatc.dialects.attn import AppendOp, FeaturesOp, PagedOp, shape_of
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen

PAGE_BYTES = 4
"""An entry of a table of pages is an i32."""


@frozen
class Pages:
    """The pages that K and V of a kernel lie in: rows of a block, pages of a sequence; `table` is the argument."""

    block: int
    pages: int
    table: SSAValue


def page_of(value: SSAValue) -> PagedOp | None:
    """The operator that takes a tensor from pages, or what it is features of, or the cache that it was appended to."""
    while True:
        owner = value.owner
        if isinstance(owner, FusedOp):
            inner = owner.yield_op.values[owner.outputs.index(value)].owner
            if not isinstance(inner, AppendOp):
                return None
            value = dict[SSAValue, SSAValue](zip(owner.body.block.args, owner.inputs, strict=True))[inner.cache]
        elif isinstance(owner, FeaturesOp | AppendOp):
            value = owner.operands[0]
        else:
            return owner if isinstance(owner, PagedOp) else None


def values_in_keys(fused: FusedOp, k: SSAValue | None, v: SSAValue | None) -> int | None:
    """The first feature of K that is one of V, if V is made of features of K."""
    outside = dict[SSAValue, SSAValue](zip(fused.body.block.args, fused.inputs, strict=True))
    keys, values = (None if value is None else outside.get(value) for value in (k, v))
    if keys is None or values is None:
        return None
    if values is keys:
        return 0
    if isinstance(values.owner, FeaturesOp) and values.owner.x is keys:
        return values.owner.start.value.data
    return None


def pages_of(fused: FusedOp, k: SSAValue | None, v: SSAValue | None) -> Pages | None:
    """The pages of a kernel, None where K and V lie in one piece. Raises `FlatcError` where they differ in that."""
    arguments = dict[SSAValue, SSAValue](zip(fused.inputs, fused.body.block.args, strict=True))
    outside = {argument: value for value, argument in arguments.items()}
    found = [page_of(outside[value]) for value in (k, v) if value is not None and value in outside]
    ops = [op for op in found if op is not None]
    if not ops:
        return None
    first = ops[0]
    block = shape_of(first.pool)[2]
    if len(ops) < len(found) or any(op.table is not first.table or shape_of(op.pool)[2] != block for op in ops):
        raise FlatcError(
            f"{first.name} cannot be compiled yet: K and V of '{fused.kernel.data}' do not lie in the same pages",
            position=position_of(first),
            help="take both from pages, by one table and with blocks of one size",
        )
    return Pages(block, shape_of(first.table)[1], arguments[first.table])
