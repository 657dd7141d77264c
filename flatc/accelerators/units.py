"""Quantities as users write them: a number and a unit, read exactly and printed back.

    >>> parse("512 KiB", "B")
    Fraction(524288, 1)
    >>> format_quantity(53687091200, "B/s")
    '50 GiB/s'

GB and GiB differ, and the literature uses both, so a unit is never optional and never guessed.
Bandwidths may be given per cycle (`8 B/cycle`); the caller then says how fast the clock is.
"""

from __future__ import annotations

import re
from fractions import Fraction

from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.frozen import frozen

_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


@frozen
class Measure:
    """A kind of quantity: what it is called, how an example looks, and its units in base units."""

    noun: str
    example: str
    units: dict[str, Fraction]


MEASURES = {
    "": Measure("a whole number", "32", {"": Fraction(1)}),
    "B": Measure("a size", "512 KiB", {unit: Fraction(size) for unit, size in _BYTES.items()}),
    "B/s": Measure("a bandwidth", "50 GiB/s", {f"{unit}/s": Fraction(s) for unit, s in _BYTES.items()}),
    "Hz": Measure("a frequency", "940 MHz", {"Hz": Fraction(1), "MHz": Fraction(10**6), "GHz": Fraction(10**9)}),
    "cycles": Measure("a number of cycles", "12 cycles", {"cycles": Fraction(1), "cycle": Fraction(1)}),
    "pJ": Measure("an energy", "0.5 pJ", {"pJ": Fraction(1), "fJ": Fraction(1, 1000), "nJ": Fraction(1000)}),
    "pJ/B": Measure("an energy per byte", "37.5 pJ/B", {"pJ/B": Fraction(1), "pJ/bit": Fraction(8)}),
}
"""By base unit."""

_PER_CYCLE = {f"{unit}/cycle": Fraction(size) for unit, size in _BYTES.items()}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z].*)?")
_LARGEST = 10**30


def parse(text: str, base: str, clock_hz: int | None = None) -> Fraction:
    """The quantity `text` in units of `base`; a `FlatcError` says what is wrong with it."""
    measure = MEASURES[base]
    matched = _QUANTITY.fullmatch(text.strip()) if len(text) < 100 else None
    if matched is None:
        raise FlatcError(f"expected {measure.noun}, got '{_shorten(text)}'", help=f"write it like {measure.example}")
    number, unit = Fraction(matched[1]), (matched[2] or "").strip()
    value = number * _scale(unit, base, clock_hz, text)
    if abs(value) > _LARGEST:
        raise FlatcError(f"'{text}' is too large to be {measure.noun}")
    return value


def _scale(unit: str, base: str, clock_hz: int | None, text: str) -> Fraction:
    """How many base units one `unit` is."""
    measure = MEASURES[base]
    if unit in measure.units:
        return measure.units[unit]
    if base == "B/s" and clock_hz and unit in _PER_CYCLE:
        return _PER_CYCLE[unit] * clock_hz
    if not unit:
        raise FlatcError(
            f"'{text}' has no unit; expected {measure.noun}",
            help=f"write it like {measure.example}; units: {', '.join(measure.units)}",
        )
    if base == "":
        raise FlatcError(f"expected a whole number without a unit, got '{_shorten(text)}'")
    same_letters = [known for known in measure.units if known.lower() == unit.lower()]
    near = f"did you mean '{same_letters[0]}'?" if same_letters else did_you_mean(unit, measure.units)
    raise FlatcError(
        f"'{_shorten(unit)}' is no unit of {measure.noun}",
        help=near or f"write it like {measure.example}; units: {', '.join(measure.units)}",
    )


def format_quantity(value: float, base: str) -> str:
    """The shortest exact text of `value`, which `parse` reads back; larger units win ties."""
    if isinstance(value, float):
        return f"{value!r} {base}".replace(".0 ", " ")
    if base in ("", "cycles"):
        return " ".join(filter(None, [str(value), base if value != 1 else base.removesuffix("s")]))
    candidates = [(f"{value // size} {unit}", size) for unit, size in MEASURES[base].units.items() if value % size == 0]
    return min(candidates, key=lambda candidate: (len(candidate[0]), -candidate[1]))[0]


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
