"""What a user may choose in a `.flat` graph: its phases, and the dims with their values in each.

>>> text = "graph g\\ndim B = 2\\nphase prefill : S = 8\\nphase decode : S = 1"
>>> print(summary(text, "g.flat"))
graph g
phase prefill (default): B = 2, S = 8
phase decode: B = 2, S = 1
"""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from flatc.dialects.frozen import frozen
from flatc.frontend.dims import resolve
from flatc.frontend.elaborate import header_of
from flatc.frontend.parser import parse
from flatc.frontend.source import Source
from flatc.frontend.syntax import Phase


@frozen
class GraphSummary:
    """The name of a graph, its phases (the first is the default) and the dims of each phase."""

    name: str
    phases: tuple[str, ...]
    dims: Mapping[str | None, Mapping[str, int]]
    """The value of each dim, by phase; under None for a graph without phases."""

    @override
    def __str__(self) -> str:
        lines = [f"graph {self.name}"]
        for phase, values in self.dims.items():
            default = " (default)" if phase == next(iter(self.phases), None) else ""
            title = "dims" if phase is None else f"phase {phase}{default}"
            lines.append(f"{title}: {', '.join(f'{name} = {value}' for name, value in values.items())}")
        return "\n".join(lines)


def summary(text: str, file: str) -> GraphSummary:
    """Read the declarations of a graph without building it."""
    source = Source.of(text, file)
    statements = parse(source)
    header = header_of(source, statements)
    phases = tuple(s.name.text for s in statements if isinstance(s, Phase))
    tables = {phase: resolve(source, header, statements, {}, phase) for phase in phases or (None,)}
    return GraphSummary(header.name.text, phases, {phase: table.values for phase, table in tables.items()})
