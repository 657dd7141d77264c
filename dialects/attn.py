"""The attn dialect: attention and the layer around it, as values on ranked tensors.

A graph enters flatc in these ops, in the words of the field. Nothing here says how anything is computed:
tiles, fusion and machines come later. Shapes are static; `flatc.dialects.attn_shapes` holds the rules.

    %s = attn.logit %q, %k scale 0.125 accumulate f32
           : (tensor<1x8x7x64xbf16>, tensor<1x2x9x64xbf16>) -> tensor<1x8x7x9xf32>
    %m = attn.mask %s by <causal(offset = 2)> : tensor<1x8x7x9xf32>
    %p = attn.softmax %m : tensor<1x8x7x9xf32> -> tensor<1x8x7x9xbf16>
    %o = attn.attend %p, %v accumulate f32
           : (tensor<1x8x7x9xbf16>, tensor<1x2x9x64xbf16>) -> tensor<1x8x7x64xbf16>

Products accumulate in the type that the op names and round once to the element type of the result; every
other op computes in float32, or in the widest element type it touches if that is wider, and rounds once.
The NumPy meaning of each op is in `flatc/interpreter/attn.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override
from xdsl.dialects.builtin import (
    I64,
    AnyFloat,
    BFloat16Type,
    Float16Type,
    Float32Type,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    TensorType,
    UnitAttr,
    f64,
    i32,
    i64,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import Attribute, Data, Dialect, Operation, SpacedOpaqueSyntaxAttribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    VarConstraint,
    base,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.hints import isa
from xdsl.utils.str_enum import StrEnum

from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.masks import Mask, parse_mask_tokens

Tensor = TensorType[Attribute]


def _tensor_type(value: SSAValue) -> Tensor:
    assert isa(value.type, Tensor)
    return value.type


def shape_of(value: SSAValue) -> Shape:
    """The static sizes of a tensor value."""
    tensor = _tensor_type(value)
    sizes = tensor.get_shape()
    if not tensor.has_static_shape():
        raise FlatcError(f"{tensor} has a dim of unknown size", help="give every dim a number")
    return sizes


def element_type_of(value: SSAValue) -> Attribute:
    """The element type of a tensor value."""
    return _tensor_type(value).get_element_type()


def _number_text(value: float) -> str:
    text = repr(float(value))
    mantissa, e, exponent = text.partition("e")
    return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent


@irdl_custom_directive
class Number(CustomDirective):
    """A float64 property written as a plain number: `0.125`."""

    value: AttributeVariable

    @override
    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.value.set(state, FloatAttr(float(parser.parse_number()), f64))

    @override
    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        attribute = self.value.get(op)
        assert isinstance(attribute, FloatAttr)
        state.print_whitespace(printer)
        printer.print_string(_number_text(attribute.value.data))


@irdl_attr_definition
class MaskAttr(Data[Mask]):
    """A symbolic mask: `#attn.mask<causal(offset = 5) and window(left = 256, right = 0, offset = 5)>`."""

    name = "attn.mask"

    @classmethod
    @override
    def parse_parameter(cls, parser: AttrParser) -> Mask:
        with parser.in_angle_brackets():
            start = parser.pos
            try:
                return parse_mask_tokens(parser)
            except FlatcError as error:
                parser.raise_error(error.render(), at_position=start)

    @override
    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.data))


class AttnOp(IRDLOperation, ABC):
    """Shared by all ops: pure, with one result whose shape follows from the operands."""

    traits = traits_def(Pure())
    custom_directives = (Number,)

    @abstractmethod
    def shape(self) -> Shape:
        """The shape that the result must have; raises `FlatcError` when the operands do not fit."""

    def check(self) -> None:
        """Further requirements; raises `FlatcError`."""

    def require(self) -> None:
        """Everything that must hold; raises `FlatcError`."""
        for value in (*self.operands, *self.results):
            shapes.check_sizes(shape_of(value), may_be_empty=isinstance(self, AppendOp))
        expected, found = self.shape(), shape_of(self.results[0])
        if expected != found:
            raise FlatcError(f"the result has shape {shapes.text(found)}, the operands give {shapes.text(expected)}")
        self.check()

    @override
    def verify_(self) -> None:
        try:
            self.require()
        except FlatcError as error:
            lines = [error.message, *error.notes, *([error.help] if error.help else [])]
            raise VerifyException(f"{self.name}: " + "; ".join(lines)) from None


def _floating(what: str, element: Attribute) -> None:
    if not isinstance(element, AnyFloat):
        raise FlatcError(f"{what} has element type {element}", help="use a floating-point type, or attn.cast")


def _scores(what: str, value: SSAValue) -> None:
    """Scores must be able to hold minus infinity."""
    if not isinstance(element_type_of(value), Float64Type | Float32Type | Float16Type | BFloat16Type):
        raise FlatcError(f"{what} have element type {element_type_of(value)}", help="use f32, f16, bf16 or f64")


def _alike(op: str, left: SSAValue, right: SSAValue) -> None:
    a, b = element_type_of(left), element_type_of(right)
    if a != b:
        raise FlatcError(f"{op} mixes element types {a} and {b}", help="cast one side to the type of the other")


def _finite(what: str, number: FloatAttr) -> float:
    value = number.value.data
    if not math.isfinite(value):
        raise FlatcError(f"{what} is {value}", help="give a finite number")
    return value


def _positive(what: str, number: FloatAttr) -> None:
    if _finite(what, number) <= 0:
        raise FlatcError(f"{what} is {number.value.data}", help="give a number above 0")


def _real(value: float) -> FloatAttr:
    return FloatAttr(float(value), f64)


def _integer(value: int) -> IntegerAttr[I64]:
    return IntegerAttr(value, i64)


@irdl_op_definition
class LogitOp(AttnOp):
    """Scores of attention: `scale * q . k^T`, kv heads shared by groups of query heads.

        %s = attn.logit %q, %k scale 0.125 accumulate f32
               : (tensor<1x8x7x64xbf16>, tensor<1x2x9x64xbf16>) -> tensor<1x8x7x9xf32>

    The scale is applied to the accumulated sum, before it is rounded to the type of the scores.
    """

    name = "attn.logit"

    q = operand_def(Tensor)
    k = operand_def(Tensor)
    scale = prop_def(FloatAttr)
    accumulator = prop_def()
    scores = result_def(Tensor)

    assembly_format = (
        "$q `,` $k `scale` custom<Number>($scale) `accumulate` $accumulator attr-dict"
        " `:` functional-type(operands, results)"
    )

    def __init__(self, q: SSAValue, k: SSAValue, scale: float, accumulator: Attribute, result: Attribute):
        properties = {"scale": _real(scale), "accumulator": accumulator}
        super().__init__(operands=[q, k], properties=properties, result_types=[result])

    @override
    def shape(self) -> Shape:
        return shapes.logit(shape_of(self.q), shape_of(self.k))

    @override
    def check(self) -> None:
        _finite("the scale", self.scale)
        _floating("the accumulator", self.accumulator)
        _scores("scores", self.scores)


class ScoreOp(AttnOp, ABC):
    """Shared by the ops that turn scores [B, H, S, T] into scores of the same type."""

    T: ClassVar = VarConstraint("T", base(Tensor))
    scores = operand_def(T)
    result = result_def(T)

    @override
    def shape(self) -> Shape:
        _scores("scores", self.scores)
        return shapes.scores(shape_of(self.scores))


@irdl_op_definition
class SoftcapOp(ScoreOp):
    """Bound the scores smoothly: `cap * tanh(scores / cap)`.

    %c = attn.softcap %s cap 50.0 : tensor<1x8x7x9xf32>
    """

    name = "attn.softcap"

    cap = prop_def(FloatAttr)

    assembly_format = "$scores `cap` custom<Number>($cap) attr-dict `:` type($scores)"

    def __init__(self, scores: SSAValue, cap: float):
        super().__init__(operands=[scores], properties={"cap": _real(cap)}, result_types=[scores.type])

    @override
    def check(self) -> None:
        _positive("the cap", self.cap)


@irdl_op_definition
class BiasOp(ScoreOp):
    """Add a tensor to the scores; it broadcasts from the right, as in NumPy.

    %b = attn.bias %s, %table : tensor<1x8x7x9xf32>, tensor<8x7x9xbf16>
    """

    name = "attn.bias"

    scores = operand_def(ScoreOp.T)
    bias = operand_def(Tensor)

    assembly_format = "$scores `,` $bias attr-dict `:` type($scores) `,` type($bias)"

    def __init__(self, scores: SSAValue, bias: SSAValue):
        super().__init__(operands=[scores, bias], result_types=[scores.type])

    @override
    def check(self) -> None:
        shapes.onto_scores("bias", shape_of(self.scores), shape_of(self.bias))
        _floating("bias", element_type_of(self.bias))


@irdl_op_definition
class AlibiOp(ScoreOp):
    """Add attention with linear biases: `-slope(head) * |p - k|` with `p = q + offset`.

        %b = attn.alibi %s offset 2 : tensor<1x8x7x9xf32>

    The slopes are the geometric sequence of the paper (Press et al., ICLR 2022); no bias is stored.
    """

    name = "attn.alibi"

    offset = prop_def(IntegerAttr[I64])

    assembly_format = "$scores `offset` $offset attr-dict `:` type($scores)"

    def __init__(self, scores: SSAValue, offset: int):
        properties = {"offset": _integer(offset)}
        super().__init__(operands=[scores], properties=properties, result_types=[scores.type])


@irdl_op_definition
class T5RelativeOp(ScoreOp):
    """Add a learned bias that depends on the bucket of the distance `k - (q + offset)` and on the head.

        %b = attn.t5_relative %s, %table max_distance 128 offset 0 bidirectional
               : tensor<1x8x7x9xf32>, tensor<32x8xbf16>

    The table is [buckets, heads]. Near distances have a bucket each, far ones share logarithmic buckets up
    to `max_distance`. `bidirectional` spends half of the buckets on keys after the row (an encoder).
    """

    name = "attn.t5_relative"

    scores = operand_def(ScoreOp.T)
    table = operand_def(Tensor)
    max_distance = prop_def(IntegerAttr[I64])
    offset = prop_def(IntegerAttr[I64])
    bidirectional = opt_prop_def(UnitAttr)

    assembly_format = (
        "$scores `,` $table `max_distance` $max_distance `offset` $offset (`bidirectional` $bidirectional^)?"
        " attr-dict `:` type($scores) `,` type($table)"
    )

    def __init__(self, scores: SSAValue, table: SSAValue, max_distance: int, offset: int, bidirectional: bool = True):
        properties = {
            "max_distance": _integer(max_distance),
            "offset": _integer(offset),
            "bidirectional": UnitAttr() if bidirectional else None,
        }
        super().__init__(operands=[scores, table], properties=properties, result_types=[scores.type])

    @property
    def exact_distances(self) -> int:
        """How many distances, from 0, have a bucket of their own."""
        buckets = shape_of(self.table)[0]
        return buckets // (4 if self.bidirectional is not None else 2)

    @override
    def check(self) -> None:
        table = shape_of(self.table)
        shapes.rank("table", table, "buckets, query heads")
        shapes.same("the number of heads", ("table", table, 1), ("scores", shape_of(self.scores), 1))
        _floating("table", element_type_of(self.table))
        exact, furthest = self.exact_distances, self.max_distance.value.data
        if exact < 1 or furthest <= exact:
            raise FlatcError(
                f"{table[0]} buckets and max_distance {furthest} leave no logarithmic bucket",
                help="use at least 4 buckets (2 if one-directional) and a max_distance above the exact ones",
            )


@irdl_op_definition
class MaskOp(ScoreOp):
    """Set the scores of hidden keys to minus infinity. A key is visible if every given part says so:

    - `by`: a symbolic mask, which lets later passes skip whole tiles;
    - `keep`: a tensor of bool that broadcasts to the scores;
    - `valid`: bool [B, T], true for a real token, false for padding;
    - `same`: integers [B, T], the document of each key; row q belongs to key q + T - S.

        %m = attn.mask %s by <causal(offset = 2)> valid(%pad : tensor<1x9xi1>) : tensor<1x8x7x9xf32>
    """

    name = "attn.mask"

    scores = operand_def(ScoreOp.T)
    symbolic = opt_prop_def(MaskAttr)
    keep = opt_operand_def(Tensor)
    valid = opt_operand_def(Tensor)
    same = opt_operand_def(Tensor)

    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    assembly_format = (
        "$scores (`by` $symbolic^)? (`keep` `(` $keep^ `:` type($keep) `)`)?"
        " (`valid` `(` $valid^ `:` type($valid) `)`)? (`same` `(` $same^ `:` type($same) `)`)?"
        " attr-dict `:` type($scores)"
    )

    def __init__(
        self,
        scores: SSAValue,
        mask: Mask | None = None,
        *,
        keep: SSAValue | None = None,
        valid: SSAValue | None = None,
        same: SSAValue | None = None,
    ):
        super().__init__(
            operands=[scores, *([v] if v else [] for v in (keep, valid, same))],
            properties={"symbolic": MaskAttr(mask) if mask else None},
            result_types=[scores.type],
        )

    @override
    def check(self) -> None:
        scores = shape_of(self.scores)
        if self.symbolic is None and len(self.operands) == 1:
            raise FlatcError("the op hides nothing", help="give by <...>, keep, valid or same, or drop the op")
        if self.keep is not None:
            shapes.onto_scores("keep", scores, shape_of(self.keep))
            _boolean("keep", self.keep)
        if self.valid is not None:
            shapes.per_key("valid", scores, shape_of(self.valid))
            _boolean("valid", self.valid)
        if self.same is not None:
            shapes.documents(scores, shape_of(self.same))
            if element_type_of(self.same) not in (i32, i64):
                raise FlatcError(f"same has element type {element_type_of(self.same)}", help="use i32")


def _boolean(what: str, value: SSAValue) -> None:
    if element_type_of(value) != IntegerType(1):
        raise FlatcError(f"{what} has element type {element_type_of(value)}", help="use bool (i1): true is visible")


@irdl_op_definition
class SoftmaxOp(AttnOp):
    """Softmax over the keys, in the type of the scores; the probabilities may be rounded to a narrower one.

        %p = attn.softmax %s sink(%z : tensor<8xbf16>) : tensor<1x8x7x9xf32> -> tensor<1x8x7x9xbf16>

    A row whose keys are all hidden gives zeros. A sink is one more logit a head, which takes its share of
    the probability and has no value.
    """

    name = "attn.softmax"

    scores = operand_def(Tensor)
    sink = opt_operand_def(Tensor)
    probabilities = result_def(Tensor)

    assembly_format = (
        "$scores (`sink` `(` $sink^ `:` type($sink) `)`)? attr-dict `:` type($scores) `->` type($probabilities)"
    )

    def __init__(self, scores: SSAValue, result: Attribute, sink: SSAValue | None = None):
        super().__init__(operands=[scores, [sink] if sink else []], result_types=[result])

    @override
    def shape(self) -> Shape:
        return shapes.scores(shape_of(self.scores))

    @override
    def check(self) -> None:
        _scores("scores", self.scores)
        _floating("probabilities", element_type_of(self.probabilities))
        if self.sink is not None:
            shapes.vector("sink", shape_of(self.sink), "query head", shape_of(self.scores)[1])
            _floating("sink", element_type_of(self.sink))


@irdl_op_definition
class AttendOp(AttnOp):
    """Weigh the values by the probabilities: `p . v`, kv heads shared by groups of query heads.

    %o = attn.attend %p, %v accumulate f32
           : (tensor<1x8x7x9xbf16>, tensor<1x2x9x64xbf16>) -> tensor<1x8x7x64xbf16>
    """

    name = "attn.attend"

    p = operand_def(Tensor)
    v = operand_def(Tensor)
    accumulator = prop_def()
    output = result_def(Tensor)

    assembly_format = "$p `,` $v `accumulate` $accumulator attr-dict `:` functional-type(operands, results)"

    def __init__(self, p: SSAValue, v: SSAValue, accumulator: Attribute, result: Attribute):
        super().__init__(operands=[p, v], properties={"accumulator": accumulator}, result_types=[result])

    @override
    def shape(self) -> Shape:
        return shapes.attend(shape_of(self.p), shape_of(self.v))

    @override
    def check(self) -> None:
        _floating("the accumulator", self.accumulator)
        _floating("the output", element_type_of(self.output))


@irdl_op_definition
class LinearOp(AttnOp):
    """A projection: `x . w`, plus a bias vector that joins the sum before it is rounded.

    %y = attn.linear %x, %w bias(%b : tensor<96xf16>) accumulate f32
           : tensor<2x7x64xf16>, tensor<64x96xf16> -> tensor<2x7x96xf16>
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

    @override
    def shape(self) -> Shape:
        return shapes.linear(shape_of(self.x), shape_of(self.w))

    @override
    def check(self) -> None:
        _floating("the accumulator", self.accumulator)
        _floating("the output", element_type_of(self.output))
        if self.bias is not None:
            shapes.vector("bias", shape_of(self.bias), "output feature", shape_of(self.w)[1])
            _floating("bias", element_type_of(self.bias))


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
        _alike(self.name, self.left, self.right)
        _alike(self.name, self.left, self.result)
        _floating("the operand", element_type_of(self.left))


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
        _floating("x", element_type_of(self.x))
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
        super().__init__(operands=[x], properties={"factor": _real(factor)}, result_types=[x.type])

    @override
    def check(self) -> None:
        _finite("the factor", self.factor)


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
            properties={"kind": NormKindAttr(kind), "epsilon": _real(epsilon)},
            result_types=[x.type],
        )

    @override
    def check(self) -> None:
        if not shape_of(self.x):
            raise FlatcError("x has no dims", help="normalise a tensor with at least one dim")
        if _finite("epsilon", self.epsilon) < 0:
            raise FlatcError(f"epsilon is {self.epsilon.value.data}", help="give 0 or a small positive number")
        for what, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                shapes.vector(what, shape_of(value), "feature", shape_of(self.x)[-1])
                _floating(what, element_type_of(value))


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
            "start": _integer(start),
            "base": _real(base),
            "dims": _integer(dims),
            "interleaved": UnitAttr() if interleaved else None,
        }
        super().__init__(operands=[x], properties=properties, result_types=[x.type])

    @override
    def check(self) -> None:
        shapes.rope(shape_of(self.x), self.dims.value.data)
        _positive("base", self.wavelength)
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
        super().__init__(operands=[x], properties={"heads": _integer(heads)}, result_types=[result])

    @override
    def shape(self) -> Shape:
        _alike(self.name, self.x, self.result)
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
        _alike(self.name, self.x, self.result)
        return shapes.merge_heads(shape_of(self.x))


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
    def shape(self) -> Shape:
        _alike(self.name, self.cache, self.new)
        _alike(self.name, self.cache, self.result)
        return shapes.append(shape_of(self.cache), shape_of(self.new))


SCORE_OPS: tuple[type[Operation], ...] = (SoftcapOp, BiasOp, AlibiOp, T5RelativeOp, MaskOp)
"""The ops that may stand between `attn.logit` and `attn.softmax`."""

Attn = Dialect(
    "attn",
    [
        LogitOp,
        SoftcapOp,
        BiasOp,
        AlibiOp,
        T5RelativeOp,
        MaskOp,
        SoftmaxOp,
        AttendOp,
        LinearOp,
        AddOp,
        MultiplyOp,
        ScaleOp,
        CastOp,
        NormOp,
        ActivationOp,
        RopeOp,
        SplitHeadsOp,
        MergeHeadsOp,
        AppendOp,
    ],
    [MaskAttr, NormKindAttr, ActivationAttr],
)
