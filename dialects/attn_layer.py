"""The layer around attention: projections, residuals, norms, activations, rotary positions.

These ops belong to the attn dialect, which `flatc/dialects/attn.py` puts together.

    %q = attn.linear %x, %wq accumulate f32 : tensor<1x7x64xbf16>, tensor<64x64xbf16> -> tensor<1x7x64xbf16>
    %r = attn.rope %h start 0 base 10000.0 dims 16 : tensor<1x4x7x16xbf16>
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override
from xdsl.dialects.builtin import I64, FloatAttr, IntegerAttr, UnitAttr
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
