"""Frozen records with checked fields, and their text inside an attribute.

An accelerator is a plain frozen dataclass: passes read `accelerator.buffer.capacity_bytes`, tests build
one with `dataclasses.replace`. This module gives such records two things, both driven by the
annotations of their fields, so that a field is declared once:

- `check_fields(record)`, to be called from `__post_init__`: a field of the wrong type, below its
  minimum or outside its choices is a `FlatcError` that names the field and what is expected.
- `print_record` and `parse_record`: a text form that reads back as an equal record.

    @frozen
    class Registers:
        bytes_per_pe: Annotated[int, Quantity("B")]
        energy_pj_per_byte: Annotated[float, Quantity("pJ/B")]

is written as `{bytes_per_pe = 0, energy_pj_per_byte = 0.5}`. Tuples of names are written `[a, b]`,
tuples of pairs `{a = 1, b = 7}`, a missing value `none`.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from xdsl.parser import AttrParser
from xdsl.printer import Printer

from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.frozen import frozen
from flatc.dialects.parsing import float_text


@frozen
class Quantity:
    """What a number counts (its base unit) and the least value that makes sense."""

    unit: str
    minimum: int = 0

    @property
    def expectation(self) -> str:
        """The phrase that completes "must be ..."."""
        return "positive" if self.minimum == 1 else f"at least {self.minimum}"


@cache
def quantities(record: type) -> dict[str, Quantity]:
    """The quantity of each numeric field of `record`, by field name."""
    hints = get_type_hints(record, include_extras=True)
    found: dict[str, Quantity] = {}
    for name, hint in hints.items():
        for layer in (hint, *get_args(hint)):
            for note in getattr(layer, "__metadata__", ()):
                if isinstance(note, Quantity):
                    found[name] = note
    return found


@cache
def defaults(record: type) -> dict[str, Any]:
    """The fields of `record` that may be left out, with what they are then."""
    return {field.name: field.default for field in fields(record) if field.default is not MISSING}


@cache
def field_types(record: type) -> dict[str, Any]:
    """The plain type of each field of `record`, units stripped."""
    return get_type_hints(record)


def check_fields(record: object) -> None:
    """Raise `FlatcError` unless every field has its declared type and range."""
    kind: type[Any] = type(record)
    owner = kind.__name__
    for name, hint in field_types(kind).items():
        value = getattr(record, name)
        if not _conforms(hint, value):
            raise FlatcError(f"{owner}.{name} must be {_describe(hint)}, got {value!r}")
        quantity = quantities(kind).get(name)
        if quantity and value is not None and value < quantity.minimum:
            raise FlatcError(f"{owner}.{name} must be {quantity.expectation}, got {value}")


def print_record(record: Any, printer: Printer, separator: str = ", ") -> None:
    """Print the fields of `record`, without brackets."""
    printer.print_list(
        fields(record),
        lambda field: _print_entry(field.name, getattr(record, field.name), printer),
        separator,
    )


_Record = TypeVar("_Record")


def parse_record(kind: type[_Record], parser: AttrParser) -> _Record:
    """Read in angle brackets what `print_record` wrote."""
    start = parser.pos
    entries = parser.parse_comma_separated_list(parser.Delimiter.ANGLE, lambda: _parse_entry(parser))
    try:
        return _build(kind, _unique(entries, parser))
    except FlatcError as error:
        parser.raise_error("; ".join([error.message, *error.notes, *filter(None, [error.help])]), start)


def _conforms(hint: Any, value: Any) -> bool:
    """Whether `value` is of the type `hint`, which is one of the few that records use."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        items = cast(tuple[Any, ...], value)
        expected = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        return len(items) == len(expected) and all(map(_conforms, expected, items))
    if arguments:
        return any(_conforms(choice, value) for choice in arguments)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _describe(hint: Any) -> str:
    """The type `hint` in the user's words."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        inner = arguments[0]
        return "a tuple of pairs" if get_origin(inner) is tuple else "a tuple of names"
    if arguments:
        return " or ".join(_describe(choice) for choice in arguments)
    names = {int: "a whole number", float: "a finite number", str: "a string", type(None): "none"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _print_entry(name: str, value: Any, printer: Printer) -> None:
    printer.print_identifier_or_string_literal(name)
    printer.print_string(" = ")
    _print_value(value, printer)


def _print_value(value: Any, printer: Printer) -> None:
    if value is None:
        printer.print_string("none")
    elif isinstance(value, str):
        printer.print_identifier_or_string_literal(value)
    elif isinstance(value, float):
        printer.print_string(float_text(value))
    elif isinstance(value, int):
        printer.print_int(value)
    elif is_dataclass(value):
        with printer.in_braces():
            print_record(value, printer)
    else:
        _print_tuple(value, printer)


def _print_tuple(items: tuple[Any, ...], printer: Printer) -> None:
    if items and isinstance(items[0], tuple):
        with printer.in_braces():
            printer.print_list(items, lambda pair: _print_entry(pair[0], pair[1], printer))
    else:
        with printer.in_square_brackets():
            printer.print_list(items, lambda item: _print_value(item, printer))


def _parse_entry(parser: AttrParser) -> tuple[str, Any]:
    name = parser.parse_identifier_or_str_literal()
    parser.parse_punctuation("=")
    return name, _parse_value(parser)


def _parse_value(parser: AttrParser) -> Any:
    """A number, a name, a string, `[...]` (a tuple) or `{...}` (a dictionary)."""
    entries = parser.parse_optional_comma_separated_list(parser.Delimiter.BRACES, lambda: _parse_entry(parser))
    if entries is not None:
        return _unique(entries, parser)
    items = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_value(parser))
    if items is not None:
        return tuple(items)
    text = parser.parse_optional_identifier_or_str_literal()
    if text is None and (encoded := parser.parse_optional_bytes_literal()) is not None:
        text = encoded.decode(errors="replace")
    return parser.parse_number() if text is None else text


def _unique(entries: list[tuple[str, Any]], parser: AttrParser) -> dict[str, Any]:
    result = dict(entries)
    if len(result) < len(entries):
        names = [name for name, _ in entries]
        repeated = next(name for name in names if names.count(name) > 1)
        parser.raise_error(f"field '{repeated}' is given twice")
    return result


def _build(kind: type[_Record], entries: dict[str, Any]) -> _Record:
    """The record of type `kind` with these parsed entries."""
    hints = field_types(kind)
    for name in entries:
        if name not in hints:
            raise FlatcError(f"{kind.__name__} has no field '{name}'", help=did_you_mean(name, hints))
    if missing := [name for name in hints if name not in entries and name not in defaults(kind)]:
        raise FlatcError(f"{kind.__name__} lacks the field '{missing[0]}'")
    return kind(**{name: _convert(hints[name], entries[name]) for name in hints if name in entries})


def _convert(hint: Any, value: Any) -> Any:
    """A parsed value as the type `hint`; what does not fit is left for `check_fields` to report."""
    if is_dataclass(hint) and isinstance(value, dict):
        return _build(cast(type[Any], hint), cast(dict[str, Any], value))
    if get_origin(hint) is tuple and isinstance(value, dict):
        return tuple(cast(dict[str, Any], value).items())
    if hint is float and type(value) is int:
        return float(value)
    return None if value == "none" and type(None) in get_args(hint) else value
