"""What a builder hands out: a tensor of a graph, and errors that say where it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from xdsl.ir import SSAValue

from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError, Position

if TYPE_CHECKING:
    from flatc.builder.graph import Graph

T = TypeVar("T")


def guard(at: Position | None, rule: Callable[[], T]) -> T:
    """Apply a shape rule and let its complaint carry the position."""
    try:
        return rule()
    except FlatcError as error:
        raise FlatcError(error.message, position=at, notes=error.notes, help=error.help) from None


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of a graph: a handle with shape and type, and the operators `+`, `*` and `@`."""

    graph: Graph = field(repr=False)
    value: SSAValue = field(repr=False)
    shape: Shape
    dtype: str
    name: str | None = None

    def __add__(self, other: Tensor) -> Tensor:
        return self.graph.add(self, other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return self.graph.multiply(self, other)

    def __rmul__(self, other: float) -> Tensor:
        return self.graph.multiply(self, other)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.graph.linear(self, other)
