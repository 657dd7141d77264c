"""The layer around attention: projections, residuals, norms, activations, rotary positions, heads, cache.

These ops belong to the attn dialect, which `flatc/dialects/attn.py` puts together.

    %q = attn.linear %x, %wq accumulate f32 : tensor<1x7x64xbf16>, tensor<64x64xbf16> -> tensor<1x7x64xbf16>
    %h = attn.split_heads %q into 4 : (tensor<1x7x64xbf16>) -> tensor<1x4x7x16xbf16>
    %r = attn.rope %h start 0 base 10000.0 dims 16 : tensor<1x4x7x16xbf16>
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override
from xdsl.dialects.builtin import I64, FloatAttr, IntegerAttr, UnitAttr, i32
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import Attribute, SpacedOpaqueSyntaxAttribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    VarConstraint,
    base,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.str_enum import StrEnum

from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn_op import (
    AttnOp,
    Tensor,
    element_type_of,
    integer_attr,
    real_attr,
    require_finite,
    require_float,
    require_positive,
    require_same_element,
    shape_of,
)
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError


@irdl_op_definition
class LinearOp(AttnOp):
    """A projection: `x . w`, plus a bias vector that joins the sum before it is rounded.

    %y = attn.linear %x, %w bias(%b : tensor<96xf16>) accumulate f32
           : tensor<2x7x64xf16>, tensor<64x96xf16> -> tensor<2x7x96xf16>

    A weight of three dims has a matrix for each head, and no bias: [B, H, S, I] times [H, I, O] gives [B, H, S, O].
    """

    name = "attn.linear"

    x = operand_def(Tensor)
    w = operand_def(Tensor)
    bias = opt_operand_def(Tensor)
    accumulator = prop_def()
    output = result_def(Tensor)

    assembly_format = (
        "$x `,` $w (`bias` `(` $bias^ `:` type($bias) `)`)? `accumulate` $accumulator attr-dict"
        " `:` type($x) `,` type($w) `->` type($output)"
    )

    def __init__(
        self,
        x: SSAValue,
        w: SSAValue,
        accumulator: Attribute,
        result: Attribute,
        bias: SSAValue | None = None,
    ):
        operands: list[SSAValue | Sequence[SSAValue]] = [x, w, [bias] if bias else []]
        super().__init__(operands=operands, properties={"accumulator": accumulator}, result_types=[result])

    @property
    def by_head(self) -> bool:
        """Whether every head has a weight of its own."""
        return len(shape_of(self.w)) == 3

    @override
    def shape(self) -> Shape:
        return shapes.linear(shape_of(self.x), shape_of(self.w))

    @override
    def check(self) -> None:
        require_float("the accumulator", self.accumulator)
        require_float("the output", element_type_of(self.output))
        if self.bias is not None:
            if self.by_head:
                raise FlatcError(
                    "a product head by head takes no bias", help="add it to the result: it is a kernel of its own"
                )
            shapes.vector("bias", shape_of(self.bias), "output feature", shape_of(self.w)[1])
            require_float("bias", element_type_of(self.bias))


class ElementwiseOp(AttnOp, ABC):
    """Shared by the ops that combine two tensors element by element; dims of 1 are repeated."""

    left = operand_def(Tensor)
    right = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$left `,` $right attr-dict `:` functional-type(operands, results)"

    def __init__(self, left: SSAValue, right: SSAValue, result: Attribute):
        super().__init__(operands=[left, right], result_types=[result])

    @override
    def shape(self) -> Shape:
        return shapes.broadcast(shape_of(self.left), shape_of(self.right))

    @override
    def check(self) -> None:
        require_same_element(self.name, self.left, self.right)
        require_same_element(self.name, self.left, self.result)
        require_float("the operand", element_type_of(self.left))


@irdl_op_definition
class AddOp(ElementwiseOp):
    """Add two tensors, as a residual connection does.

    %y = attn.add %x, %h : (tensor<2x7x64xf16>, tensor<2x7x64xf16>) -> tensor<2x7x64xf16>
    """

    name = "attn.add"


@irdl_op_definition
class MultiplyOp(ElementwiseOp):
    """Multiply two tensors element by element, as a gate does.

    %y = attn.multiply %g, %u : (tensor<2x7x96xf16>, tensor<2x7x96xf16>) -> tensor<2x7x96xf16>
    """

    name = "attn.multiply"


class SameTypeOp(AttnOp, ABC):
    """Shared by the ops that map one tensor to another of the same type."""

    T: ClassVar = VarConstraint("T", base(Tensor))
    x = operand_def(T)
    result = result_def(T)

    @override
    def shape(self) -> Shape:
        require_float("x", element_type_of(self.x))
        return shape_of(self.x)


@irdl_op_definition
class ScaleOp(SameTypeOp):
    """Multiply a tensor by a number.

    %y = attn.scale %x by 0.5 : tensor<2x7x64xf16>
    """

    name = "attn.scale"

    factor = prop_def(FloatAttr)

    assembly_format = "$x `by` custom<Number>($factor) attr-dict `:` type($x)"

    def __init__(self, x: SSAValue, factor: float):
        super().__init__(operands=[x], properties={"factor": real_attr(factor)}, result_types=[x.type])

    @override
    def check(self) -> None:
        require_finite("the factor", self.factor)


@irdl_op_definition
class CastOp(AttnOp):
    """Convert a tensor to another element type, rounding to nearest even.

    %y = attn.cast %x : tensor<2x7x64xf16> -> tensor<2x7x64xf32>
    """

    name = "attn.cast"

    x = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$x attr-dict `:` type($x) `->` type($result)"

    def __init__(self, x: SSAValue, result: Attribute):
        super().__init__(operands=[x], result_types=[result])

    @override
    def shape(self) -> Shape:
        return shape_of(self.x)


class NormKind(StrEnum):
    """`layernorm` removes mean and deviation; `rmsnorm` divides by the root mean square only."""

    LAYERNORM = "layernorm"
    RMSNORM = "rmsnorm"


@irdl_attr_definition
class NormKindAttr(EnumAttribute[NormKind], SpacedOpaqueSyntaxAttribute):
    """Which normalisation: `#attn<norm_kind rmsnorm>`."""

    name = "attn.norm_kind"


@irdl_op_definition
class NormOp(SameTypeOp):
    """Normalise over the last dim, then scale by a weight and shift by a bias where given.

    %y = attn.norm rmsnorm %x weight(%g : tensor<64xbf16>) epsilon 1.0e-06 : tensor<2x7x64xbf16>
    """

    name = "attn.norm"

    kind = prop_def(NormKindAttr)
    x = operand_def(SameTypeOp.T)
    weight = opt_operand_def(Tensor)
    bias = opt_operand_def(Tensor)
    epsilon = prop_def(FloatAttr)

    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    assembly_format = (
        "$kind $x (`weight` `(` $weight^ `:` type($weight) `)`)? (`bias` `(` $bias^ `:` type($bias) `)`)?"
        " `epsilon` custom<Number>($epsilon) attr-dict `:` type($x)"
    )

    def __init__(
        self,
        kind: NormKind,
        x: SSAValue,
        epsilon: float,
        weight: SSAValue | None = None,
        bias: SSAValue | None = None,
    ):
        super().__init__(
            operands=[x, [weight] if weight else [], [bias] if bias else []],
            properties={"kind": NormKindAttr(kind), "epsilon": real_attr(epsilon)},
            result_types=[x.type],
        )

    @override
    def check(self) -> None:
        if not shape_of(self.x):
            raise FlatcError("x has no dims", help="normalise a tensor with at least one dim")
        if require_finite("epsilon", self.epsilon) < 0:
            raise FlatcError(f"epsilon is {self.epsilon.value.data}", help="give 0 or a small positive number")
        for what, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                shapes.vector(what, shape_of(value), "feature", shape_of(self.x)[-1])
                require_float(what, element_type_of(value))


class Activation(StrEnum):
    """Pointwise functions; `gelu` is the exact one (erf), `gelu_tanh` its usual approximation."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"
    RELU = "relu"
    SIGMOID = "sigmoid"
    TANH = "tanh"


