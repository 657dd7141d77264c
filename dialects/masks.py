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
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

from typing_extensions import override
from xdsl.context import Context
from xdsl.parser import AttrParser, Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.diagnostics import FlatcError, did_you_mean

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


@dataclass(frozen=True)
class Causal(Mask):
    """A row sees its own key and everything before it."""

    offset: int


@dataclass(frozen=True)
class Window(Mask):
    """A row sees `left` keys that end at its own, and `right` keys after it."""

    left: int
    right: int
    offset: int

    def __post_init__(self) -> None:
        _require(self.left + self.right > 0, f"{self} shows no key to any row", "make left at least 1")


@dataclass(frozen=True)
class Prefix(Mask):
    """Every row sees the first `length` keys: the prompt of a prefix language model."""

    length: int

    def __post_init__(self) -> None:
        _require(self.length > 0, f"{self} shows no key to any row", "make the length at least 1")


@dataclass(frozen=True)
class FirstN(Mask):
    """Every row sees the first `count` keys, the tokens that serve as attention sinks."""

    count: int

    def __post_init__(self) -> None:
        _require(self.count > 0, f"{self} shows no key to any row", "make the count at least 1")


@dataclass(frozen=True)
class Chunk(Mask):
    """A row sees the keys of its own block; blocks hold `size` consecutive positions."""

    size: int
    offset: int

    def __post_init__(self) -> None:
        _require(self.size > 0, f"{self} has no keys in a block", "make the size at least 1")


@dataclass(frozen=True)
class And(Mask):
    """Keys that every part allows."""

    parts: tuple[Mask, ...]

    def __post_init__(self) -> None:
        assert len(self.parts) >= 2


@dataclass(frozen=True)
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
