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
Here are the ops of attention itself; `attn_layer` has the layer around it, `attn_arranged` where tensors lie, and
`attn_op` what all share.
The NumPy meaning of each op is in `flatc/interpreter/attn.py`.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from typing_extensions import override
from xdsl.dialects.builtin import (
    I64,
    BFloat16Type,
    Float16Type,
    Float32Type,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    UnitAttr,
    i32,
    i64,
)
from xdsl.ir import Attribute, Data, Dialect, Operation, SSAValue
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
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn_arranged import AppendOp, ConcatOp, CopyOp, FeaturesOp, MergeHeadsOp, PagedOp, SplitHeadsOp
from flatc.dialects.attn_layer import (
    Activation,
    ActivationAttr,
    ActivationOp,
    AddOp,
    CastOp,
    ElementwiseOp,
    LinearOp,
    MultiplyOp,
    NormKind,
    NormKindAttr,
    NormOp,
    RopeOp,
    SameTypeOp,
    ScaleOp,
)
from flatc.dialects.attn_op import (
    AttnOp,
    Tensor,
    element_type_of,
    integer_attr,
    real_attr,
    require_finite,
    require_float,
    require_positive,
    shape_of,
)
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.masks import Mask, parse_mask_tokens

__all__ = [
    "SCORE_OPS",
    "Activation",
    "ActivationAttr",
    "ActivationOp",
    "AddOp",
    "AlibiOp",
    "AppendOp",
    "AttendOp",
    "Attn",
    "AttnOp",
    "BiasOp",
    "CastOp",
    "ConcatOp",
    "CopyOp",
    "ElementwiseOp",
    "FeaturesOp",
    "LinearOp",
    "LogitOp",
    "MaskAttr",
    "MaskOp",
    "MergeHeadsOp",
    "MultiplyOp",
    "NormKind",
    "NormKindAttr",
    "NormOp",
    "PagedOp",
    "RopeOp",
    "SameTypeOp",
    "ScaleColumnsOp",
    "ScaleOp",
    "ScoreOp",
    "SoftcapOp",
    "SoftmaxOp",
    "SplitHeadsOp",
    "T5RelativeOp",
    "Tensor",
    "element_type_of",
    "shape_of",
]


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


def _is_integer(value: SSAValue) -> bool:
    return isinstance(element_type_of(value), IntegerType)


def _scores(what: str, value: SSAValue) -> None:
    """Scores must be able to hold minus infinity."""
    if not isinstance(element_type_of(value), Float64Type | Float32Type | Float16Type | BFloat16Type):
        raise FlatcError(f"{what} have element type {element_type_of(value)}", help="use f32, f16, bf16 or f64")


@irdl_op_definition
class LogitOp(AttnOp):
    """Scores of attention: `scale * q . k^T`, kv heads shared by groups of query heads.

        %s = attn.logit %q, %k scale 0.125 accumulate f32
               : (tensor<1x8x7x64xbf16>, tensor<1x2x9x64xbf16>) -> tensor<1x8x7x9xf32>

    The scale is applied to the accumulated sum, before it is rounded to the type of the scores. Products of integers
    may accumulate in i32.
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
        properties = {"scale": real_attr(scale), "accumulator": accumulator}
        super().__init__(operands=[q, k], properties=properties, result_types=[result])

    @override
    def shape(self) -> Shape:
        return shapes.logit(shape_of(self.q), shape_of(self.k))

    @override
    def check(self) -> None:
        require_finite("the scale", self.scale)
        if self.accumulator != i32 or any(not _is_integer(value) for value in (self.q, self.k)):
            require_float("the accumulator", self.accumulator)
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
        super().__init__(operands=[scores], properties={"cap": real_attr(cap)}, result_types=[scores.type])

    @override
    def check(self) -> None:
        require_positive("the cap", self.cap)


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
        require_float("bias", element_type_of(self.bias))


@irdl_op_definition
class ScaleColumnsOp(ScoreOp):
    """Multiply the scores, or the probabilities, of each key by a number: the scale of a quantised key, or value.

        %s2 = attn.scale_columns %s by %ks : tensor<1x8x7x9xf32>, tensor<1x2x9xf32>

    The scale is [B, KV, T]; query heads that share a kv head share it, and a dim of 1 is repeated.
    """

    name = "attn.scale_columns"

    scores = operand_def(ScoreOp.T)
    scale = operand_def(Tensor)

    assembly_format = "$scores `by` $scale attr-dict `:` type($scores) `,` type($scale)"

    def __init__(self, scores: SSAValue, scale: SSAValue):
        super().__init__(operands=[scores, scale], result_types=[scores.type])

    @override
    def check(self) -> None:
        shapes.column_scale(shape_of(self.scores), shape_of(self.scale))
        require_float("scale", element_type_of(self.scale))


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
        properties = {"offset": integer_attr(offset)}
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
            "max_distance": integer_attr(max_distance),
            "offset": integer_attr(offset),
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
        require_float("table", element_type_of(self.table))
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
        require_float("probabilities", element_type_of(self.probabilities))
        if self.sink is not None:
            shapes.vector("sink", shape_of(self.sink), "query head", shape_of(self.scores)[1])
            require_float("sink", element_type_of(self.sink))


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
        require_float("the accumulator", self.accumulator)
        require_float("the output", element_type_of(self.output))


SCORE_OPS: tuple[type[Operation], ...] = (ScaleColumnsOp, SoftcapOp, BiasOp, AlibiOp, T5RelativeOp, MaskOp)
"""The ops that may stand between `attn.logit` and `attn.softmax`."""

Attn = Dialect(
    "attn",
    [
        LogitOp,
        ScaleColumnsOp,
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
        FeaturesOp,
        ConcatOp,
        CopyOp,
        PagedOp,
    ],
    [MaskAttr, NormKindAttr, ActivationAttr],
)
