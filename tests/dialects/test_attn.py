"""Every op of the attn dialect prints what it parses, and says what to do when it is wrong.

The round trips are generated: each op's docstring holds an example, which must parse, verify and print
back to itself, in the custom and in the generic form.
"""

from __future__ import annotations

import inspect
import io
import re

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, TensorType, f32
from xdsl.dialects.func import Func
from xdsl.irdl import IRDLOperation
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import ParseError, VerifyException
from xdsl.utils.test_value import create_ssa_value

from flatc.dialects.attn import Activation, Attn, AttnOp, LogitOp, MaskAttr, MaskOp, NormKind
from flatc.dialects.masks import Causal, FirstN, Window

OPS = [op for op in Attn.operations if issubclass(op, IRDLOperation)]


def parse(text: str) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Func, Attn):
        context.load_dialect(dialect)
    module = Parser(context, text).parse_module()
    module.verify()
    return module


def printed(module: ModuleOp, *, generic: bool = False) -> str:
    stream = io.StringIO()
    Printer(stream, print_generic_format=generic).print_op(module)
    return stream.getvalue()


def function_around(line: str) -> str:
    """A function whose arguments are the operands of `line`, which has one type for each of them."""
    code = line.split("=", 1)[1]
    inline = dict(re.findall(r"\((%\w+) : (tensor<[^>]*>)", code))
    names = [name for name in dict.fromkeys(re.findall(r"%\w+", code)) if name not in inline]
    trailing = re.findall(r"tensor<[^>]*>", re.sub(r"\(%\w+ : tensor<[^>]*>", "", code))
    types = dict(zip(names, trailing, strict=False)) | inline
    arguments = ", ".join(f"{name}: {type}" for name, type in types.items())
    return f"func.func @f({arguments}) {{\n{line}\nfunc.return\n}}"


def example_of(op: type[IRDLOperation]) -> str:
    lines = inspect.cleandoc(op.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("%"))
    paragraph = lines[start:]
    end = paragraph.index("") if "" in paragraph else len(paragraph)
    return " ".join(line.strip() for line in paragraph[:end])


VARIANTS = [
    "%m = attn.mask %s keep(%k : tensor<8x1x9xi1>) same(%d : tensor<1x9xi32>) : tensor<1x8x7x9xf32>",
    "%m = attn.mask %s valid(%v : tensor<1x9xi1>) : tensor<1x8x7x9xf32>",
    "%m = attn.mask %s by <causal(offset = -2) and (window(left = 8, right = 1, offset = 3) or first(count = 4))>"
    " : tensor<1x8x7x9xf32>",
    "%m = attn.mask %s by <prefix(length = 4) or chunk(size = 3, offset = 2)> : tensor<1x8x7x9xf64>",
    "%p = attn.softmax %s : tensor<1x8x7x9xf32> -> tensor<1x8x7x9xf8E4M3FN>",
    "%s = attn.logit %q, %k scale 1.0e-30 accumulate f64"
    " : (tensor<1x1x7x64xf64>, tensor<1x1x9x64xf64>) -> tensor<1x1x7x9xf64>",
    "%s = attn.logit %q, %k scale -0.1118033988749895 accumulate f32"
    " : (tensor<1x1x7x64xi8>, tensor<1x1x9x64xi8>) -> tensor<1x1x7x9xf32>",
    "%y = attn.linear %x, %w accumulate f32 : tensor<64xf16>, tensor<64x96xf16> -> tensor<96xf16>",
    "%y = attn.norm layernorm %x bias(%g : tensor<64xbf16>) epsilon 1.0e-05 : tensor<2x7x64xbf16>",
    "%y = attn.norm rmsnorm %x epsilon 0.0 : tensor<2x7x64xbf16>",
    "%y = attn.rope %x start 0 base 10000.0 dims 64 interleaved : tensor<1x32x1x128xbf16>",
    "%b = attn.t5_relative %s, %t max_distance 128 offset -3 : tensor<1x8x7x9xf32>, tensor<32x8xbf16>",
    "%y = attn.append %a, %b : (tensor<1x2x0x8xi8>, tensor<1x2x3x8xi8>) -> tensor<1x2x3x8xi8>",
    "%y = attn.add %a, %b : (tensor<2x1x8xf16>, tensor<7x8xf16>) -> tensor<2x7x8xf16>",
    "%y = attn.scale %x by -2.5 {note = 1 : i64} : tensor<2x7x8xf16>",
    *(f"%y = attn.activation {kind} %x : tensor<2x7xf16>" for kind in Activation),
]


@pytest.mark.parametrize("line", [*map(example_of, OPS), *VARIANTS], ids=lambda line: line.split(" : ")[0])
def test_round_trip(line: str) -> None:
    module = parse(function_around(line))
    text = printed(module)
    assert re.sub(r"\s+", " ", line) in text
    assert module.is_structurally_equivalent(parse(text))
    assert module.is_structurally_equivalent(parse(printed(module, generic=True)))


def test_every_op_is_pure_and_has_custom_syntax() -> None:
    for op in OPS:
        assert issubclass(op, AttnOp)
        assert op.has_trait(Pure)
        assert "assembly_format" in dir(op)


@pytest.mark.parametrize("scale", [1 / 80**0.5, 1e22, 5e-324, 3.0, -0.0])
def test_numbers_survive_exactly(scale: float) -> None:
    line = f"%s = attn.logit %q, %k scale {scale!r} accumulate f32 : "
    line = re.sub(r"scale (-?\d+)e", r"scale \1.0e", line)
    module = parse(function_around(line + "(tensor<1x1x7x8xf32>, tensor<1x1x9x8xf32>) -> tensor<1x1x7x9xf32>"))
    op = next(op for op in parse(printed(module)).walk() if isinstance(op, LogitOp))
    assert repr(op.scale.value.data) == repr(scale)


