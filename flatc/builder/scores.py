"""What is done to scores before their softmax: masks that combine with `&` and `|`, biases that add up.

    causal() & (window(1024) | first(4))
    alibi() + b                                  # b: a tensor that broadcasts to the scores

Offsets are known when a mask or a bias meets scores: until then both are functions of them.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import SSAValue

from flatc.builder.tensor import Tensor, guard
from flatc.dialects import attn, masks
from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn import AttnOp
from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask


@frozen
class MaskExpr:
    """A mask before its offsets are known: a symbolic part, and run-time parts that must hold as well."""

    resolve: Callable[[int], Mask] | None = None
    keep: tuple[Tensor, ...] = ()
    valid: tuple[Tensor, ...] = ()
    same: tuple[Tensor, ...] = ()
    at: Position | None = None

    def __and__(self, other: MaskExpr | Tensor) -> MaskExpr:
        other = as_mask(other)
        left, right = self.resolve, other.resolve

        def both(offset: int) -> Mask:
            assert left is not None
            assert right is not None
            return left(offset) & right(offset)

        return MaskExpr(
            both if left and right else left or right,
            self.keep + other.keep,
            self.valid + other.valid,
            self.same + other.same,
            self.at or other.at,
        )

    def __or__(self, other: MaskExpr | Tensor) -> MaskExpr:
        other = as_mask(other)
        left, right = self.resolve, other.resolve
        if left is None or right is None or self.is_runtime or other.is_runtime:
            raise FlatcError(
                "a mask that is known only at run time (valid, same, a tensor) cannot be combined with |",
                position=self.at or other.at,
                help="combine it with &, or compute the whole mask into one bool tensor",
            )
        return MaskExpr(lambda offset: left(offset) | right(offset), at=self.at or other.at)

    @property
    def is_runtime(self) -> bool:
        """Whether some of it is known only when the graph runs."""
        return bool(self.keep or self.valid or self.same)


def as_mask(mask: MaskExpr | Tensor) -> MaskExpr:
    """A bool tensor is a mask too: true is visible."""
    return MaskExpr(keep=(mask,)) if isinstance(mask, Tensor) else mask


def causal(offset: int | None = None, *, at: Position | None = None) -> MaskExpr:
    """Row q sees keys up to q + offset; the offset is keys - queries unless given."""
    return MaskExpr(lambda default: masks.Causal(default if offset is None else offset), at=at)


def window(left: int, right: int = 0, *, offset: int | None = None, at: Position | None = None) -> MaskExpr:
    """Row q at p = q + offset sees p - left < k <= p + right; `window(w)` is w keys that end at the row."""
    guard(at, lambda: masks.Window(left, right, 0))
    return MaskExpr(lambda default: masks.Window(left, right, default if offset is None else offset), at=at)


def prefix(length: int, *, at: Position | None = None) -> MaskExpr:
    """Every row sees the first `length` keys; meant for `causal | prefix(n)`."""
    mask = guard(at, lambda: masks.Prefix(length))
    return MaskExpr(lambda _: mask, at=at)


def first(count: int, *, at: Position | None = None) -> MaskExpr:
    """Every row sees the first `count` keys; meant for `causal & (window(w) | first(n))`."""
    mask = guard(at, lambda: masks.FirstN(count))
    return MaskExpr(lambda _: mask, at=at)


def chunk(size: int, *, offset: int | None = None, at: Position | None = None) -> MaskExpr:
    """Row q at q + offset sees the keys of its own block of `size`."""
    guard(at, lambda: masks.Chunk(size, 0))
    return MaskExpr(lambda default: masks.Chunk(size, default if offset is None else offset), at=at)


def valid(pad: Tensor, *, at: Position | None = None) -> MaskExpr:
    """Keys whose entry in `pad` (bool [B, T]) is true."""
    return MaskExpr(valid=(pad,), at=at)


def same(doc: Tensor, *, at: Position | None = None) -> MaskExpr:
    """Keys of the row's own document; `doc` is i32 [B, T] and the queries are the last of the keys."""
    return MaskExpr(same=(doc,), at=at)


@frozen
class BiasExpr:
    """What is added to the scores, before offsets are known; biases add up with `+`."""

    terms: tuple[Callable[[SSAValue, int], AttnOp], ...]

    def __add__(self, other: BiasExpr | Tensor) -> BiasExpr:
        return BiasExpr(self.terms + as_bias(other).terms)

    def __radd__(self, other: Tensor) -> BiasExpr:
        return as_bias(other) + self


def as_bias(bias: BiasExpr | Tensor) -> BiasExpr:
    """A tensor that broadcasts to the scores is a bias too."""
    if isinstance(bias, BiasExpr):
        return bias
    return BiasExpr((lambda scores, _: attn.BiasOp(scores, bias.value),))


def alibi(*, offset: int | None = None) -> BiasExpr:
    """Attention with linear biases: -slope(head) * distance."""
    return BiasExpr((lambda scores, default: attn.AlibiOp(scores, default if offset is None else offset),))


def t5_relative(
    table: Tensor,
    *,
    buckets: int | None = None,
    max_distance: int = 128,
    bidirectional: bool = True,
    offset: int | None = None,
    at: Position | None = None,
) -> BiasExpr:
    """A learned bias by bucketed distance; `table` is [buckets, query heads]."""
    if buckets is not None and (len(table.shape) != 2 or table.shape[0] != buckets):
        raise FlatcError(
            f"the table of t5_relative is {shapes.text(table.shape)}, expected [{buckets}, query heads]",
            position=at,
            help="the first dim of the table is the number of buckets",
        )

    def build(scores: SSAValue, default: int) -> AttnOp:
        at_key = default if offset is None else offset
        return attn.T5RelativeOp(scores, table.value, max_distance, at_key, bidirectional)

    return BiasExpr((build,))
