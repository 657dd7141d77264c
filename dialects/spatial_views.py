"""Tensors off chip that lie in other tensors: views, windows, caches that grow, sequences in pages. Nothing moves.

    %k = spatial.extend %ck : !spatial.tensor<1x8x8192x128xbf16> -> !spatial.tensor<1x8x8193x128xbf16>
    %w = spatial.slice %k at [0, 0, 8192, 0] : !spatial.tensor<1x8x8193x128xbf16> -> !spatial.tensor<1x8x1x128xbf16>

A kernel that stores into `%w` appends to the cache; one that loads `%k` reads old rows and new ones. These operations
belong to the spatial dialect, which `flatc/dialects/spatial.py` puts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Self, cast

from typing_extensions import override
from xdsl.dialects.builtin import ArrayAttr, IntAttr, i32
from xdsl.ir import SSAValue
from xdsl.irdl import IRDLOperation, irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.parsing import parse_known_operand
from flatc.dialects.spatial_onchip import OnchipOp
from flatc.dialects.spatial_types import TensorRefType


@irdl_op_definition
class ViewOp(IRDLOperation):
    """The same off-chip bytes under another shape: heads split into (kv head, group), for instance.

        %v = spatial.view %q : !spatial.tensor<2x8x5x4xf32> -> !spatial.tensor<2x2x4x5x4xf32>
        %h = spatial.view %x order [0, 2, 1, 3] : !spatial.tensor<2x5x8x4xf32> -> !spatial.tensor<2x8x5x4xf32>

    With an `order` the dims are taken in that order, as a transposed view of an array takes them; without one, the
    elements are numbered anew in the same order. Dims can always be split, and be joined where the elements of both
    lie at even distances. Nothing moves.
    """

    name = "spatial.view"
    source = operand_def(TensorRefType)
    order = opt_prop_def(ArrayAttr[IntAttr])
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())

    def __init__(self, source: SSAValue, type: TensorRefType, order: Sequence[int] | None = None):
        properties = {"order": None if order is None else ArrayAttr([IntAttr(dim) for dim in order])}
        super().__init__(operands=[source], properties=properties, result_types=[type])

    @property
    def dims_order(self) -> tuple[int, ...] | None:
        """Which dim of the source each dim is, if they are taken in another order."""
        return None if self.order is None else tuple(dim.data for dim in self.order)

    @override
    def verify_(self) -> None:
        source, target, order = cast(TensorRefType, self.source.type), self.tensor.type, self.dims_order
        if source.bytes != target.bytes or source.element_type != target.element_type:
            raise VerifyException(f"spatial.view cannot turn {source} into {target}: the sizes differ")
        if order is not None:
            taken = tuple(source.dims[dim] for dim in order if dim < len(source.dims))
            if sorted(order) != list(range(len(source.dims))) or taken != target.dims:
                raise VerifyException(f"spatial.view cannot turn {source} into {target} by the order {list(order)}")
        elif not can_be_viewed_as(self.source, target.dims):
            raise VerifyException(
                f"spatial.view cannot turn {source} into {target}: its elements do not lie in this order, so "
                "dims can be split and not be joined"
            )

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        source = parse_known_operand(parser)
        order = None
        if parser.parse_optional_keyword("order"):
            order = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        start = parser.pos
        if parser.parse_type() != source.type:
            parser.raise_error(f"the source has type {source.type}", start)
        parser.parse_punctuation("->")
        type = parser.parse_type()
        if not isinstance(type, TensorRefType):
            parser.raise_error(f"expected a !spatial.tensor type, got {type}", start)
        op = cls(source, type, order)
        op.attributes |= attributes
        return op

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_ssa_value(self.source)
        if self.dims_order is not None:
            printer.print_string(f" order {list(self.dims_order)}")
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_attribute(self.source.type)
        printer.print_string(" -> ")
        printer.print_attribute(self.tensor.type)


@irdl_op_definition
class SliceOp(IRDLOperation):
    """A window of a tensor off chip: `%w = spatial.slice %k at [0, 0, 8192, 0] : <tensor> -> <tensor>`."""

    name = "spatial.slice"
    source = operand_def(TensorRefType)
    starts = prop_def(ArrayAttr[IntAttr])
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())

    def __init__(self, source: SSAValue, starts: Sequence[int], type: TensorRefType):
        properties = {"starts": ArrayAttr([IntAttr(start) for start in starts])}
        super().__init__(operands=[source], properties=properties, result_types=[type])

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the window begins, along every dim."""
        return tuple(start.data for start in self.starts)

    @override
    def verify_(self) -> None:
        source, target = cast(TensorRefType, self.source.type), self.tensor.type
        fits = len(self.offsets) == len(source.dims) == len(target.dims) and all(
            start >= 0 and start + size <= whole
            for start, size, whole in zip(self.offsets, target.dims, source.dims, strict=True)
        )
        if not fits or source.element_type != target.element_type:
            raise VerifyException(f"spatial.slice: {target} at {list(self.offsets)} does not lie in {source}")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        source = parse_known_operand(parser)
        parser.parse_keyword("at")
        starts = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        return cls(source, starts, _parse_types(parser, source))

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_ssa_value(self.source)
        printer.print_string(f" at {list(self.offsets)}")
        _print_types(printer, self.source, self.tensor)


