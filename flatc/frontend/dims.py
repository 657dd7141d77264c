"""The dims of a graph: names for whole numbers, under one choice of phase and of outside bindings.

    dim B = 1, H = 32, T = P + S
    phase prefill : S = 8192, P = 0
    phase decode  : S = 1,    P = 8192

A dim comes from the outside (`--bind S=4096`) if it is bound there, else from the phase, else from `dim`.
What is defined by other dims follows them: `--bind P=100` gives T = 101 in phase decode. The first phase is
taken when none is named. `dim` and `phase` are declarations: their order in the file does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from graphlib import CycleError, TopologicalSorter

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean
from flatc.dialects.frozen import frozen
from flatc.frontend.arithmetic import LARGEST, Arithmetic
from flatc.frontend.functions import RESERVED
from flatc.frontend.source import Source, combined
from flatc.frontend.syntax import Binding, Dims, Expression, GraphHeader, Name, Phase, Statement, names_in


@frozen
class DimTable:
    """The value of every dim, the phase that was taken, and where each dim was first defined."""

    source: Source
    graph: str
    phase: str | None
    values: Mapping[str, int]
    defined: Mapping[str, Position]
    arithmetic: Arithmetic = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arithmetic", Arithmetic(self.source, self.value))

    def value(self, name: Name) -> int:
        """The value of a dim, for use in an expression."""
        if name.text in self.values:
            return self.values[name.text]
        if name.text in self.defined:
            raise self.source.error(
                f"dim '{name.text}' has no value in phase '{self.phase}'",
                name.at,
                help=f"give it one in the phase, in a dim statement, or with --bind {name.text}=...",
            )
        raise self.source.error(
            f"unknown dim '{name.text}'", name.at, help=did_you_mean(name.text, self.defined) or self._known()
        )

    def _known(self) -> str:
        return f"the dims are {', '.join(self.defined)}" if self.defined else "declare it: dim NAME = NUMBER"


def resolve(
    source: Source,
    header: GraphHeader,
    statements: Sequence[Statement],
    bindings: Mapping[str, int],
    phase: str | None,
) -> DimTable:
    """Evaluate every dim; raises one error that carries all that is wrong with them."""
    phases = {s.name.text: s for s in statements if isinstance(s, Phase)}
    defined, errors = _definitions(source, statements)
    if errors:
        raise combined(errors)
    chosen = choose_phase(header.name.text, tuple(phases), phase)
    formulas = {b.name.text: b for b in _bindings(statements, chosen)}
    _check_bindings(header.name.text, defined, bindings)
    for name in bindings:
        formulas.pop(name, None)
    values = _evaluate(source, header.name.text, chosen, formulas, bindings, defined)
    return DimTable(source, header.name.text, chosen, values, defined)


def choose_phase(graph: str, phases: Sequence[str], wanted: str | None) -> str | None:
    """The phase asked for, else the first one, else None for a graph without phases."""
    if wanted is None:
        return phases[0] if phases else None
    if wanted in phases:
        return wanted
    if not phases:
        raise FlatcError(f"graph '{graph}' has no phases, so there is no phase '{wanted}'", help="leave --phase out")
    raise FlatcError(
        f"graph '{graph}' has no phase '{wanted}'",
        notes=(f"its phases are {', '.join(phases)}",),
        help=did_you_mean(wanted, phases),
    )


def _bindings(statements: Sequence[Statement], phase: str | None) -> Iterator[Binding]:
    """Every binding that holds in a phase; those of the phase come last."""
    for statement in statements:
        if isinstance(statement, Dims):
            yield from statement.bindings
    for statement in statements:
        if isinstance(statement, Phase) and statement.name.text == phase:
            yield from statement.bindings


def _definitions(source: Source, statements: Sequence[Statement]) -> tuple[dict[str, Position], list[FlatcError]]:
    """Where each dim is first defined; a dim may be defined once in `dim` and once in each phase."""
    first: dict[str, Position] = {}
    scopes: dict[str, dict[str, Position]] = {}
    errors: list[FlatcError] = []
    for statement in statements:
        if isinstance(statement, Phase):
            scope, what = f"phase {statement.name.text}", f"phase '{statement.name.text}'"
            if scope in scopes:
                errors.append(source.error(f"{what} is already declared", statement.name.at))
                continue
        elif isinstance(statement, Dims):
            scope, what = "dim", "a dim statement"
        else:
            continue
        seen = scopes.setdefault(scope, {})
        for name in (b.name for b in statement.bindings):
            if name.text in RESERVED:
                message = f"'{name.text}' is {RESERVED[name.text]} of the language"
                errors.append(source.error(message, name.at, help="choose another name"))
            if name.text in seen:
                note = f"the first definition is at {seen[name.text]}"
                errors.append(source.error(f"dim '{name.text}' is already defined in {what}", name.at, notes=(note,)))
            seen.setdefault(name.text, name.at)
            first.setdefault(name.text, name.at)
    return first, errors


def _check_bindings(graph: str, defined: Mapping[str, Position], bindings: Mapping[str, int]) -> None:
    for name, value in bindings.items():
        if name not in defined:
            raise FlatcError(
                f"cannot bind '{name}': graph '{graph}' has no such dim",
                notes=(f"its dims are {', '.join(defined)}",) if defined else (),
                help=did_you_mean(name, defined),
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FlatcError(f"cannot bind {name}={value}: a dim is a whole number from 0 to {LARGEST}")


def _evaluate(
    source: Source,
    graph: str,
    phase: str | None,
    formulas: Mapping[str, Binding],
    bindings: Mapping[str, int],
    defined: Mapping[str, Position],
) -> dict[str, int]:
    values = dict(bindings)
    table = DimTable(source, graph, phase, values, defined)
    broken: set[str] = set()
    errors: list[FlatcError] = []
    for name in _order(source, formulas):
        value = formulas[name].value
        if any(read.text in broken for read in names_in(value)):
            broken.add(name)
            continue
        try:
            values[name] = _dim(table, name, value)
        except FlatcError as error:
            broken.add(name)
            errors.append(error)
    if errors:
        raise combined(errors)
    return {name: values[name] for name in defined if name in values}


def _dim(table: DimTable, name: str, formula: Expression) -> int:
    return table.arithmetic.count(formula, f"dim '{name}'")


def _order(source: Source, formulas: Mapping[str, Binding]) -> list[str]:
    """Names such that each comes after those it is defined by."""
    needs = {
        name: sorted({read.text for read in names_in(binding.value)} & formulas.keys())
        for name, binding in formulas.items()
    }
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        raise source.error(
            f"dim '{cycle[0]}' is defined by itself",
            formulas[cycle[0]].name.at,
            notes=(f"{' <- '.join(cycle[:10])}",) if len(cycle) > 2 else (),
        ) from None
