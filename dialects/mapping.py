"""Mappings: how one fused kernel is tiled, ordered and overlapped on an accelerator.

A mapping is a frozen record with a text form that can be printed, edited and passed back. It holds no
machine facts and no problem sizes; whether it fits is decided by `lower-to-spatial` and the verifier of
the schedule it makes. The text is what `#flat.mapping<...>` contains:

    tiles(batch 1, kv_head 1, group 1, query 256, key 512, d_qk 64, d_v 64)
    keep(Q x2, K x2 at key, V x2 at key, scores x2, output x2)
    logit(output stationary, fold 1 x 1)
    attend(weight stationary, fold 1 x 4)
    softmax(online, divide late)
    stages(load 0, logit 0, softmax 0, attend 1, store 2)

and, where several query tiles are worked off in turn, a last line `interleave(4)`. More words say how seldom outputs
are rescaled, and where the work of a softmax runs on machines that leave the choice (see `ArrayUse` and `Softmax`):

    softmax(online, divide late, rescaled every 8)
    attend(input stationary, fold 1 x 1, add on vector)
    softmax(online, divide late, max on array, exp on array, sum on array, first rescaled)

Dimensions are the field's own: `batch`, `kv_head`, `group` (query heads per key/value head), `query`,
`key`, `d_qk`, `d_v`. FLAT's granularities (Kao et al., ASPLOS 2023, section 4) are corners of this space:
M-Gran tiles nothing, B-Gran tiles batch to 1, H-Gran also the heads, R-Gran also the query rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, Protocol, cast, get_args

from flatc.dialects.frozen import frozen

DIMS = ("batch", "kv_head", "group", "query", "key", "d_qk", "d_v")

Stationarity = Literal["output", "weight", "input"]
Algorithm = Literal["none", "rows", "streamed", "online"]
Divide = Literal["early", "late"]
Level = Literal["key", "query", "kv_head"]
ValueLevel = Literal["key", "query", "kv_head", "k"]
Unit = Literal["vector", "array"]
RowSum = Literal["vector", "array", "attend"]


class MappingTokens(Protocol):
    """What the parser of mappings needs from a token stream (xDSL's parsers provide it)."""

    @property
    def pos(self) -> int: ...
    def parse_keyword(self, keyword: str) -> str: ...
    def parse_identifier(self, context_msg: str = "") -> str: ...
    def parse_optional_keyword(self, keyword: str) -> Any: ...
    def parse_optional_identifier(self) -> str | None: ...
    def parse_integer(self, allow_boolean: bool = True) -> int: ...
    def parse_punctuation(self, punctuation: Any) -> Any: ...
    def parse_optional_punctuation(self, punctuation: Any) -> Any: ...
    def raise_error(self, msg: str, at_position: int, end_position: int) -> Any: ...


@frozen
class Tiles:
    """How many of each dimension are on chip at a time. `batch`, `kv_head` and `group` count heads."""

    batch: int
    kv_head: int
    group: int
    query: int
    key: int
    d_qk: int
    d_v: int


@frozen
class Keep:
    """Slots of each tensor's buffer, and across which loop K and V stay on chip.

    Where the values are features of the keys, `v_level` may be `k`: V is read where K lies, and has no buffer.
    A slot is one copy: 2 slots let the next tile arrive while this one is used. `k_level` and `v_level`
    are `key` (a tile at a time is streamed, again for every query tile), `query` (all keys at once, again
    for every query tile) or `kv_head` (all keys of the head tile are loaded once and stay for all its
    query rows). `scores` counts score tiles, or whole rows of scores where the softmax algorithm is `rows`.
    """

    q_slots: int
    k_slots: int
    v_slots: int
    score_slots: int
    output_slots: int
    k_level: Level = "key"
    v_level: ValueLevel = "key"


@frozen
class ArrayUse:
    """How a matrix product uses the 2D array.

    `stationarity` says which operand stays in the PEs. `fold_rows` x `fold_columns` independent pieces
    share the array side by side when a dimension is narrower than it. `add` says where an attend product of one key
    tile is added to those before: by the array that makes it, or by the vector unit, from a buffer of its own.
    """

    stationarity: Stationarity
    fold_rows: int = 1
    fold_columns: int = 1
    add: Unit = "array"


@frozen
class Softmax:
    """Which softmax algorithm runs and where it divides.

    `rows`: whole rows of scores stay on chip, two passes over them (FLAT). `online`: one pass over key
    tiles with a running maximum; outputs are rescaled at every tile (Milakov and Gimelshein 2018;
    FlashAttention). `streamed`: two passes over the source of the scores, for a softmax on its own whose
    rows do not fit. `none`: the kernel has no softmax. Such a kernel may also have `rows`: whole rows of scores stay
    on chip between the two products (see `product_rows`). `divide` is `early` (probabilities) or `late`
    (outputs).

    `maximum`, `exponential` and `total` (row sum) say which unit does the work of each score of an online softmax, the
    vector unit or the PEs of the array; what belongs to rows is always the vector unit's. Where the array has a part
    of it, score tiles stay in the registers of the PEs from the logit to the attend. A row sum in `attend` is a column
    of ones beside V: the product has one more column, which is rescaled with the others.

    An online softmax takes its maximum, and rescales outputs, every `rescaled_every` key tiles: their scores stay on
    chip together, a strip, while K and V are loaded tile by tile. Rows are one strip that is never rescaled.
    The first strip has nothing to rescale or to add to; `rescales_first` does so all the same, as a machine without
    conditions would.
    """

    algorithm: Algorithm
    divide: Divide = "late"
    maximum: Unit = "vector"
    exponential: Unit = "vector"
    total: RowSum = "vector"
    rescales_first: bool = False
    rescaled_every: int = 1

    @property
    def on_array(self) -> bool:
        """Whether the PEs of the array do a part of it."""
        return "array" in (self.maximum, self.exponential, self.total)

    def to_text(self) -> str:
        """The words between the parentheses of `softmax(...)`."""
        words = [self.algorithm, f"divide {self.divide}"]
        words += [f"{name} {_place(unit)}" for name, unit in self._places() if unit != "vector"]
        words += ["first rescaled"] * self.rescales_first
        words += [f"rescaled every {self.rescaled_every}"] * (self.rescaled_every > 1)
        return ", ".join(words)

    def _places(self) -> tuple[tuple[str, str], ...]:
        return (("max", self.maximum), ("exp", self.exponential), ("sum", self.total))


@frozen
class Stages:
    """Pipeline stage of each kind of work: in trip i of its loop, stage s works on instance i - s.

    `attend` covers the rescaling before it, `store` the division or conversion before it.
    """

    load: int
    logit: int
    softmax: int
    attend: int
    store: int


@frozen
class Mapping:
    """One point of the map space of one fused kernel. See the module docstring for the text form.

    `interleave` query tiles are under way at a time: the loops over d_qk and key stand outside of the loop over these
    tiles. In an online softmax they share each tile of K and V; without a softmax each has its own loads.
    """

    tiles: Tiles
    keep: Keep
    logit: ArrayUse
    attend: ArrayUse
    softmax: Softmax
    stages: Stages
    interleave: int = 1

    def to_text(self, separator: str = " ") -> str:
        """The text form; `parse_mapping` reads it back."""
        keep = self.keep
        parts = [
            f"tiles({', '.join(f'{d} {getattr(self.tiles, d)}' for d in DIMS)})",
            f"keep(Q x{keep.q_slots}, K x{keep.k_slots} at {keep.k_level}, "
            f"V x{keep.v_slots} at {keep.v_level}, scores x{keep.score_slots}, output x{keep.output_slots})",
            f"logit({array_text(self.logit)})",
            f"attend({array_text(self.attend)})",
            f"softmax({self.softmax.to_text()})",
            f"stages({', '.join(f'{f.name} {getattr(self.stages, f.name)}' for f in fields(Stages))})",
        ]
        if self.interleave != 1:
            parts.append(f"interleave({self.interleave})")
        return separator.join(parts)


def array_text(use: ArrayUse) -> str:
    """The text of the use of an array, without brackets."""
    add = f", add {_place(use.add)}" if use.add != "array" else ""
    return f"{use.stationarity} stationary, fold {use.fold_rows} x {use.fold_columns}{add}"


def _place(unit: str) -> str:
    return "in attend" if unit == "attend" else f"on {unit}"


def parse_mapping(tokens: MappingTokens) -> Mapping:
    """Parses what `Mapping.to_text` prints. Errors are raised by the token stream, with its position."""
    tiles = Tiles(*parse_named_integers(tokens, "tiles", DIMS, least=1))
    keep = _parse_keep(tokens)
    logit = parse_array_use(tokens, "logit")
    attend = parse_array_use(tokens, "attend")
    softmax = _parse_softmax(tokens)
    stages = Stages(*parse_named_integers(tokens, "stages", [f.name for f in fields(Stages)], least=0))
    return Mapping(tiles, keep, logit, attend, softmax, stages, _parse_interleave(tokens))


def _parse_softmax(tokens: MappingTokens) -> Softmax:
    tokens.parse_keyword("softmax")
    tokens.parse_punctuation("(")
    algorithm = cast(Algorithm, parse_choice(tokens, get_args(Algorithm), "softmax algorithm"))
    tokens.parse_punctuation(",")
    tokens.parse_keyword("divide")
    divide = cast(Divide, parse_choice(tokens, get_args(Divide), "place of the division"))
    fields = {"max": "maximum", "exp": "exponential", "sum": "total", "first": "rescales_first"}
    fields |= {"rescaled": "rescaled_every"}
    given: dict[str, Any] = {}
    while tokens.parse_optional_punctuation(",") is not None:
        start = tokens.pos
        word = parse_choice(tokens, tuple(fields), "part of a softmax")
        if fields[word] in given:
            tokens.raise_error(f"softmax: '{word}' is said twice", start, start + len(word))
        given[fields[word]] = _parse_softmax_part(tokens, word)
    tokens.parse_punctuation(")")
    return Softmax(algorithm, divide, **given)


def _parse_softmax_part(tokens: MappingTokens, word: str) -> str | bool | int:
    if word == "first":
        tokens.parse_keyword("rescaled")
        return True
    if word == "rescaled":
        tokens.parse_keyword("every")
        return _integer(tokens, "softmax: rescaled every", 1)
    if word == "sum" and tokens.parse_optional_keyword("in"):
        tokens.parse_keyword("attend")
        return "attend"
    tokens.parse_keyword("on")
    return parse_choice(tokens, get_args(Unit), "unit")


def _parse_interleave(tokens: MappingTokens) -> int:
    if not tokens.parse_optional_keyword("interleave"):
        return 1
    tokens.parse_punctuation("(")
    tiles = _integer(tokens, "interleave", 1)
    tokens.parse_punctuation(")")
    return tiles


def parse_named_integers(tokens: MappingTokens, group: str, names: Iterable[str], *, least: int) -> list[int]:
    """Parses `group(name 1, ...)`: the numbers."""
    tokens.parse_keyword(group)
    values: list[int] = []
    for name in names:
        tokens.parse_punctuation("," if values else "(")
        tokens.parse_keyword(name)
        values.append(_integer(tokens, f"{group}: {name}", least))
    tokens.parse_punctuation(")")
    return values


LARGEST = 2**40
"""No dimension, slot or stage is larger than this."""


def _integer(tokens: MappingTokens, what: str, least: int) -> int:
    start = tokens.pos
    value = tokens.parse_integer(allow_boolean=False)
    if not least <= value <= LARGEST:
        bound = f"at least {least}" if value < least else f"at most {LARGEST}"
        tokens.raise_error(f"{what} must be {bound}, got {value}", start, start + len(str(value)))
    return value


def parse_choice(tokens: MappingTokens, choices: tuple[str, ...], what: str) -> str:
    """Parses one of some words."""
    start = tokens.pos
    word = tokens.parse_identifier()
    if word not in choices:
        expected = f"expected one of {', '.join(choices)}"
        tokens.raise_error(f"unknown {what} '{word}': {expected}", start, start + len(word))
    return word


def parse_slots(tokens: MappingTokens, name: str) -> int:
    """Parses `name x2`: the number of slots."""
    tokens.parse_keyword(name)
    start = tokens.pos
    # `x2` is one identifier to the lexer.
    word = tokens.parse_optional_identifier() or ""
    if not (word.startswith("x") and word[1:].isdigit() and 1 <= int(word[1:]) <= 4096):
        message = f"keep: {name} must have x1, x2, ... or x4096 slots"
        tokens.raise_error(f"{message}, got '{word}'" if word else message, start, start + max(1, len(word)))
    return int(word[1:])


def _parse_keep(tokens: MappingTokens) -> Keep:
    tokens.parse_keyword("keep")
    tokens.parse_punctuation("(")
    slots: list[int] = []
    levels: list[ValueLevel] = []
    for name in ("Q", "K", "V", "scores", "output"):
        if slots:
            tokens.parse_punctuation(",")
        slots.append(parse_slots(tokens, name))
        if name in ("K", "V"):
            tokens.parse_keyword("at")
            allowed = get_args(Level if name == "K" else ValueLevel)
            levels.append(cast(ValueLevel, parse_choice(tokens, allowed, "level")))
    tokens.parse_punctuation(")")
    q, k, v, scores, output = slots
    k_level, v_level = levels
    return Keep(q, k, v, scores, output, cast(Level, k_level), v_level)


def parse_array_use(tokens: MappingTokens, name: str) -> ArrayUse:
    """Parses `name(output stationary, fold 1 x 1)`."""
    tokens.parse_keyword(name)
    tokens.parse_punctuation("(")
    stationarity = cast(Stationarity, parse_choice(tokens, get_args(Stationarity), "stationarity"))
    tokens.parse_keyword("stationary")
    tokens.parse_punctuation(",")
    tokens.parse_keyword("fold")
    rows = _integer(tokens, f"{name}: fold of rows", 1)
    tokens.parse_keyword("x")
    columns = _integer(tokens, f"{name}: fold of columns", 1)
    add: Unit = "array"
    if tokens.parse_optional_punctuation(",") is not None:
        tokens.parse_keyword("add")
        tokens.parse_keyword("on")
        add = cast(Unit, parse_choice(tokens, get_args(Unit), "unit"))
    tokens.parse_punctuation(")")
    return ArrayUse(stationarity, rows, columns, add)