@irdl_op_definition
class ExtendOp(IRDLOperation):
    """The storage of a cache with room for more rows: `%k = spatial.extend %ck : <tensor> -> <tensor>`.

    One dim is longer. The rows of `%ck` are the first, in place; the others hold nothing until they are stored.
    """

    name = "spatial.extend"
    source = operand_def(TensorRefType)
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())

    def __init__(self, source: SSAValue, type: TensorRefType):
        super().__init__(operands=[source], result_types=[type])

    @property
    def added_bytes(self) -> int:
        """Bytes of the rows that are new."""
        return self.tensor.type.bytes - cast(TensorRefType, self.source.type).bytes

    @override
    def verify_(self) -> None:
        source, target = cast(TensorRefType, self.source.type), self.tensor.type
        longer = [new - old for old, new in zip(source.dims, target.dims, strict=False) if new != old]
        same = len(source.dims) == len(target.dims) and source.element_type == target.element_type
        if not same or len(longer) != 1 or longer[0] < 0:
            raise VerifyException(f"spatial.extend makes one dim longer, and not {source} to {target}")
        pages = self.source.owner
        while isinstance(pages, ExtendOp):
            pages = pages.source.owner
        if isinstance(pages, PagedOp) and target.dims[2] > pages.room:
            raise VerifyException(f"spatial.extend: the pages of {source} have room for {pages.room} rows")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        source = parse_known_operand(parser)
        return cls(source, _parse_types(parser, source))

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_ssa_value(self.source)
        _print_types(printer, self.source, self.tensor)


@irdl_op_definition
class PagedOp(IRDLOperation):
    """Sequences whose rows lie in blocks of a pool, wherever a table says.

        %k = spatial.paged %pool by %table : !spatial.tensor<90x8x16x128xbf16>, !spatial.tensor<2x5xi32>
               -> !spatial.tensor<2x8x77x128xbf16>

    The pool is [blocks, heads, rows of a block, features], the table [batch, blocks of a sequence]; the last block of a
    sequence may be used in part. Nothing moves.
    """

    name = "spatial.paged"
    source = operand_def(TensorRefType)
    table = operand_def(TensorRefType)
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())
    assembly_format = "$source `by` $table attr-dict `:` type($source) `,` type($table) `->` type($tensor)"

    def __init__(self, source: SSAValue, table: SSAValue, type: TensorRefType):
        super().__init__(operands=[source, table], result_types=[type])

    @property
    def room(self) -> int:
        """How many rows of a sequence its pages can hold."""
        return cast(TensorRefType, self.table.type).dims[1] * cast(TensorRefType, self.source.type).dims[2]

    @override
    def verify_(self) -> None:
        pool, table, found = (cast(TensorRefType, v.type) for v in (self.source, self.table, self.tensor))
        fits = (
            len(pool.dims) == len(found.dims) == 4
            and len(table.dims) == 2
            and (table.dims[0], pool.dims[1], pool.dims[3]) == (found.dims[0], found.dims[1], found.dims[3])
            and 0 < found.dims[2] <= table.dims[1] * pool.dims[2]
        )
        if not fits or table.element_type != i32 or pool.element_type != found.element_type:
            raise VerifyException(f"spatial.paged: {table} over {pool} does not give {found}")


