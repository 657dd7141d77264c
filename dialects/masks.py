"""Symbolic attention masks: which keys a query may see, as a formula instead of a tensor.

A mask is a small frozen tree. Its leaves are predicates on the query row `q` and the key `k` (both from
0) and hold explicit numbers; `And` and `Or` combine them. Rows and keys are aligned by an `offset`: row
`q` sits at position `p = q + offset` among the keys. The offset is keys - queries unless a graph says
otherwise, so the last row sits at the last key; whoever builds a mask resolves it.

    causal(offset)                k <= p
    window(left, right, offset)   p - left < k <= p + right      the row's own key counts as left
    prefix(length)                k < length                     a prompt that everyone sees
    first(count)                  k < count                      attention sinks
    chunk(size, offset)           p and k lie in the same block of `size` keys

So `window(w)` is the window of Mistral (w keys that end at the row itself) and implies causal order.
The text form spells the operators `and` and `or`, because `&` is no token of MLIR; `parse_mask` takes both:

    >>> mask = parse_mask("causal(offset = 5) & (window(left = 8, right = 0, offset = 5) | first(count = 4))")
    >>> print(mask)
    causal(offset = 5) and (window(left = 8, right = 0, offset = 5) or first(count = 4))
    >>> allows(mask, 0, 5), allows(mask, 0, 6)
    (True, False)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, overload

from typing_extensions import override
from xdsl.context import Context
from xdsl.parser import AttrParser, Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import Expr, maximum, minimum, var

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Mask:
    """Any mask; `&` and `|` combine two of them, and `str` gives the text that `parse_mask` reads."""

    def __and__(self, other: Mask) -> Mask:
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Mask) -> Mask:
        return Or((*_parts(self, Or), *_parts(other, Or)))

    @override
    def __str__(self) -> str:
        return to_text(self)


@frozen
class Causal(Mask):
    """A row sees its own key and everything before it."""

    offset: int


@frozen
class Window(Mask):
    """A row sees `left` keys that end at its own, and `right` keys after it."""

    left: int
    right: int
    offset: int

    def __post_init__(self) -> None:
        _require(self.left + self.right > 0, f"{self} shows no key to any row", "make left at least 1")


@frozen
class Prefix(Mask):
    """Every row sees the first `length` keys: the prompt of a prefix language model."""

    length: int

    def __post_init__(self) -> None:
        _require(self.length > 0, f"{self} shows no key to any row", "make the length at least 1")


@frozen
class FirstN(Mask):
    """Every row sees the first `count` keys, the tokens that serve as attention sinks."""

    count: int

    def __post_init__(self) -> None:
        _require(self.count > 0, f"{self} shows no key to any row", "make the count at least 1")


@frozen
class Chunk(Mask):
    """A row sees the keys of its own block; blocks hold `size` consecutive positions."""

    size: int
    offset: int

    def __post_init__(self) -> None:
        _require(self.size > 0, f"{self} has no keys in a block", "make the size at least 1")


@frozen
class And(Mask):
    """Keys that every part allows."""

    parts: tuple[Mask, ...]

    def __post_init__(self) -> None:
        assert len(self.parts) >= 2


@frozen
class Or(Mask):
    """Keys that at least one part allows."""

    parts: tuple[Mask, ...]

    def __post_init__(self) -> None:
        assert len(self.parts) >= 2


LEAVES: dict[str, type[Mask]] = {
    "causal": Causal,
    "window": Window,
    "prefix": Prefix,
    "first": FirstN,
    "chunk": Chunk,
}
"""The word of each predicate in the text form."""

_WORDS = {kind: word for word, kind in LEAVES.items()}


def _parts(mask: Mask, kind: type[And] | type[Or]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def _require(condition: bool, message: str, help: str) -> None:
    if not condition:
        raise FlatcError(message, help=help)


@overload
def allows(mask: Mask, q: int, k: int) -> bool: ...
@overload
def allows(mask: Mask, q: NDArray[np.integer[Any]], k: NDArray[np.integer[Any]]) -> NDArray[np.bool_]: ...
def allows(mask: Mask, q: Any, k: Any) -> Any:
    """Whether row `q` may see key `k`; integers, or integer arrays that broadcast against each other."""
    return _allows(mask, q, k)


def _allows(mask: Mask, q: Any, k: Any) -> Any:
    match mask:
        case Causal(offset):
            return k <= q + offset
        case Window(left, right, offset):
            return (q + offset - left < k) & (k <= q + offset + right)
        case Prefix(length):
            return (k < length) & (q == q)
        case FirstN(count):
            return (k < count) & (q == q)
        case Chunk(size, offset):
            return (q + offset) // size == k // size
        case And(parts):
            return _join([_allows(part, q, k) for part in parts], either=False)
        case Or(parts):
            return _join([_allows(part, q, k) for part in parts], either=True)
        case _:
            raise AssertionError(f"unknown mask {mask!r}")


def _join(allowed: list[Any], *, either: bool) -> Any:
    joined = allowed[0]
    for more in allowed[1:]:
        joined = joined | more if either else joined & more
    return joined


def leaves(mask: Mask) -> Iterator[Mask]:
    """The predicates of a mask, left to right."""
    if isinstance(mask, And | Or):
        for part in mask.parts:
            yield from leaves(part)
    else:
        yield mask


def to_text(mask: Mask) -> str:
    """The text form: fields by name, `and` binds tighter than `or`."""
    if isinstance(mask, Or):
        return " or ".join(to_text(part) for part in mask.parts)
    if isinstance(mask, And):
        return " and ".join(f"({part})" if isinstance(part, Or) else to_text(part) for part in mask.parts)
    arguments = ", ".join(f"{name} = {value}" for name, value in _arguments(mask))
    return f"{_WORDS[type(mask)]}({arguments})"


def _arguments(mask: Mask) -> Iterator[tuple[str, int]]:
    for name in _field_names(type(mask)):
        yield name, getattr(mask, name)


def _field_names(kind: type[Mask]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))  # pyright: ignore[reportArgumentType]


def parse_mask(text: str) -> Mask:
    """Read the text form; `&` and `|` are accepted for `and` and `or`."""
    words = text.replace("&", " and ").replace("|", " or ")
    try:
        parser = Parser(Context(), words)
        mask = parse_mask_tokens(parser)
        if parser.parse_optional_characters("") is None:
            raise FlatcError(f"the mask '{text}' has something after its end", help="join masks with & or |")
    except ParseError as error:
        raise FlatcError(f"cannot read the mask '{text}': {error.msg}") from None
    return mask


def parse_mask_tokens(parser: AttrParser) -> Mask:
    """Read a mask from a running parser, as the attribute of the dialect does."""
    mask = _parse_both(parser)
    while parser.parse_optional_keyword("or"):
        mask = mask | _parse_both(parser)
    return mask


def _parse_both(parser: AttrParser) -> Mask:
    mask = _parse_leaf(parser)
    while parser.parse_optional_keyword("and"):
        mask = mask & _parse_leaf(parser)
    return mask


def _parse_leaf(parser: AttrParser) -> Mask:
    if parser.parse_optional_punctuation("("):
        mask = parse_mask_tokens(parser)
        parser.parse_punctuation(")")
        return mask
    word = parser.parse_identifier(" as the name of a mask")
    if word not in LEAVES:
        raise FlatcError(
            f"unknown mask '{word}'", help=did_you_mean(word, LEAVES) or f"the masks are {', '.join(LEAVES)}"
        )
    names = _field_names(LEAVES[word])
    parser.parse_punctuation("(")
    values: list[int] = []
    for index, name in enumerate(names):
        if index:
            parser.parse_punctuation(",")
        parser.parse_keyword(name)
        parser.parse_punctuation("=")
        values.append(parser.parse_integer(allow_boolean=False))
    parser.parse_punctuation(")")
    return LEAVES[word](*values)


@frozen
class KeyInterval:
    """Keys `lo <= k < hi` as expressions of the query row "q"; empty where hi <= lo.

    Both ends never decrease as the row grows. `hi` may be negative or beyond the last key.
    """

    lo: Expr
    hi: Expr


def intervals(mask: Mask) -> tuple[KeyInterval, ...]:
    """The visible keys of row "q": one interval, or two disjoint ones, the first before the second.

    The union of the intervals is exact for every row q >= 0: a key k >= 0 is visible if and only if one of
    them holds it. Intervals that cannot be put in order for every row, and more than two, may overlap.

        >>> for interval in intervals(Causal(0) & (Window(8, 0, 0) | FirstN(4))):
        ...     print(interval.lo, "..", interval.hi)
        0 .. min(q + 1, 4)
        max(q - 7, min(q + 1, 4)) .. q + 1
    """
    spans = _in_order(mask)
    ordered = _are_in_order(spans)
    found: list[KeyInterval] = []
    before: _Bound = _NOTHING
    for span in spans:
        lo = _expr(_extreme([span.lo, before, _Edge(0, 0)], largest=True))
        found.append(KeyInterval(lo, _expr(span.hi)))
        before = span.hi if ordered else _NOTHING
    return tuple(found)


def leaves_gap(mask: Mask) -> bool:
    """Whether `intervals` are two, of which the first comes first in every row: between them is a gap.

    >>> leaves_gap(Causal(0) & (Window(8, 0, 0) | FirstN(4))), leaves_gap(Causal(0))
    (True, False)
    """
    spans = _in_order(mask)
    return len(spans) == 2 and _are_in_order(spans)


def _in_order(mask: Mask) -> list[_Span]:
    spans = _merged(_spans(mask))
    return spans if _are_in_order(spans) else spans[::-1]


def _are_in_order(spans: list[_Span]) -> bool:
    return len(spans) == 1 or (len(spans) == 2 and _at_most(spans[0].lo, spans[1].lo))


def shows_all(mask: Mask, queries: int, keys: int) -> bool:
    """Whether one range of `intervals` holds every key of every row, as in decode: the last row sees all it may.

    >>> shows_all(Causal(8), queries=1, keys=9), shows_all(Causal(8), queries=2, keys=9)
    (True, False)
    """
    first, last = {"q": 0}, {"q": queries - 1}
    return any(part.lo.evaluate(last) <= 0 and part.hi.evaluate(first) >= keys for part in intervals(mask))


@frozen
class _Edge:
    """`size * ((slope * q + offset) // size) + constant`, where the slope is 0 or 1."""

    slope: int
    offset: int
    size: int = 1
    constant: int = 0

    def at_most(self, other: _Edge) -> bool:
        """Whether it is at most `other` for every row; false when that cannot be shown."""
        if (self.slope, self.offset, self.size) == (other.slope, other.offset, other.size):
            return self.constant <= other.constant
        highest = self.offset + self.constant
        if self.slope == 0:
            return highest <= other.size * (other.offset // other.size) + other.constant
        return other.slope == 1 and highest <= other.offset - (other.size - 1) + other.constant

    def expr(self) -> Expr:
        inner = var("q") * self.slope + self.offset
        return inner // self.size * self.size + self.constant


@frozen
class _Extreme:
    """The largest or the smallest of its parts; the largest of none is minus infinity."""

    parts: tuple[_Bound, ...]
    largest: bool


_Bound = _Edge | _Extreme
_NOTHING = _Extreme((), largest=True)


@frozen
class _Span:
    """Keys from `lo` up to, not including, `hi`."""

    lo: _Bound
    hi: _Bound


def _at_most(a: _Bound, b: _Bound) -> bool:
    """Whether a <= b for every row q >= 0; false when that cannot be shown."""
    if isinstance(a, _Extreme) and a.largest:
        return all(_at_most(part, b) for part in a.parts)
    if isinstance(b, _Extreme) and not b.largest:
        return all(_at_most(a, part) for part in b.parts)
    if isinstance(a, _Edge) and isinstance(b, _Edge):
        return a.at_most(b)
    return (isinstance(a, _Extreme) and any(_at_most(part, b) for part in a.parts)) or (
        isinstance(b, _Extreme) and any(_at_most(a, part) for part in b.parts)
    )


def _extreme(bounds: list[_Bound], *, largest: bool) -> _Bound:
    """The extreme of some bounds without those that another one makes redundant."""
    flat: list[_Bound] = []
    for bound in bounds:
        flat += bound.parts if isinstance(bound, _Extreme) and bound.largest == largest else [bound]
    kept: list[_Bound] = []
    for index, bound in enumerate(flat):
        others = kept + flat[index + 1 :]
        if not any(_at_most(bound, o) if largest else _at_most(o, bound) for o in others):
            kept.append(bound)
    return kept[0] if len(kept) == 1 else _Extreme(tuple(kept), largest)


def _expr(bound: _Bound) -> Expr:
    if isinstance(bound, _Edge):
        return bound.expr()
    return (maximum if bound.largest else minimum)(*map(_expr, bound.parts))


def _spans(mask: Mask) -> list[_Span]:
    """A union of spans that covers exactly the visible keys; spans may overlap."""
    match mask:
        case Causal(offset):
            return [_Span(_NOTHING, _Edge(1, offset + 1))]
        case Window(left, right, offset):
            return [_Span(_Edge(1, offset - left + 1), _Edge(1, offset + right + 1))]
        case Prefix(count) | FirstN(count):
            return [_Span(_NOTHING, _Edge(0, count))]
        case Chunk(size, offset):
            return [_Span(_Edge(1, offset, size), _Edge(1, offset, size, size))]
        case Or(parts):
            return [span for part in parts for span in _spans(part)]
        case And(parts):
            spans = _spans(parts[0])
            for part in parts[1:]:
                spans = _merged([_intersection(a, b) for a in spans for b in _spans(part)])
            return spans
        case _:
            raise AssertionError(f"unknown mask {mask!r}")


def _intersection(a: _Span, b: _Span) -> _Span:
    return _Span(_extreme([a.lo, b.lo], largest=True), _extreme([a.hi, b.hi], largest=False))


def _merged(spans: list[_Span]) -> list[_Span]:
    """The same union with as few spans as can be shown to suffice."""
    done: list[_Span] = []
    waiting = [span for span in spans if not _at_most(span.hi, span.lo)] or spans[:1]
    while waiting:
        span = waiting.pop(0)
        for other in done:
            union = _union(other, span)
            if union is not None:
                done.remove(other)
                waiting.insert(0, union)
                break
        else:
            done.append(span)
    return done


def _union(a: _Span, b: _Span) -> _Span | None:
    """One span with the keys of both, if one holds the other or they always touch."""
    for inner, outer in ((a, b), (b, a)):
        if _at_most(outer.lo, inner.lo) and _at_most(inner.hi, outer.hi):
            return outer
    if _at_most(a.lo, b.hi) and _at_most(b.lo, a.hi):
        return _Span(_extreme([a.lo, b.lo], largest=False), _extreme([a.hi, b.hi], largest=True))
    return None
