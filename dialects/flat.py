"""The flat dialect: regions that run as one kernel, and the mapping they run with.

`fuse-attention` wraps attention operators into `flat.fused`; `tile-attention` attaches a mapping. Between
the two, a kernel is a pure function of its operands whose body is ordinary attn operators:

    %o = flat.fused "attention" (%a = %q, %b = %k, %c = %v) {
      %s = attn.logit ...
      %p = attn.softmax ...
      %y = attn.attend ...
      flat.yield %y
    } : (tensor<...>, tensor<...>, tensor<...>) -> tensor<...>

and after tiling the same with `mapping #flat.mapping<tiles(...) keep(...) ...>` and `strategy "online"`. `keep-on-chip`
adds `on_chip [0]` where results, by number, stay on chip until their last use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from typing_extensions import override
from xdsl.dialects.builtin import ArrayAttr, IntAttr, StringAttr
from xdsl.ir import Attribute, Data, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import AttrParser, Parser, UnresolvedOperand
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, IsTerminator, Pure, SingleBlockImplicitTerminator
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.kernel_mapping import KernelMapping, parse_kernel_mapping
from flatc.dialects.parsing import known_type


@irdl_attr_definition
class MappingAttr(Data[KernelMapping]):
    """A mapping as an attribute: `#flat.mapping<tiles(...) keep(...) ... stages(...)>`."""

    name = "flat.mapping"

    @classmethod
    @override
    def parse_parameter(cls, parser: AttrParser) -> KernelMapping:
        with parser.in_angle_brackets():
            return parse_kernel_mapping(parser)

    @override
    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(self.data.to_text())


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Ends the body of `flat.fused` and names its results: `flat.yield %y : tensor<4xf32>`."""

    name = "flat.yield"

    values = var_operand_def()
    assembly_format = "attr-dict ($values^ `:` type($values))?"
    traits = traits_def(IsTerminator(), Pure())

    def __init__(self, values: Sequence[SSAValue | Operation]):
        super().__init__(operands=[values])