WRONG = {
    "%s = attn.logit %q, %k scale 1.0 accumulate f32"
    " : (tensor<1x8x7x64xf32>, tensor<1x3x9x64xf32>) -> tensor<1x8x7x9xf32>": "kv heads must divide query heads",
    "%s = attn.logit %q, %k scale 1.0 accumulate f32"
    " : (tensor<1x8x7x64xf32>, tensor<1x8x9x32xf32>) -> tensor<1x8x7x9xf32>": "d_qk is 32 in k",
    "%s = attn.logit %q, %k scale 1.0 accumulate f32"
    " : (tensor<1x8x7x64xf32>, tensor<1x8x9x64xf32>) -> tensor<1x8x9x7xf32>": "the operands give [1, 8, 7, 9]",
    "%s = attn.logit %q, %k scale 1.0 accumulate i32"
    " : (tensor<1x8x7x64xi8>, tensor<1x8x9x64xbf16>) -> tensor<1x8x7x9xf32>": "use a floating-point type",
    "%s = attn.logit %q, %k scale 1.0 accumulate f32"
    " : (tensor<1x8x?x64xf32>, tensor<1x8x9x64xf32>) -> tensor<1x8x7x9xf32>": "give every dim a number",
    "%s = attn.logit %q, %k scale 1.0 accumulate f32"
    " : (tensor<1x8x7x64xf32>, tensor<1x8x0x64xf32>) -> tensor<1x8x7x0xf32>": "every dim must be at least 1",
    "%c = attn.softcap %s cap 0.0 : tensor<1x8x7x9xf32>": "give a number above 0",
    "%c = attn.softcap %s cap 1.0 : tensor<1x8x7x9xf8E4M3FN>": "use f32, f16, bf16 or f64",
    "%b = attn.bias %s, %t : tensor<1x8x7x9xf32>, tensor<4x7x9xf32>": "does not broadcast",
    "%b = attn.t5_relative %s, %t max_distance 128 offset 0"
    " : tensor<1x8x7x9xf32>, tensor<32x4xf32>": "the number of heads is 4 in table",
    "%b = attn.t5_relative %s, %t max_distance 16 offset 0"
    " : tensor<1x8x7x9xf32>, tensor<32x8xf32>": "max_distance above",
    "%m = attn.mask %s : tensor<1x8x7x9xf32>": "drop the op",
    "%m = attn.mask %s valid(%v : tensor<1x8xi1>) : tensor<1x8x7x9xf32>": "the number of keys is 8 in valid",
    "%m = attn.mask %s valid(%v : tensor<1x9xf32>) : tensor<1x8x7x9xf32>": "use bool",
    "%m = attn.mask %s same(%v : tensor<1x9xi32>) : tensor<1x8x10x9xf32>": "pass a mask tensor",
    "%m = attn.mask %s same(%v : tensor<1x9xi8>) : tensor<1x8x7x9xf32>": "use i32",
    "%p = attn.softmax %s sink(%z : tensor<4xf32>) : tensor<1x8x7x9xf32> -> tensor<1x8x7x9xf32>": "expected [8]",
    "%p = attn.softmax %s : tensor<8x7x9xf32> -> tensor<8x7x9xf32>": "expected 4 dims",
    "%y = attn.linear %x, %w accumulate f32"
    " : tensor<2x64xf16>, tensor<32x96xf16> -> tensor<2x96xf16>": "the first of the right side is 32",
    "%y = attn.add %a, %b : (tensor<2x8xf16>, tensor<2x8xf32>) -> tensor<2x8xf16>": "cast one side",
    "%y = attn.norm rmsnorm %x weight(%g : tensor<32xf32>) epsilon 0.1 : tensor<2x64xf32>": "expected [64]",
    "%y = attn.norm rmsnorm %x epsilon -0.1 : tensor<2x64xf32>": "small positive",
    "%y = attn.rope %x start -1 base 10.0 dims 4 : tensor<1x1x1x4xf32>": "positions count from 0",
    "%y = attn.rope %x start 0 base 10.0 dims 3 : tensor<1x1x1x4xf32>": "even number",
    "%y = attn.split_heads %x into 5 : (tensor<1x1x8xf32>) -> tensor<1x5x1x1xf32>": "5 does not divide",
    "%y = attn.append %a, %b : (tensor<1x2x3x8xf32>, tensor<1x4x1x8xf32>) -> tensor<1x2x4x8xf32>": (
        "the number of heads is 4 in new"
    ),
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: WRONG[line])
def test_wrong_ops_say_what_to_do(line: str) -> None:
    with pytest.raises(VerifyException) as caught:
        parse(function_around(line))
    assert WRONG[line] in str(caught.value)


def test_wrong_masks_are_parse_errors() -> None:
    with pytest.raises(ParseError, match="did you mean 'causal'"):
        parse(function_around("%m = attn.mask %s by <casual(offset = 0)> : tensor<1x8x7x9xf32>"))


def test_mask_attribute_is_its_mask() -> None:
    mask = Causal(5) & (Window(256, 0, 5) | FirstN(4))
    scores = create_ssa_value(TensorType(f32, [1, 8, 7, 9]))
    assert str(MaskAttr(mask)) == f"#attn.mask<{mask}>"
    assert MaskOp(scores, mask).symbolic == MaskAttr(mask)
    assert hash(MaskAttr(mask)) == hash(MaskAttr(Causal(5) & (Window(256, 0, 5) | FirstN(4))))


def test_kinds_are_words() -> None:
    assert [str(kind) for kind in NormKind] == ["layernorm", "rmsnorm"]