@irdl_attr_definition
class ActivationAttr(EnumAttribute[Activation], SpacedOpaqueSyntaxAttribute):
    """Which pointwise function: `#attn<activation_kind gelu>`."""

    name = "attn.activation_kind"


@irdl_op_definition
class ActivationOp(SameTypeOp):
    """Apply a pointwise function.

    %y = attn.activation gelu %x : tensor<2x7x96xf16>
    """

    name = "attn.activation"

    kind = prop_def(ActivationAttr)

    assembly_format = "$kind $x attr-dict `:` type($x)"

    def __init__(self, kind: Activation, x: SSAValue):
        super().__init__(operands=[x], properties={"kind": ActivationAttr(kind)}, result_types=[x.type])


@irdl_op_definition
class RopeOp(SameTypeOp):
    """Rotary position embedding of x [B, H, S, D]; row s has position `start + s`.

        %y = attn.rope %x start 8192 base 500000.0 dims 128 : tensor<1x32x1x128xbf16>

    The first `dims` features are rotated in pairs: feature i with i + dims / 2, or, if `interleaved`,
    2 i with 2 i + 1. Pair i turns by `position * base ** (-2 i / dims)`.
    """

    name = "attn.rope"

    start = prop_def(IntegerAttr[I64])
    wavelength = prop_def(FloatAttr, prop_name="base")
    dims = prop_def(IntegerAttr[I64])
    interleaved = opt_prop_def(UnitAttr)

    assembly_format = (
        "$x `start` $start `base` custom<Number>($base) `dims` $dims (`interleaved` $interleaved^)? attr-dict"
        " `:` type($x)"
    )

    def __init__(self, x: SSAValue, start: int, base: float, dims: int, interleaved: bool = False):
        properties = {
            "start": integer_attr(start),
            "base": real_attr(base),
            "dims": integer_attr(dims),
            "interleaved": UnitAttr() if interleaved else None,
        }
        super().__init__(operands=[x], properties=properties, result_types=[x.type])

    @override
    def check(self) -> None:
        shapes.rope(shape_of(self.x), self.dims.value.data)
        require_positive("base", self.wavelength)
        if self.start.value.data < 0:
            raise FlatcError(f"start is {self.start.value.data}", help="positions count from 0")


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
class MergeHeadsOp(AttnOp):
    """Join heads to features: [B, H, S, D] becomes [B, S, H * D].

    %x = attn.merge_heads %h : (tensor<2x12x7x64xf16>) -> tensor<2x7x768xf16>
    """

    name = "attn.merge_heads"

    x = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, result: Attribute):
        super().__init__(operands=[x], result_types=[result])

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.x, self.result)
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
class CopyOp(AttnOp):
    """The elements of a tensor in a place of their own; one head is stored for each of those of the result.

    %k = attn.copy %r : (tensor<1x1x9x64xbf16>) -> tensor<1x4x9x64xbf16>
    """

    name = "attn.copy"

    x = operand_def(Tensor)
    result = result_def(Tensor)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, result: Attribute):
        super().__init__(operands=[x], result_types=[result])

    @override
    def shape(self) -> Shape:
        require_same_element(self.name, self.x, self.result)
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
