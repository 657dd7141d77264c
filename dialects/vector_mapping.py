"""Mappings of chains of vector operations: which tiles, in which order, how far they overlap.

    vector tiles(1 x 48 x 768) order(0, 1, 2) keep(input x2, output x2) stages(load 0, compute 0, store 1)

There is one tile for each dim of the result. `order` lists the dims, outermost loop first; a dim of one tile has no
loop. A tensor that is the same for all trips of the inner loops is loaded outside of them, and once if it is the
same for all trips. `keep` counts slots of what is loaded in a loop and of what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import LARGEST, MappingTokens

MOST_SLOTS = 4096
"""No buffer has more slots than this."""


@frozen
class VectorStages:
    """Pipeline stage of each kind of work: in trip i of its loop, stage s works on instance i - s."""

    load: int
    compute: int
    store: int


@frozen
class VectorMapping:
    """One point of the map space of a chain; the module docstring has the text form."""

    tiles: tuple[int, ...]
    order: tuple[int, ...]
    input_slots: int
    output_slots: int
    stages: VectorStages

    def to_text(self, separator: str = " ") -> str:
        """The text form; `parse_vector_mapping` reads it back, behind its first word."""
        parts = [
            f"vector tiles({' x '.join(map(str, self.tiles))})",
            f"order({', '.join(map(str, self.order))})",
            f"keep(input x{self.input_slots}, output x{self.output_slots})",
            f"stages({', '.join(f'{f.name} {getattr(self.stages, f.name)}' for f in fields(VectorStages))})",
        ]
        return separator.join(parts)


def parse_vector_mapping(tokens: MappingTokens) -> VectorMapping:
    """Parses what `to_text` prints behind `vector`. Errors are raised by the token stream, with its position."""
    tokens.parse_keyword("tiles")
    tiles = _integers(tokens, "tile", 1, "x")
    tokens.parse_keyword("order")
    start = tokens.pos
    order = _integers(tokens, "dim", 0, ",")
    if sorted(order) != list(range(len(tiles))):
        tokens.raise_error(f"order must list the dims 0 to {len(tiles) - 1}, each once", start, tokens.pos)
    tokens.parse_keyword("keep")
    tokens.parse_punctuation("(")
    input_slots = _slots(tokens, "input")
    tokens.parse_punctuation(",")
    output_slots = _slots(tokens, "output")
    tokens.parse_punctuation(")")
    return VectorMapping(tiles, order, input_slots, output_slots, _stages(tokens))


def _stages(tokens: MappingTokens) -> VectorStages:
    tokens.parse_keyword("stages")
    values: list[int] = []
    for field in fields(VectorStages):
        tokens.parse_punctuation("," if values else "(")
        tokens.parse_keyword(field.name)
        values.append(_integer(tokens, f"stages: {field.name}", 0))
    tokens.parse_punctuation(")")
    return VectorStages(*values)


def _integers(tokens: MappingTokens, what: str, least: int, separator: str) -> tuple[int, ...]:
    """Integers in brackets, with a word or a punctuation between them."""
    tokens.parse_punctuation("(")
    values = [_integer(tokens, what, least)]
    while _goes_on(tokens, separator):
        values.append(_integer(tokens, what, least))
    tokens.parse_punctuation(")")
    return tuple(values)


def _goes_on(tokens: MappingTokens, separator: str) -> bool:
    if separator.isalpha():
        return bool(tokens.parse_optional_keyword(separator))
    return bool(tokens.parse_optional_punctuation(separator))


def _integer(tokens: MappingTokens, what: str, least: int) -> int:
    start = tokens.pos
    value = tokens.parse_integer(allow_boolean=False)
    if not least <= value <= LARGEST:
        bound = f"at least {least}" if value < least else f"at most {LARGEST}"
        tokens.raise_error(f"a {what} must be {bound}, got {value}", start, start + len(str(value)))
    return value


def _slots(tokens: MappingTokens, name: str) -> int:
    tokens.parse_keyword(name)
    start = tokens.pos
    word = tokens.parse_optional_identifier() or ""  # `x2` is one identifier to the lexer
    if not (word.startswith("x") and word[1:].isdigit() and 1 <= int(word[1:]) <= MOST_SLOTS):
        tokens.raise_error(f"keep: {name} must have x1, x2, ... or x{MOST_SLOTS} slots", start, start + 1)
    return int(word[1:])


def loops(dims: Sequence[int], mapping: VectorMapping) -> list[int]:
    """The dims that have a loop, outermost first: those of more than one tile."""
    return [dim for dim in mapping.order if mapping.tiles[dim] < dims[dim]]
