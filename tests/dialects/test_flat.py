"""Kernels: `flat.fused` and its mapping print what they parse, see only their own arguments, and say what is wrong."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, TensorType, f32
from xdsl.dialects.func import Func
from xdsl.ir import Block, Region
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException
from xdsl.utils.test_value import create_ssa_value

from flatc.dialects.attn import Attn
from flatc.dialects.flat import Flat, FusedOp, MappingAttr, YieldOp
from flatc.dialects.mapping import (
    Algorithm,
    ArrayUse,
    Divide,
    Keep,
    Level,
    Mapping,
    Softmax,
    Stages,
    Stationarity,
    Tiles,
    parse_mapping,
)

KERNEL = """
func.func @f(%x: tensor<4xf32>, %z: tensor<2xf32>) -> tensor<4xf32> {
  %o = flat.fused "scale" (%a = %x) {
    %y = attn.activation gelu %a : tensor<4xf32>
    flat.yield %y : tensor<4xf32>
  } : (tensor<4xf32>) -> tensor<4xf32>
  func.return %o : tensor<4xf32>
}
"""

MAPPING_TEXT = (
    "tiles(batch 1, kv_head 2, group 3, query 4, key 5, d_qk 6, d_v 7) "
    "keep(Q x2, K x3 at key, V x4 at kv_head, scores x5, output x6) "
    "logit(output stationary, fold 1 x 1) attend(weight stationary, fold 2 x 4) "
    "softmax(online, divide late) stages(load 0, logit 1, softmax 2, attend 3, store 4)"
)


def context() -> Context:
    loaded = Context()
    for dialect in (Builtin, Func, Attn, Flat):
        loaded.load_dialect(dialect)
    return loaded


def parse(text: str) -> ModuleOp:
    module = Parser(context(), text).parse_module()
    module.verify()
    return module


def generic(module: ModuleOp) -> str:
    stream = io.StringIO()
    Printer(stream, print_generic_format=True).print_op(module)
    return stream.getvalue()


def kernel_of(module: ModuleOp) -> FusedOp:
    return next(op for op in module.walk() if isinstance(op, FusedOp))


def mapping() -> Mapping:
    return parse_mapping(Parser(context(), MAPPING_TEXT))


def mappings() -> list[Mapping]:
    """One mapping for each value of each choice, and one with a number of its own in each other field."""
    base = mapping()
    variants = [replace(base, softmax=Softmax(a, d)) for a in get_args(Algorithm) for d in get_args(Divide)]
    variants += [replace(base, logit=ArrayUse(s, 2, 3)) for s in get_args(Stationarity)]
    variants += [replace(base, attend=ArrayUse(s, 4, 5)) for s in get_args(Stationarity)]
    variants += [
        replace(base, keep=replace(base.keep, k_level=k, v_level=v)) for k in get_args(Level) for v in get_args(Level)
    ]
    for part, kind in (("tiles", Tiles), ("keep", Keep), ("stages", Stages)):
        for field in fields(kind):
            if not field.name.endswith("level"):
                changes: Any = {part: replace(getattr(base, part), **{field.name: 77})}
                variants.append(replace(base, **changes))
    return variants


# --- Text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        KERNEL,
        KERNEL.replace("(%a = %x) {", '(%a = %x) strategy "online" {'),
        KERNEL.replace("(%a = %x) {", f"(%a = %x) mapping #flat.mapping<{MAPPING_TEXT}> {{"),
        KERNEL.replace("(%a = %x) {", f'(%a = %x) strategy "o" mapping #flat.mapping<{MAPPING_TEXT}> {{'),
        KERNEL.replace("} : (", '} {note = "kept"} : ('),
        KERNEL.replace('"scale"', r'"a \22quoted\22 name"'),
        KERNEL.replace("%a = %x)", "%a = %x, %b = %z)").replace(
            ": (tensor<4xf32>)", ": (tensor<4xf32>, tensor<2xf32>)"
        ),
        'func.func @f() {\n  flat.fused "nothing" () {\n    flat.yield\n  } : () -> ()\n  func.return\n}',
    ],
    ids=["plain", "strategy", "mapping", "both", "attributes", "quotes", "two inputs", "no inputs"],
)
def test_kernels_print_what_they_parse(text: str):
    module = parse(text)
    assert text.strip() in str(module).replace("\n  ", "\n"), "the custom form is the one that was written"
    assert parse(generic(module)).is_structurally_equivalent(module)
    assert parse(str(module)).is_structurally_equivalent(module)


def test_a_body_without_values_needs_no_yield():
    module = parse('func.func @f() {\n  flat.fused "nothing" () {\n  } : () -> ()\n  func.return\n}')
    assert not kernel_of(module).yield_op.values
    assert kernel_of(module).body_ops() == []


@pytest.mark.parametrize("value", mappings(), ids=str)
def test_mappings_print_what_they_parse(value: Mapping):
    attribute = MappingAttr(value)
    assert Parser(context(), str(attribute)).parse_attribute() == attribute


def test_names_of_a_kernel_are_its_own():
    """The body may use a name that is used again outside."""
    module = parse(
        KERNEL.replace("%y", "%o2").replace(
            "func.return %o", "%o2 = attn.scale %o by 2.0 : tensor<4xf32>\n  func.return %o2"
        )
    )
    assert parse(str(module)).is_structurally_equivalent(module)


# --- Errors of the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "message", "at"),
    [
        ('"scale" ', "", "name of the kernel", "(%a"),
        ("%a = %x", "%a = %w", "%w must be defined above its use", "%w"),
        ("%a = %x", "%x = %x", "already", "%x ="),
        (") {\n    %y", ') mapping "fast" {\n    %y', 'expected #flat.mapping<...>, got "fast"', '"fast"'),
        (") {\n    %y", ") mapping #flat.mapping<tiles()> {\n    %y", "Expected 'batch'", ")> {"),
        (": (tensor<4xf32>)", ": (tensor<5xf32>)", "the inputs of the kernel have types (tensor<4xf32>)", "(tensor<5x"),
        (": (tensor<4xf32>)", ": ()", "the inputs of the kernel have types (tensor<4xf32>)", "() ->"),
    ],
)
def test_a_slip_is_pointed_at(right: str, wrong: str, message: str, at: str):
    text = KERNEL.replace(right, wrong, 1)
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert message in caught.value.msg
    assert text[caught.value.span.start :].startswith(at)


# --- Errors of the verifier ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("gelu %a", "gelu %x", "IsolatedFromAbove"),
        ("    flat.yield %y : tensor<4xf32>\n", "", r"flat.yield must give one value per result.*yielded are \(\)"),
        ("flat.yield %y : tensor<4xf32>", "flat.yield %y, %y : tensor<4xf32>, tensor<4xf32>", "one value per result"),
    ],
)
def test_what_a_kernel_sees_and_gives_must_be_its_own(right: str, wrong: str, message: str):
    with pytest.raises(VerifyException, match=message):
        parse(KERNEL.replace(right, wrong))


@pytest.mark.parametrize("arguments", [[], [TensorType(f32, [5])]])
def test_a_body_takes_one_argument_per_input(arguments: list[TensorType[Any]]):
    block = Block(arg_types=arguments)
    block.add_op(YieldOp([]))
    kernel = FusedOp("k", [create_ssa_value(TensorType(f32, [4]))], [], Region(block))
    with pytest.raises(
        VerifyException, match=r"one argument per input, of the same type: inputs are \(tensor<4xf32>\)"
    ):
        kernel.verify()
