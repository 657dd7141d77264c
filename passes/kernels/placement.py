"""Where the result of a kernel is stored: in a tensor of its own, or in place, as a part of another tensor.

    %k = attn.concat %a, %b            the kernels of %a and %b store into windows of %k
    %t = attn.append %c, %k            which is itself the window of the cache behind its old rows

Nothing moves then. `stored_in` says which operator a value is a part of; what cannot be stored in place, as a view of
another tensor or what a kernel needs in another order, has to be copied there by a kernel of its own (`fuse-layers`).

Products take the rows of all sequences together, and those with a weight for each head do so head by head. In
[B, H, S, D], the rows of one head lie at even distances only if there is one sequence, or one row of each; else the
tensor is stored as [B, S, H, D]. In a cache, which has room for other rows between those of two sequences, no result of
a product can be stored then. Into pages only rows that are copied can be stored, by way of their table.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Operation, SSAValue

from flatc.dialects.attn import (
    AppendOp,
    AttnOp,
    ConcatOp,
    FeaturesOp,
    LinearOp,
    MergeHeadsOp,
    PagedOp,
    SplitHeadsOp,
    shape_of,
)
from flatc.dialects.flat import FusedOp
from flatc.passes.kernels.keyed_storage import page_of

VIEWS = (SplitHeadsOp, MergeHeadsOp, FeaturesOp, PagedOp)
"""Operators that move nothing, and whose result is no kernel's."""


def is_computed(value: SSAValue) -> bool:
    """Whether a kernel gives a tensor as it is: it is no input, and no view of another tensor."""
    return isinstance(value.owner, AttnOp | FusedOp) and not isinstance(value.owner, (*VIEWS, AppendOp))


def stored_in(value: SSAValue) -> AppendOp | ConcatOp | None:
    """The operator whose result `value` is stored into, where its kernel can do that."""
    place = next(_places(value), None)
    if place is None or not is_computed(value) or _has_users(value, MergeHeadsOp):
        return None
    if isinstance(place, AppendOp):
        there = page_of(place.cache) is None and _fits_a_cache(value) and _cache_is_there(place, value)
    else:
        there = not (_is_product(value) and in_order_of_rows(place.result)) or _is_by_head(value)
    return place if there else None


def in_order_of_rows(value: SSAValue) -> bool:
    """Whether a tensor [B, H, S, D] must lie as [B, S, H, D], for a product with a weight for each head."""
    shape = shape_of(value)
    if len(shape) != 4 or min(shape[:3]) == 1:
        return False
    return _is_by_head(value) or any(_is_by_head(part) for part in _parts(value)) or _feeds_by_head(value)


# --- Around a value, before and after regions are made ----------------------------------------------------------


def _places(value: SSAValue) -> Iterator[AppendOp | ConcatOp]:
    """The operators that put `value` beside something else, in program order."""
    found: list[AppendOp | ConcatOp] = []
    for use in value.uses:
        op = use.operation
        if isinstance(op, ConcatOp) or (isinstance(op, AppendOp) and op.new is value and op.cache is not value):
            found.append(op)
    outer = [op for op in found if not isinstance(op.parent_op(), FusedOp)]
    while outer:
        first = next(op for op in outer if all(op is other or op.is_before_in_block(other) for other in outer))
        outer.remove(first)
        yield first


def _cache_is_there(append: AppendOp, value: SSAValue) -> bool:
    """Whether all rows of the cache are there when the kernel of `value` runs: given, or appended before."""
    made, owner = append.cache.owner, value.owner
    given = not isinstance(made, AppendOp | FusedOp)
    return given or (isinstance(owner, Operation) and made.is_before_in_block(owner))


def _fits_a_cache(value: SSAValue) -> bool:
    """Whether no product stores its rows together that a cache keeps apart."""
    batch, heads, rows, _ = shape_of(value)
    for part in (value, *_parts(value)):
        together = batch if _is_by_head(part) else batch * heads
        if _is_product(part) and rows > 1 and together > 1:
            return False
    return True


def _has_users(value: SSAValue, kind: type[Operation]) -> bool:
    return any(isinstance(use.operation, kind) for use in value.uses)


def _made_by(value: SSAValue) -> Operation | None:
    """The operator that makes a value, also inside of a region."""
    owner = value.owner
    if isinstance(owner, FusedOp):
        owner = owner.yield_op.values[list(owner.results).index(value)].owner  # pyright: ignore[reportArgumentType]
    return owner if isinstance(owner, Operation) else None


def _is_product(value: SSAValue) -> bool:
    return isinstance(_made_by(value), LinearOp)


def _is_by_head(value: SSAValue) -> bool:
    made = _made_by(value)
    return isinstance(made, LinearOp) and made.by_head and shape_of(made.w)[0] > 1


def _parts(value: SSAValue) -> Iterator[SSAValue]:
    """What is stored into `value`, at any depth."""
    if isinstance(value.owner, ConcatOp):
        for part in value.owner.parts:
            yield part
            yield from _parts(part)


def _feeds_by_head(value: SSAValue) -> bool:
    """Whether a product with a weight for each head reads a value, or features of it."""
    for use in value.uses:
        op = use.operation
        if isinstance(op, LinearOp) and op.x is value and _is_by_head(op.output):
            return True
        if isinstance(op, FeaturesOp) and _feeds_by_head(op.result):
            return True
        if isinstance(op, FusedOp) and _feeds_by_head(op.body.block.args[use.index]):
            return True
    return False
