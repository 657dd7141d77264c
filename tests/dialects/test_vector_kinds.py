"""Vector operations on values print what they parse, and say what is wrong with them."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from flatc.dialects.spatial import RopeTableOp, VectorOp
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.frontend.mlir import context

SCHEDULE = """
spatial.schedule @layer inputs ["x", "g"] (%x: !spatial.tensor<9x6xbf16>, %g: !spatial.tensor<1x6xbf16>) outputs [] {
  %table = spatial.rope_table "rope" start 3 base 10000.0 : !spatial.tensor<9x6xf32>
  spatial.kernel "chain" {
    %gb = spatial.buffer "g" slots 1 : !spatial.buffer<1x6xbf16>
    %tb = spatial.buffer "table" slots 1 : !spatial.buffer<9x6xf32>
    %xb = spatial.buffer "x" slots 1 : !spatial.buffer<9x6xbf16>
    %t0 = spatial.load %x[0, 0] into %xb extent [9, 6]
    %t1 = spatial.load %g[0, 0] into %gb extent [1, 6]
    %t2 = spatial.load %table[0, 0] into %tb extent [9, 6]
    %t3 = spatial.vector layernorm (%xb, %gb, %gb) into (%xb) extent [9, 6] epsilon 1.0e-05 after(%t0, %t1)
    %t4 = spatial.vector rmsnorm (%xb) into (%xb) extent [9, 6] epsilon 1.0e-06 after(%t3)
    %t5 = spatial.vector rope (%xb, %tb) into (%xb) extent [9, 6] after(%t2, %t4)
    %t6 = spatial.vector rope_interleaved (%xb, %tb) into (%xb) extent [9, 6] after(%t5)
    %t7 = spatial.vector add (%xb, %gb) into (%xb) extent [9, 6] after(%t6)
    %t8 = spatial.vector multiply (%xb, %xb) into (%xb) extent [9, 6] after(%t7)
    %t9 = spatial.vector scale (%xb) into (%xb) extent [9, 6] by -0.5 after(%t8)
    %t10 = spatial.vector gelu (%xb) into (%xb) extent [9, 6] after(%t9)
    %t11 = spatial.vector gelu_tanh (%xb) into (%xb) extent [9, 6] after(%t10)
    %t12 = spatial.vector silu (%xb) into (%xb) extent [9, 6] after(%t11)
    %t13 = spatial.vector relu (%xb) into (%xb) extent [9, 6] after(%t12)
    %t14 = spatial.vector sigmoid (%xb) into (%xb) extent [9, 6] after(%t13)
    %t15 = spatial.vector tanh (%xb) into (%xb) extent [9, 6] after(%t14)
  }
}
"""


def parse(text: str) -> ModuleOp:
    module = Parser(context(), text).parse_module()
    module.verify()
    return module


def test_every_kind_reads_back():
    module = parse(SCHEDULE)
    assert {op.kind.data for op in module.walk() if isinstance(op, VectorOp)} == set(VALUE_KINDS)
    assert any(isinstance(op, RopeTableOp) for op in module.walk())
    assert parse(str(module)).is_structurally_equivalent(module)
    for line in SCHEDULE.splitlines():
        if "vector" in line or "rope_table" in line:
            assert line.strip() in str(module)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (" by -0.5", "", "scale needs a number: by ..."),
        ("(%xb, %xb) into", "(%xb) into", r"multiply reads \(a, b\), got 1 buffers"),
        ("(%xb, %gb, %gb)", "(%xb, %gb, %gb, %gb)", r"layernorm reads \(x, weight\?, bias\?\), got 4 buffers"),
        ("buffer<1x6xbf16>", "buffer<6xbf16>", "must have one rank"),
        ("tensor<9x6xf32>", "tensor<9x5xf32>", "an even number of features"),
        ("start 3", "start -3", "starts at position 0 or later"),
        ("base 10000.0", "base 0.0", "a base above 0"),
    ],
)
def test_the_verifier_says_what_is_wrong(right: str, wrong: str, message: str):
    assert right in SCHEDULE
    with pytest.raises(VerifyException, match=message):
        parse(SCHEDULE.replace(right, wrong, 1))


def test_a_number_that_no_kind_takes_is_no_syntax():
    with pytest.raises(ParseError):
        parse(SCHEDULE.replace("gelu (%xb) into (%xb) extent [9, 6]", "gelu (%xb) into (%xb) extent [9, 6] by 2.0"))


def test_operands_have_the_rank_of_the_extents():
    wrong = SCHEDULE.replace("add (%xb, %gb) into (%xb) extent [9, 6]", "add (%xb, %gb) into (%xb) extent [9, 6, 1]")
    with pytest.raises(VerifyException, match="add over 3 extents needs a of rank 3"):
        parse(wrong)
