"""Syntax tree -> attn module: every statement becomes calls of `flatc.builder.Graph`.

    y = x + merge(a) @ wo        graph.add(x, graph.linear(graph.merge(a), wo))

Shapes and types are the builder's business; names, kinds (tensor, mask, bias, number) and positions are
settled here. A statement with a mistake leaves its name undefined but known: statements that read it are
skipped without a word, so one mistake gives one message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import BlockArgument

from flatc.builder import DTYPES, Graph, Tensor, dtype_help
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.frontend.dims import DimTable, resolve
from flatc.frontend.expressions import Expressions, Value, reposition
from flatc.frontend.functions import RESERVED
from flatc.frontend.parser import parse
from flatc.frontend.source import MAX_ERRORS, Source, combined
from flatc.frontend.syntax import (
    Assignment,
    Declaration,
    Dims,
    Dtype,
    GraphHeader,
    Name,
    Output,
    Phase,
    Statement,
    names_in,
)

TYPE_ROLES = ("softmax", "accumulate")
"""What a `dtype` statement may give a type of its own."""


def elaborate(source: Source, bindings: Mapping[str, int], phase: str | None) -> ModuleOp:
    """The verified module of a `.flat` text."""
    statements = parse(source)
    header = header_of(source, statements)
    table = resolve(source, header, statements, bindings, phase)
    graph = _graph(source, header, statements, table)
    builder = _Elaborator(source, graph, table, statements)
    builder.run()
    if not any(isinstance(statement, Output) for statement in statements):
        raise source.error(
            f"graph '{graph.name}' has no output", header.name.at, help="end the file with 'output NAME'"
        )
    return graph.module()


def header_of(source: Source, statements: Sequence[Statement]) -> GraphHeader:
    """The `graph` statement, which must come first and only once."""
    headers = [s for s in statements if isinstance(s, GraphHeader)]
    if not statements:
        raise source.error("the file holds no graph", source.end, help="start it with 'graph NAME'")
    if not headers or statements[0] is not headers[0]:
        first = _first_name(statements[0])
        raise source.error("the file must start with 'graph NAME'", first.at)
    if len(headers) > 1:
        note = f"the first graph is '{headers[0].name.text}'"
        raise source.error("a file holds one graph", headers[1].name.at, notes=(note,))
    return headers[0]


def _first_name(statement: Statement) -> Name:
    match statement:
        case Dims():
            return statement.bindings[0].name
        case Dtype():
            return statement.storage
        case Declaration() | Output():
            return statement.names[0]
        case GraphHeader() | Phase() | Assignment():
            return statement.name


def _graph(source: Source, header: GraphHeader, statements: Sequence[Statement], table: DimTable) -> Graph:
    """An empty graph with the types of the `dtype` statement."""
    dtypes = [s for s in statements if isinstance(s, Dtype)]
    if len(dtypes) > 1:
        raise source.error("the types are already set", dtypes[1].storage.at, help="keep one dtype statement")
    words = _roles(source, dtypes[0]) if dtypes else {}
    with reposition(source, next((words[r].at for r in TYPE_ROLES[::-1] if r in words), header.name.at)):
        storage = words["dtype"].text if "dtype" in words else "f32"
        softmax = words["softmax"].text if "softmax" in words else None
        accumulate = words["accumulate"].text if "accumulate" in words else None
        graph = Graph(
            header.name.text,
            dtype=storage,
            softmax=softmax,
            accumulate=accumulate,
            dims=table.values,
            phase=table.phase,
        )
    graph.at = header.name.at
    return graph


def _roles(source: Source, statement: Dtype) -> dict[str, Name]:
    words = {"dtype": check_type(source, statement.storage)}
    for role, word in statement.roles:
        if role.text not in TYPE_ROLES:
            raise source.error(
                f"unknown role '{role.text}' of a type",
                role.at,
                help=did_you_mean(role.text, TYPE_ROLES) or "write 'dtype bf16, softmax f32, accumulate f32'",
            )
        if role.text in words:
            raise source.error(f"the {role.text} type is already set", role.at)
        words[role.text] = check_type(source, word)
    return words


def check_type(source: Source, word: Name) -> Name:
    """The word itself, if it names an element type."""
    if word.text in DTYPES:
        return word
    raise source.error(f"unknown type '{word.text}'", word.at, help=dtype_help(word.text))


class _Elaborator:
    """Runs the statements of one file against one graph."""

    def __init__(self, source: Source, graph: Graph, table: DimTable, statements: Sequence[Statement]):
        self._source, self._graph, self._table = source, graph, table
        self._statements = statements
        self._values: dict[str, Value] = {}
        self._declared: dict[str, Name] = {}
        self._broken: set[str] = set()
        later = {s.name.text: s.name.at for s in reversed(statements) if isinstance(s, Assignment)}
        self._expressions = Expressions(source, graph, table, self._values, later)

    def run(self) -> None:
        """Every statement in order; raises one error that carries all that was found."""
        errors: list[FlatcError] = []
        for statement in self._statements:
            for name, step in self._steps(statement):
                try:
                    with reposition(self._source, name.at):
                        step()
                except FlatcError as error:
                    errors.append(error)
                    self._broken.add(name.text)
            if len(errors) >= MAX_ERRORS:
                break
        if errors:
            raise combined(errors)

    def _steps(self, statement: Statement) -> list[tuple[Name, Callable[[], None]]]:
        match statement:
            case Declaration():
                return [(name, partial(self._declare, statement, name)) for name in statement.names]
            case Assignment():
                return [(statement.name, partial(self._assign, statement, statement.name))]
            case Output():
                return [(name, partial(self._output, statement, name)) for name in statement.names]
            case _:
                return []

    def _check_free(self, name: Name) -> None:
        """A tensor may not hide a word of the language or a dim."""
        if name.text in RESERVED:
            raise self._source.error(
                f"'{name.text}' is {RESERVED[name.text]} of the language", name.at, help="choose another name"
            )
        if name.text in self._table.defined:
            raise self._source.error(
                f"'{name.text}' is a dim already",
                name.at,
                notes=(f"it is defined at {self._table.defined[name.text]}",),
                help="choose another name",
            )

    def _declare(self, statement: Declaration, name: Name) -> None:
        self._check_free(name)
        earlier = self._declared.get(name.text)
        if earlier is None and name.text in self._values:
            raise self._source.error(
                f"'{name.text}' is already assigned", name.at, help="declare tensors before they are used"
            )
        if earlier is not None:
            note = f"the first declaration is at {earlier.at}"
            raise self._source.error(f"'{name.text}' is declared twice", name.at, notes=(note,))
        self._declared[name.text] = name
        word = statement.type.dtype
        dtype = check_type(self._source, word).text if word else None
        shape = [self._expressions.numbers.count(dim, "a dim") for dim in statement.type.dims]
        declare = {"input": self._graph.input, "weight": self._graph.weight, "cache": self._graph.cache}
        with reposition(self._source, statement.type.at):
            tensor = declare[statement.kind](name.text, shape, dtype)
        assert isinstance(tensor.value, BlockArgument)
        tensor.value.location = name.at.to_location()
        self._values[name.text] = tensor

    def _assign(self, statement: Assignment, name: Name) -> None:
        if any(read.text in self._broken for read in names_in(statement.value)):
            self._broken.add(name.text)
            return
        self._check_free(name)
        value = self._expressions.any(statement.value)
        self._values[name.text] = self._graph.bind(name.text, value) if isinstance(value, Tensor) else value
        self._broken.discard(name.text)

    def _output(self, statement: Output, name: Name) -> None:
        if name.text not in self._broken:
            tensor = self._expressions.tensor(name)
            self._graph.output(tensor, names=[name.text], at=name.at)