@irdl_op_definition
class FusedOp(IRDLOperation):
    """A region of attn operators that runs as one kernel.

    The body sees only its own arguments, so that a kernel can be lowered, priced and tested alone.
    `strategy` and `mapping` are absent until `tile-attention` has chosen them; `on_chip` numbers the results that stay
    on chip for the kernels that use them.

        %o = flat.fused "scale" (%a = %x) {
          %y = attn.activation gelu %a : tensor<4xf32>
          flat.yield %y : tensor<4xf32>
        } : (tensor<4xf32>) -> tensor<4xf32>
    """

    name = "flat.fused"

    inputs = var_operand_def()
    outputs = var_result_def()
    kernel = prop_def(StringAttr)
    strategy = opt_prop_def(StringAttr)
    mapping = opt_prop_def(MappingAttr)
    on_chip = opt_prop_def(ArrayAttr[IntAttr])
    body = region_def("single_block")

    traits = lazy_traits_def(
        lambda: (IsolatedFromAbove(), Pure(), SingleBlockImplicitTerminator(YieldOp)),
    )

    def __init__(
        self,
        kernel: str,
        inputs: Sequence[SSAValue],
        result_types: Sequence[Attribute],
        body: Region,
        *,
        strategy: str | None = None,
        mapping: KernelMapping | None = None,
        on_chip: Sequence[int] = (),
    ):
        super().__init__(
            operands=[inputs],
            result_types=[result_types],
            properties={
                "kernel": StringAttr(kernel),
                "strategy": StringAttr(strategy) if strategy else None,
                "mapping": MappingAttr(mapping) if mapping else None,
                "on_chip": ArrayAttr([IntAttr(number) for number in on_chip]) if on_chip else None,
            },
            regions=[body],
        )

    @property
    def yield_op(self) -> YieldOp:
        """The terminator of the body."""
        last = self.body.block.last_op
        assert isinstance(last, YieldOp)
        return last

    @property
    def kept(self) -> tuple[SSAValue, ...]:
        """The results that stay on chip."""
        return () if self.on_chip is None else tuple(self.results[number.data] for number in self.on_chip)

    def keep(self, results: Sequence[SSAValue]) -> None:
        """Lets these of its results stay on chip, and no others."""
        numbers = [IntAttr(number) for number, result in enumerate(self.results) if result in results]
        self.on_chip = ArrayAttr(numbers) if numbers else None

    def body_ops(self) -> list[Operation]:
        """The attn operators of the kernel, in order, without the terminator."""
        return [op for op in self.body.block.ops if not isinstance(op, YieldOp)]

    @override
    def verify_(self) -> None:
        numbers = [number.data for number in self.on_chip or ()]
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(self.results))):
            raise VerifyException(
                f"flat.fused: on_chip {numbers} must number results, each once; there are {len(self.results)}"
            )
        block = self.body.block
        if block.arg_types != tuple(self.inputs.types):
            raise VerifyException(
                "flat.fused: the body must take one argument per input, of the same type: inputs are "
                f"({_types(self.inputs.types)}), arguments are ({_types(block.arg_types)})"
            )
        if tuple(self.yield_op.values.types) != tuple(self.result_types):
            raise VerifyException(
                "flat.fused: flat.yield must give one value per result, of the same type: results are "
                f"({_types(self.result_types)}), yielded are ({_types(self.yield_op.values.types)})"
            )

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        kernel = parser.parse_str_literal("name of the kernel")
        pairs = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: _parse_binding(parser))
        on_chip: list[int] = []
        if parser.parse_optional_keyword("on_chip"):
            on_chip = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        strategy = parser.parse_str_literal() if parser.parse_optional_keyword("strategy") else None
        mapping = parse_mapping_attribute(parser) if parser.parse_optional_keyword("mapping") else None
        # The types stand behind the body, as in MLIR's other region operations, so the body is parsed
        # with the types of the operands, which must be known by then.
        operands = [parser.resolve_operand(operand, known_type(parser, operand)) for _, operand in pairs]
        arguments = [name.resolve(o.type) for (name, _), o in zip(pairs, operands, strict=True)]
        body = parser.parse_region(arguments)
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        start = parser.pos
        types = parser.parse_function_type()
        known = [operand.type for operand in operands]
        if list(types.inputs.data) != known:
            parser.raise_error(f"the inputs of the kernel have types ({_types(known)})", start)
        if not body.block.ops or not isinstance(body.block.last_op, YieldOp):
            body.block.add_op(YieldOp([]))
        op = cls(kernel, operands, types.outputs.data, body, strategy=strategy, on_chip=on_chip)
        op.mapping = mapping
        op.attributes |= attributes
        return op

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.kernel.data)
        printer.print_string(" (")
        pairs = list(zip(self.body.block.args, self.inputs, strict=True))
        for i, (argument, operand) in enumerate(pairs):
            printer.print_string(", " if i else "")
            printer.print_ssa_value(argument)
            printer.print_string(" = ")
            printer.print_ssa_value(operand)
        printer.print_string(") ")
        if self.on_chip is not None:
            printer.print_string(f"on_chip {[number.data for number in self.on_chip]} ")
        if self.strategy is not None:
            printer.print_string("strategy ")
            printer.print_string_literal(self.strategy.data)
            printer.print_string(" ")
        if self.mapping is not None:
            printer.print_string("mapping ")
            printer.print_attribute(self.mapping)
            printer.print_string(" ")
        printer.print_region(self.body, print_entry_block_args=False)
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_operation_type(self)


def parse_mapping_attribute(parser: Parser) -> MappingAttr:
    """Parses `#flat.mapping<...>`, and nothing else."""
    start = parser.pos
    attribute = parser.parse_attribute()
    if not isinstance(attribute, MappingAttr):
        parser.raise_error(f"expected #flat.mapping<...>, got {attribute}", start)
    return attribute


def _types(types: Sequence[Attribute]) -> str:
    return ", ".join(str(t) for t in types)


def _parse_binding(parser: Parser) -> tuple[Parser.UnresolvedArgument, UnresolvedOperand]:
    name = parser.parse_argument(expect_type=False)
    parser.parse_punctuation("=")
    return name, parser.parse_unresolved_operand()


Flat = Dialect("flat", [FusedOp, YieldOp], [MappingAttr])