def storage(tensor: SSAValue) -> SSAValue:
    """The tensor itself behind views and windows of it; of a cache that grows, the cache; of pages, the pool."""
    while isinstance(tensor.owner, ViewOp | SliceOp | ExtendOp | PagedOp):
        tensor = tensor.owner.source
    return tensor


def can_be_viewed_as(tensor: SSAValue, dims: Sequence[int]) -> bool:
    """Whether the elements of a tensor, numbered in the order of its dims, can be addressed under other dims."""
    return _regrouped(cast(TensorRefType, tensor.type).dims, _distances(tensor), dims) is not None


Distances = tuple[int | None, ...]
"""How far apart the elements of each dim lie, in elements; None where that is not even."""


def _distances(tensor: SSAValue) -> Distances:
    """The distances between the elements of a tensor off chip, wherever it lies."""
    dims, owner = cast(TensorRefType, tensor.type).dims, tensor.owner
    if isinstance(owner, SliceOp):
        return _distances(owner.source)
    if isinstance(owner, ViewOp):
        source = _distances(owner.source)
        if owner.dims_order is not None:
            return tuple(source[dim] for dim in owner.dims_order)
        found = _regrouped(cast(TensorRefType, owner.source.type).dims, source, dims)
        assert found is not None, "a view that verifies has distances"
        return found
    dense = tuple(prod(dims[dim + 1 :]) for dim in range(len(dims)))
    # Rows of a sequence in pages follow one another within a block only.
    return (None, None, None, 1) if isinstance(owner, PagedOp) else dense


def _regrouped(dims: Sequence[int], distances: Distances, target: Sequence[int]) -> Distances | None:
    """The distances of the same elements under the dims `target`; None where these have none.

    Each stretch of dims that becomes a stretch of as many elements is joined first, which its distances must allow,
    and then split. Dims of 1 have no distance, and tensors without elements have all.
    """
    if 0 in target:
        return (1,) * len(target)
    sources = [(size, distance) for size, distance in zip(dims, distances, strict=True) if size != 1]
    found: list[int | None] = []
    left, distance = 1, 1
    for place in reversed(range(len(target))):
        size = target[place]
        if size == 1:
            found.append(1)
            continue
        if left == 1:
            if not sources:
                return None
            left, distance = sources.pop()
        while left % size and sources and distance is not None and sources[-1][1] == left * distance:
            left *= sources.pop()[0]
        if left % size:
            return None
        found.append(distance)
        left, distance = left // size, None if distance is None else distance * size
    return tuple(reversed(found)) if left == 1 and not sources else None


def _parse_types(parser: Parser, source: SSAValue) -> TensorRefType:
    """`: source type -> result type`."""
    parser.parse_punctuation(":")
    start = parser.pos
    if parser.parse_type() != source.type:
        parser.raise_error(f"the source has type {source.type}", start)
    parser.parse_punctuation("->")
    start = parser.pos
    type = parser.parse_type()
    if not isinstance(type, TensorRefType):
        parser.raise_error(f"expected a !spatial.tensor type, got {type}", start)
    return type


def _print_types(printer: Printer, source: SSAValue, tensor: SSAValue) -> None:
    printer.print_string(" : ")
    printer.print_attribute(source.type)
    printer.print_string(" -> ")
    printer.print_attribute(tensor.type)


def stays_on_chip(tensor: SSAValue) -> bool:
    """Whether a tensor, or what it is a view of, lies on chip between kernels."""
    return isinstance(storage(tensor).owner, OnchipOp)
