"""Where the elements of tensors lie: heads, some of the features, features side by side, pages, caches that grow.

These ops belong to the attn dialect, which `flatc/dialects/attn.py` puts together. They compute nothing; what moves
and what is only read in another order, `lower-to-spatial` decides.

    %h = attn.split_heads %q into 4 : (tensor<1x7x64xbf16>) -> tensor<1x4x7x16xbf16>
    %v = attn.features %c from 0 : (tensor<1x1x9x576xbf16>) -> tensor<1x1x9x512xbf16>
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

from typing_extensions import override
from xdsl.dialects.builtin import I64, IntegerAttr, i32
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    prop_def,
    result_def,
    var_operand_def,
)

from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn_op import (
    AttnOp,
    Tensor,
    element_type_of,
    integer_attr,
    require_same_element,
    shape_of,
)
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError


class RearrangedOp(AttnOp, ABC):
    """Shared by the ops whose result has the elements of one tensor in other places."""

    x = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, result: Attribute):
        super().__init__(operands=[x], result_types=[result])

    @override
    def check(self) -> None:
        require_same_element(self.name, self.x, self.result)


@irdl_op_definition
class SplitHeadsOp(AttnOp):
    """Split features into heads: [B, S, H * D] becomes [B, H, S, D].

    %h = attn.split_heads %x into 12 : (tensor<2x7x768xf16>) -> tensor<2x12x7x64xf16>
    """

    name = "attn.split_heads"

    x = operand_def(Tensor)
    heads = prop_def(IntegerAttr[I64])
    result = result_def(Tensor)

    assembly_format = "$x `into` $heads attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, heads: int, result: Attribute):
        super().__init__(operands=[x], properties={"heads": integer_attr(heads)}, result_types=[result])

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.x, self.result)
        return shapes.split_heads(shape_of(self.x), self.heads.value.data)


@irdl_op_definition
class MergeHeadsOp(RearrangedOp):
    """Join heads to features: [B, H, S, D] becomes [B, S, H * D].

    %x = attn.merge_heads %h : (tensor<2x12x7x64xf16>) -> tensor<2x7x768xf16>
    """

    name = "attn.merge_heads"

    @override
    def shape(self) -> Shape:
        return shapes.merge_heads(shape_of(self.x))


@irdl_op_definition
class FeaturesOp(AttnOp):
    """Some of the features of a tensor: `start` up to, and without, `start` plus the size of the result's last dim.

        %v = attn.features %c from 0 : (tensor<1x1x9x576xbf16>) -> tensor<1x1x9x512xbf16>

    Nothing moves: the values of multi-head latent attention are features of its keys.
    """

    name = "attn.features"

    x = operand_def(Tensor)
    start = prop_def(IntegerAttr[I64])
    result = result_def(Tensor)

    assembly_format = "$x `from` $start attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, start: int, result: Attribute):
        super().__init__(operands=[x], properties={"start": integer_attr(start)}, result_types=[result])

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.x, self.result)
        start = self.start.value.data
        return shapes.features(shape_of(self.x), start, start + shape_of(self.result)[-1])


@irdl_op_definition
class ConcatOp(AttnOp):
    """Join tensors by their features: those of the first, then those of the second, and so on.

        %k = attn.concat %n, %r : (tensor<1x4x9x128xbf16>, tensor<1x4x9x64xbf16>) -> tensor<1x4x9x192xbf16>

    Nothing moves: the kernels that compute the parts store them beside one another.
    """

    name = "attn.concat"

    parts = var_operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$parts attr-dict `:` functional-type(operands, results)"

    def __init__(self, parts: Sequence[SSAValue], result: Attribute):
        super().__init__(operands=[parts], result_types=[result])

    @override
    def shape(self) -> Shape:
        if len(self.parts) < 2:
            raise FlatcError(f"{self.name} joins {len(self.parts)} tensors", help="give it two or more")
        for part in self.parts:
            require_same_element(self.name, part, self.result)
        return shapes.concat([shape_of(part) for part in self.parts])

    def start_of(self, part: SSAValue) -> int:
        """Where the features of a part begin."""
        before = self.parts[: list(self.parts).index(part)]
        return sum(shape_of(other)[-1] for other in before)


@irdl_op_definition
class CopyOp(RearrangedOp):
    """The elements of a tensor in a place of their own; one head is stored for each of those of the result.

    %k = attn.copy %r : (tensor<1x1x9x64xbf16>) -> tensor<1x4x9x64xbf16>
    """

    name = "attn.copy"

    @override
    def shape(self) -> Shape:
        return shapes.copy(shape_of(self.x), shape_of(self.result))


@irdl_op_definition
class PagedOp(AttnOp):
    """Keys or values of sequences that lie in blocks of a pool, wherever a table says.

        %k = attn.paged %pool, %table
               : (tensor<90x8x16x128xbf16>, tensor<2x5xi32>) -> tensor<2x8x77x128xbf16>

    The pool is [blocks, KV, rows of a block, D], the table [B, blocks of a sequence]; blocks may be shared, and the
    last one of a sequence may be used in part. Nothing moves.
    """

    name = "attn.paged"

    pool = operand_def(Tensor)
    table = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$pool `,` $table attr-dict `:` functional-type(operands, results)"

    def __init__(self, pool: SSAValue, table: SSAValue, result: Attribute):
        super().__init__(operands=[pool, table], result_types=[result])

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.pool, self.result)
        if element_type_of(self.table) != i32:
            raise FlatcError(f"the table has element type {element_type_of(self.table)}", help="use i32")
        rows = shape_of(self.result)[2] if len(shape_of(self.result)) == 4 else 0
        return shapes.paged(shape_of(self.pool), shape_of(self.table), rows)


@irdl_op_definition
class AppendOp(AttnOp):
    """Write new keys or values after a cache: [B, KV, P, D] and [B, KV, S, D] give [B, KV, P + S, D].

        %k2 = attn.append %cache, %k
               : (tensor<1x8x8192x128xbf16>, tensor<1x8x1x128xbf16>) -> tensor<1x8x8193x128xbf16>

    The cache is extended in place: only the new rows are written. It may be empty.
    """

    name = "attn.append"

    cache = operand_def(Tensor)
    new = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$cache `,` $new attr-dict `:` functional-type(operands, results)"

    def __init__(self, cache: SSAValue, new: SSAValue, result: Attribute):
        super().__init__(operands=[cache, new], result_types=[result])

    @override
    def may_be_empty(self) -> bool:
        return True

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.cache, self.new)
        require_same_element(self.name, self.cache, self.result)
        return shapes.append(shape_of(self.cache), shape_of(self.new))

    @override
    def check(self) -> None:
        for value in (self.new, self.result):
            shapes.check_sizes(shape_of(value))
