"""Quasi-affine integer expressions: the language of loop bounds, offsets and extents.

A schedule keeps its loops symbolic, so every quantity that changes from trip to trip is written as an
expression of the loop indices: sums with integer coefficients, floor and ceiling division by a
constant, min and max. That is enough for ragged edges (`min(64, 509 - q * 64)`) and for triangular or
banded loops (`min(ceildiv(q * 64 + 64, 128), 4)`), and little enough to be reasoned about exactly.

Expressions are immutable and kept in one canonical form, a linear combination of atoms, so that equal
meanings mostly compare equal and constants fold as they appear:

    >>> q = var("q")
    >>> print(minimum(64, 509 - q * 64))
    min(64, 509 - q * 64)
    >>> minimum(64, 509 - q * 64).evaluate({"q": 7})
    61

Evaluation takes Python integers or NumPy arrays; both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Protocol

from typing_extensions import override

from flatc.dialects.frozen import frozen

Range = tuple[int, int]
"""The smallest and the largest value (inclusive) that something takes."""


class Token(Protocol):
    """What the parser of expressions needs from a token stream (xDSL's parsers provide it)."""

    def parse_optional_punctuation(self, punctuation: Any) -> Any: ...
    def parse_punctuation(self, punctuation: Any) -> Any: ...
    def parse_optional_integer(self) -> int | None: ...
    def parse_integer(self) -> int: ...
    def parse_optional_keyword(self, keyword: str) -> str | None: ...
    def raise_error(self, msg: str) -> Any: ...


@frozen
class Var:
    """An index, by name."""

    name: str


@frozen
class Quotient:
    """`numerator` divided by the positive constant `divisor`, rounded down or up."""

    numerator: Expr
    divisor: int
    up: bool


@frozen
class Extremum:
    """The least (or largest) of several expressions."""

    parts: tuple[Expr, ...]
    largest: bool


Atom = Var | Quotient | Extremum


@frozen
class Expr:
    """`sum(coefficient * atom) + constant`. Build it with `const`, `var` and the operators."""

    terms: tuple[tuple[Atom, int], ...]
    constant: int

    def __add__(self, other: Expr | int) -> Expr:
        other = as_expr(other)
        coefficients: dict[Atom, int] = dict(self.terms)
        for atom, coefficient in other.terms:
            coefficients[atom] = coefficients.get(atom, 0) + coefficient
        return _linear(coefficients.items(), self.constant + other.constant)

    def __radd__(self, other: int) -> Expr:
        return as_expr(other) + self

    def __neg__(self) -> Expr:
        return self * -1

    def __sub__(self, other: Expr | int) -> Expr:
        return self + as_expr(other) * -1

    def __rsub__(self, other: int) -> Expr:
        return as_expr(other) - self

    def __mul__(self, factor: int) -> Expr:
        if factor == 0:
            return const(0)
        return _linear(((a, c * factor) for a, c in self.terms), self.constant * factor)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Expr:
        return _quotient(self, divisor, up=False)

    def is_constant(self) -> bool:
        """True when the value depends on no index."""
        return not self.terms

    def variables(self) -> Iterator[str]:
        """The names of the indices it depends on, in order of appearance, possibly repeated."""
        for atom, _ in self.terms:
            match atom:
                case Var(name):
                    yield name
                case Quotient(numerator):
                    yield from numerator.variables()
                case Extremum(parts):
                    for part in parts:
                        yield from part.variables()

    def substitute(self, values: Mapping[str, Expr | int]) -> Expr:
        """The expression with some indices replaced by other expressions."""
        return self._map_atoms(lambda atom: _substitute_atom(atom, values))

    def simplify(self, ranges: Mapping[str, Range]) -> Expr:
        """An expression of equal value while every index stays in its range."""
        return self._map_atoms(lambda atom: _simplify_atom(atom, ranges))

    def _map_atoms(self, function: Callable[[Atom], Expr]) -> Expr:
        parts = [function(atom) * coefficient for atom, coefficient in self.terms]
        return sum(parts, start=const(self.constant))

    def range(self, ranges: Mapping[str, Range]) -> Range:
        """Bounds of its value while every index stays in its range (conservative, not always tight)."""
        low = high = self.constant
        for atom, coefficient in self.terms:
            ends = [end * coefficient for end in _atom_range(atom, ranges)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Its value; `values` maps index names to integers or to NumPy arrays that broadcast."""
        total: Any = None
        for atom, coefficient in self.terms:
            value = _evaluate_atom(atom, values)
            # Arrays may be long: a factor of 1 and a sum of one term are no work.
            value = value if coefficient == 1 else value * coefficient
            total = value if total is None else total + value
        if total is None:
            return self.constant
        return total + self.constant if self.constant else total

    def to_python(self, name: Callable[[str], str] = str) -> str:
        """Source text of a Python expression of the same value, for compiling hot loops."""
        parts = [f"{_atom_python(a, name)}*{c}" if c != 1 else _atom_python(a, name) for a, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return "(" + "+".join(parts) + ")"

    def to_text(self, name: Callable[[str], str] = str) -> str:
        """The printed form, with index names mapped through `name`; what is added stands before what is subtracted."""
        pieces = [
            (c, f"{_atom_text(a, name)} * {abs(c)}" if abs(c) != 1 else _atom_text(a, name)) for a, c in self.terms
        ]
        if self.constant or not pieces:
            pieces.append((self.constant, str(abs(self.constant))))
        pieces.sort(key=lambda piece: piece[0] < 0)
        text = "".join((" - " if c < 0 else " + ") + piece for c, piece in pieces)
        return text[3:] if text.startswith(" + ") else "-" + text[3:]

    @override
    def __str__(self) -> str:
        return self.to_text()


def _linear(terms: Iterable[tuple[Atom, int]], constant: int) -> Expr:
    """What is added stands before what is subtracted, as in the text, so that the text reads back as equal."""
    return Expr(tuple(sorted((t for t in terms if t[1]), key=lambda t: t[1] < 0)), constant)


def const(value: int) -> Expr:
    """A constant."""
    return Expr((), value)


def var(name: str) -> Expr:
    """An index."""
    return Expr(((Var(name), 1),), 0)


def as_expr(value: Expr | int) -> Expr:
    """`value` itself, or an integer as a constant."""
    return value if isinstance(value, Expr) else const(value)


def minimum(*parts: Expr | int) -> Expr:
    """The least of `parts`."""
    return _extremum([as_expr(p) for p in parts], largest=False)


def maximum(*parts: Expr | int) -> Expr:
    """The largest of `parts`."""
    return _extremum([as_expr(p) for p in parts], largest=True)


def ceildiv(numerator: Expr, divisor: int) -> Expr:
    """`numerator / divisor`, rounded up."""
    return _quotient(numerator, divisor, up=True)


def _quotient(numerator: Expr, divisor: int, *, up: bool) -> Expr:
    if divisor <= 0:
        raise ValueError(f"divisor must be positive, got {divisor}")
    # Terms that the divisor divides leave the division: (128 * k + r) / 64 = 2 * k + r / 64.
    whole = Expr(tuple((a, c // divisor) for a, c in numerator.terms if c % divisor == 0), 0)
    rest = Expr(tuple((a, c) for a, c in numerator.terms if c % divisor), numerator.constant)
    if rest.is_constant():
        return whole + (-(-rest.constant // divisor) if up else rest.constant // divisor)
    whole, rest = whole + rest.constant // divisor, Expr(rest.terms, rest.constant % divisor)
    return whole + Expr(((Quotient(rest, divisor, up), 1),), 0)


def _extremum(parts: Sequence[Expr], *, largest: bool) -> Expr:
    flat: list[Expr] = []
    for part in parts:
        match part.terms:
            case ((Extremum(inner, same), 1),) if same == largest and part.constant == 0:
                flat += inner
            case _:
                flat.append(part)
    pick = max if largest else min
    # Parts that differ by a constant only: one of them decides.
    best: dict[tuple[tuple[Atom, int], ...], int] = {}
    for part in flat:
        known = best.get(part.terms)
        best[part.terms] = part.constant if known is None else pick(known, part.constant)
    unique = tuple(Expr(terms, constant) for terms, constant in best.items())
    return unique[0] if len(unique) == 1 else Expr(((Extremum(unique, largest), 1),), 0)


def _substitute_atom(atom: Atom, values: Mapping[str, Expr | int]) -> Expr:
    match atom:
        case Var(name):
            return as_expr(values[name]) if name in values else var(name)
        case Quotient(numerator, divisor, up):
            return _quotient(numerator.substitute(values), divisor, up=up)
        case Extremum(parts, largest):
            return _extremum([p.substitute(values) for p in parts], largest=largest)


def _simplify_atom(atom: Atom, ranges: Mapping[str, Range]) -> Expr:
    low, high = _atom_range(atom, ranges)
    if low == high:
        return const(low)
    match atom:
        case Var(name):
            return var(name)
        case Quotient(numerator, divisor, up):
            return _quotient(numerator.simplify(ranges), divisor, up=up)
        case Extremum(parts, largest):
            return _simplify_extremum([p.simplify(ranges) for p in parts], largest, ranges)


def _simplify_extremum(parts: list[Expr], largest: bool, ranges: Mapping[str, Range]) -> Expr:
    """Drops every part that another part dominates over the whole range."""
    kept: list[Expr] = []
    for i, part in enumerate(parts):
        others = kept + parts[i + 1 :]
        differences = [(other - part if largest else part - other).range(ranges)[0] for other in others]
        if all(difference < 0 for difference in differences) or not others:
            kept.append(part)
    return _extremum(kept, largest=largest)


def _atom_range(atom: Atom, ranges: Mapping[str, Range]) -> Range:
    match atom:
        case Var(name):
            return ranges[name]
        case Quotient(numerator, divisor, up):
            low, high = numerator.range(ranges)
            return (-(-low // divisor), -(-high // divisor)) if up else (low // divisor, high // divisor)
        case Extremum(parts, largest):
            ends = [part.range(ranges) for part in parts]
            pick = max if largest else min
            return pick(low for low, _ in ends), pick(high for _, high in ends)


def _evaluate_atom(atom: Atom, values: Mapping[str, Any]) -> Any:
    match atom:
        case Var(name):
            return values[name]
        case Quotient(numerator, divisor, up):
            value = numerator.evaluate(values)
            return -(-value // divisor) if up else value // divisor
        case Extremum(parts, largest):
            results = [part.evaluate(values) for part in parts]
            if all(isinstance(r, int) for r in results):
                return max(results) if largest else min(results)
            import numpy as np

            return reduce(np.maximum if largest else np.minimum, results)


def _atom_text(atom: Atom, name: Callable[[str], str]) -> str:
    match atom:
        case Var(variable):
            return name(variable)
        case Quotient(numerator, divisor, up):
            return f"{'ceildiv' if up else 'floordiv'}({numerator.to_text(name)}, {divisor})"
        case Extremum(parts, largest):
            return f"{'max' if largest else 'min'}({', '.join(p.to_text(name) for p in parts)})"


def _atom_python(atom: Atom, name: Callable[[str], str]) -> str:
    match atom:
        case Var(variable):
            return name(variable)
        case Quotient(numerator, divisor, up):
            text = numerator.to_python(name)
            return f"(-(-{text}//{divisor}))" if up else f"({text}//{divisor})"
        case Extremum(parts, largest):
            return f"{'max' if largest else 'min'}({','.join(p.to_python(name) for p in parts)})"


def parse_expr(tokens: Token, parse_variable: Callable[[], Expr]) -> Expr:
    """Parses what `Expr.to_text` prints; `parse_variable` reads one index."""
    negative = tokens.parse_optional_punctuation("-") is not None
    total = _parse_term(tokens, parse_variable)
    if negative:
        total = -total
    while True:
        if tokens.parse_optional_punctuation("+") is not None:
            total = total + _parse_term(tokens, parse_variable)
        elif tokens.parse_optional_punctuation("-") is not None:
            total = total - _parse_term(tokens, parse_variable)
        else:
            return total


def _parse_term(tokens: Token, parse_variable: Callable[[], Expr]) -> Expr:
    factor = _parse_factor(tokens, parse_variable)
    while tokens.parse_optional_punctuation("*") is not None:
        other = _parse_factor(tokens, parse_variable)
        # Sign and factor commute: `q * -64` and `64 * q` are both read.
        if other.is_constant():
            factor, other = other, factor
        if not factor.is_constant():
            tokens.raise_error("the product of two indices is not quasi-affine: multiply by a constant")
        factor = other * factor.constant
    return factor


def _parse_factor(tokens: Token, parse_variable: Callable[[], Expr]) -> Expr:
    value = tokens.parse_optional_integer()
    if value is not None:
        return const(value)
    if tokens.parse_optional_punctuation("(") is not None:
        inner = parse_expr(tokens, parse_variable)
        tokens.parse_punctuation(")")
        return inner
    for keyword in ("min", "max"):
        if tokens.parse_optional_keyword(keyword) is not None:
            parts = _parse_arguments(tokens, parse_variable)
            return _extremum(parts, largest=keyword == "max")
    for keyword in ("floordiv", "ceildiv"):
        if tokens.parse_optional_keyword(keyword) is not None:
            arguments = _parse_arguments(tokens, parse_variable)
            if len(arguments) != 2 or not arguments[1].is_constant() or arguments[1].constant <= 0:
                tokens.raise_error(f"{keyword} takes an expression and a positive constant to divide it by")
            return _quotient(arguments[0], arguments[1].constant, up=keyword == "ceildiv")
    return parse_variable()


def _parse_arguments(tokens: Token, parse_variable: Callable[[], Expr]) -> list[Expr]:
    tokens.parse_punctuation("(")
    arguments = [parse_expr(tokens, parse_variable)]
    while tokens.parse_optional_punctuation(",") is not None:
        arguments.append(parse_expr(tokens, parse_variable))
    tokens.parse_punctuation(")")
    return arguments
