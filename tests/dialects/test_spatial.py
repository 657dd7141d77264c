"""Schedules: every operation prints what it parses, in both syntaxes, and says what is wrong with it.

`SCHEDULE` holds each operation of the dialect and each kind of vector work. What makes a whole kernel legal
(tokens, slots, memory) is tested in `test_schedule_rules`.
"""

from __future__ import annotations

import io
import math

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import BFloat16Type, Builtin, IndexType, IntegerType, ModuleOp, f32
from xdsl.ir import Block, Region, SSAValue
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException
from xdsl.utils.test_value import create_ssa_value

from flatc.dialects.attn import Attn
from flatc.dialects.flat import Flat
from flatc.dialects.quasi_affine import ceildiv, minimum, var
from flatc.dialects.score_functions import SCORE_KINDS
from flatc.dialects.spatial import (
    VECTOR_KINDS,
    Access,
    BufferOp,
    BufferType,
    ForOp,
    KernelOp,
    LoadOp,
    MatmulOp,
    ScheduleOp,
    Spatial,
    TensorRefType,
    TimedBuilder,
    TimedOp,
    TokenType,
    VectorOp,
    YieldOp,
    make_for,
)
from flatc.dialects.vector_kinds import VALUE_KINDS

SCHEDULE = """
spatial.schedule @attend inputs ["q", cache "k"]
    (%q: !spatial.tensor<509x64xbf16>, %k: !spatial.tensor<512x64xbf16>) outputs ["s"] {
  %s = spatial.offchip "s" : !spatial.tensor<509x512xf32>
  %flat = spatial.view %q : !spatial.tensor<509x64xbf16> -> !spatial.tensor<1x509x64xbf16>
  spatial.kernel "logit" strategy "flat-r" mapping #flat.mapping<
      tiles(batch 1, kv_head 1, group 1, query 64, key 128, d_qk 64, d_v 64)
      keep(Q x2, K x2 at key, V x1 at key, scores x2, output x1)
      logit(output stationary, fold 1 x 1)
      attend(weight stationary, fold 1 x 4)
      softmax(online, divide late)
      stages(load 0, logit 0, softmax 0, attend 0, store 1)> {
    %start = spatial.start
    %done = spatial.for %query = 0 to 8 carry(%last = %start) {
      %qb = spatial.buffer "Q" slots 2 at 0 : !spatial.buffer<64x64xbf16>
      %m = spatial.buffer "maximum" slots 2 at 16384 initial -inf : !spatial.buffer<64xf32>
      %l = spatial.buffer "sum" slots 2 at 16896 initial 0.0 : !spatial.buffer<64xf32>
      %alpha = spatial.buffer "correction" slots 2 at 17408 : !spatial.buffer<64xf32>
      %t0 = spatial.load %q[%query * 64, 0] into %qb extent [min(64, 509 - %query * 64), 64] after(%last)
      %r = spatial.for %key = floordiv(%query, 2) to min(4, ceildiv(%query * 64 + 64, 128)) stream carry(%c = %t0) {
        %kb = spatial.buffer "K" slots 2 at 32768 : !spatial.buffer<128x64xbf16>
        %sb = spatial.buffer "scores" slots 3 at 65536 initial 1.0e-05 : !spatial.buffer<64x128xf32>
        %pb = spatial.buffer "probabilities" slots 2 at 262144 : !spatial.buffer<64x128xbf16>
        %t1 = spatial.load %k[%key * 128, 0] into %kb extent [128, 64]
        %t2 = spatial.matmul output (%qb, %kb) into %sb extent [64, 128, 64] fold 2 x 1
              transposed accumulate scale 1.0e-05 after(%c, %t1)
        %t3 = spatial.vector mask (%sb) into (%sb) extent [64, 128] #attn.mask<causal(offset = 3)>
              at [%query * 64, %key * 128] after(%t2) when %key * 128 + 128 - %query * 64
        %t4 = spatial.vector row_max (%sb, %m) into (%m, %alpha) extent [64, 128] after(%t3)
        %t5 = spatial.vector exp (%sb, %m, %l, %alpha) into (%pb, %l) extent [64, 128] after(%t4)
        %t6 = spatial.vector rescale (%sb, %alpha) into (%sb) extent [64, 128] after(%t5)
        %t7 = spatial.vector divide (%sb, %l) into (%sb) extent [64, 128] after(%t6)
        %t8 = spatial.vector cast (%sb[0, 64]) into (%pb[0, 0]) extent [64, 64] after(%t7) stage 1
        %t9 = spatial.store %sb into %s[%query * 64, %key * 128]
              extent [min(64, 509 - %query * 64), 128] after(%t7) stage 1
        spatial.yield %t2
      }
      spatial.for %piece = 0 to 2 stage 1 {
        %t10 = spatial.load %q[%piece * 32, 0] into %qb[%piece * 32, 0] extent [32, 64] after(%r)
      }
      spatial.yield %r
    }
  }
  spatial.kernel "on array" {
    spatial.for %h = 0 to 3 {
      %hs = spatial.buffer "scores" slots 3 in registers batch 1 fold 2 x 1 : !spatial.buffer<2x64x128xf32>
      %ho = spatial.buffer "output" slots 2 : !spatial.buffer<2x64x128xf32>
      %hm = spatial.buffer "maximum" slots 2 initial -inf : !spatial.buffer<2x64xf32>
      %ht = spatial.buffer "tile" slots 2 : !spatial.buffer<2x64xf32>
      %ha = spatial.buffer "correction" slots 2 : !spatial.buffer<2x64xf32>
      %u0 = spatial.vector tile_max (%hs) into (%ht) extent [2, 64, 128] on array batch 1 fold 2 x 1
      %u1 = spatial.vector merge_max (%ht, %hm) into (%ht, %hm, %ha) extent [2, 64] after(%u0)
      %u2 = spatial.vector tile_sum (%hs) into (%ht) extent [2, 64, 128] on array batch 1 after(%u1) stage 1
      %u3 = spatial.vector merge_sum (%ht, %hm, %ha) into (%hm) extent [2, 64] after(%u2) stage 1
      %u4 = spatial.vector divide_by_last (%ho) into (%ho) extent [2, 64, 127] after(%u3) stage 1
    }
  }
  spatial.kernel "nothing" {
  }
  spatial.kernel "no work" {
    spatial.for %i = 0 to 3 {
    }
  }
  spatial.return %s
}
"""


def words(text: str) -> str:
    """The text without its line breaks and indentation."""
    return " ".join(text.replace("mapping<\n", "mapping<").split()).replace("mapping< ", "mapping<")


def context() -> Context:
    loaded = Context()
    for dialect in (Builtin, Attn, Flat, Spatial):
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


def changed(right: str, wrong: str) -> str:
    assert right in SCHEDULE
    return SCHEDULE.replace(right, wrong, 1)


# --- Text -------------------------------------------------------------------------------------------------


def test_the_example_holds_every_operation_and_every_kind_of_vector_work():
    ops = list(parse(SCHEDULE).walk())
    elsewhere = {"spatial.rope_table", "spatial.slice", "spatial.extend", "spatial.paged", "spatial.onchip"}
    # See test_vector_kinds, test_spatial_views and test_onchip_rules.
    assert {op.name for op in Spatial.operations} - elsewhere <= {op.name for op in ops}
    assert {op.kind.data for op in ops if isinstance(op, VectorOp)} == set(VECTOR_KINDS) - {*VALUE_KINDS, *SCORE_KINDS}


def test_the_custom_syntax_reads_back():
    module = parse(SCHEDULE)
    assert words(str(module)) == words(f"builtin.module {{ {SCHEDULE} }}")
    assert parse(str(module)).is_structurally_equivalent(module)


def test_the_generic_syntax_reads_back():
    module = parse(SCHEDULE)
    again = parse(generic(module))
    assert again.is_structurally_equivalent(module)
    assert str(again) == str(module)


@pytest.mark.parametrize("number", [0.0, -0.5, 1e-05, 1e-300, 3.4028234663852886e38, -1e30, math.inf, -math.inf])
def test_numbers_read_back(number: float):
    buffer = BufferOp("b", 1, BufferType([4], f32), initial=number)
    schedule = ScheduleOp("f", [], [], Region(Block([KernelOp("k", Region(Block([buffer])))])))
    text = str(ModuleOp([schedule])).replace("  }\n}", "    spatial.return\n  }\n}")
    (again,) = (op for op in parse(text).walk() if isinstance(op, BufferOp))
    assert again.initial == buffer.initial


def test_expressions_name_the_loops_they_depend_on():
    """In the operation they are numbered; printing gives them back the names of their loops."""
    (mask,) = (op for op in parse(SCHEDULE).walk() if isinstance(op, VectorOp) and op.mask is not None)
    assert [index.name_hint for index in mask.indices] == ["query", "key"]
    assert str(mask.when) == "#spatial.expr<d1 * 128 + 128 - d0 * 64>"


# --- Types --------------------------------------------------------------------------------------------------


def test_sizes_in_bytes():
    assert BufferType([64, 128], f32).bytes == 64 * 128 * 4
    assert TensorRefType([3, 5], BFloat16Type()).bytes == 30
    assert TensorRefType([3, 5], IntegerType(1)).bytes == 15, "a bool takes a byte"
    assert TensorRefType([0, 5], f32).bytes == 0, "a cache may be empty"
    assert BufferOp("b", 3, BufferType([4], f32)).total_bytes == 48


def test_types_differ_by_shape_and_element_type():
    types = [BufferType([4], f32), BufferType([5], f32), BufferType([4], BFloat16Type()), TensorRefType([4], f32)]
    assert len(set(types)) == len(types)
    assert BufferType([4], f32) == BufferType([4], f32)


# --- Building -----------------------------------------------------------------------------------------------


def test_loops_and_operations_are_built_by_the_names_of_loops():
    query, key = var("query"), var("key")
    outer = Block(arg_types=[IndexType()])
    inner = Block(arg_types=[IndexType()])
    loops: dict[str, SSAValue] = {"query": outer.args[0], "key": inner.args[0]}
    tensor = create_ssa_value(TensorRefType([509, 64], f32))
    buffer = BufferOp("b", 2, BufferType([64, 64], f32))
    load = LoadOp(
        TimedBuilder(
            loops,
            [minimum(64, 509 - query * 64), 64],
            writes=[Access(buffer.buffer)],
            tensor=tensor,
            tensor_offsets=[query * 64, 0],
        )
    )
    inner.add_ops([buffer, load, YieldOp()])
    outer.add_ops([make_for(loops, 0, ceildiv(query * 64 + 64, 128), inner, stream=True), YieldOp()])
    for value, name in ((outer.args[0], "query"), (inner.args[0], "key"), (buffer.buffer, "b")):
        value.name_hint = name
    loop = make_for({}, 0, 8, outer)
    loop.verify()
    assert "spatial.for %query = 0 to 8 {" in str(loop)
    assert "spatial.for %key = 0 to ceildiv(%query * 64 + 64, 128) stream {" in str(loop)
    assert "[%query * 64, 0] into %b extent [min(64, 509 - %query * 64), 64]" in str(loop)
    assert "key" in key.variables()


def test_resources():
    resources = {op.name: op.resource for op in parse(SCHEDULE).walk() if isinstance(op, TimedOp)}
    assert resources == {
        "spatial.load": "read", "spatial.store": "write", "spatial.matmul": "array", "spatial.vector": "vector",
    }  # fmt: skip


def test_a_matmul_knows_what_it_reads_and_writes():
    (matmul,) = (op for op in parse(SCHEDULE).walk() if isinstance(op, MatmulOp))
    assert [access.value.name_hint for access in matmul.read_accesses] == ["qb", "kb"]
    assert [access.value.name_hint for access in matmul.write_accesses] == ["sb"]
    assert isinstance(matmul.token.type, TokenType)


# --- Errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("<64xf32>\n      %l", "<0xf32>\n      %l", "a dim that is 0 or unknown"),
        ("tensor<512x64xbf16>", "tensor<?x64xbf16>", "a dim of unknown size"),
        ('inputs ["q", cache "k"]', 'inputs ["q"]', "one name per input and output: 2 inputs"),
        ('outputs ["s"]', "outputs []", "one name per input and output"),
        ("<1x509x64xbf16>", "<1x509x65xbf16>", "the sizes differ"),
        ("<1x509x64xbf16>", "<1x509x64xf16>", "the sizes differ"),
        ("slots 2 at 0", "slots 0 at 0", '"Q" needs at least one slot'),
        ("slots 2 at 0", "slots 2 at -8", '"Q" lies at byte -8'),
        ("spatial.yield %t2", "spatial.yield", "carry, yield and return the same number of tokens"),
        ("spatial.yield %t2", "spatial.yield %t2, %t2", "carry, yield and return the same number of tokens"),
        ("carry(%last = %start) {", "stream carry(%last = %start) {", "a loop around it, and here is none"),
        ("stream carry(%c = %t0) {", "stream carry(%c = %t0) stage 1 {", "no stage of its own"),
        (
            "      spatial.yield %r",
            "      spatial.for %more = 0 to 3 stream {\n      }\n      spatial.yield %r",
            "one `stream` loop; make the others plain",
        ),
        ("after(%t7) stage 1", "after(%t7) stage -1", "a stage cannot be negative, got -1"),
        ("into %qb extent", "into %qb[0] extent", "a buffer of rank 2 is accessed with 1 offsets"),
        ("%q[%query * 64, 0]", "%q[%query * 64]", "must have one rank, got 2, 1, 2 and 2"),
        ("extent [128, 64]", "extent [128]", "must have one rank, got 2, 2, 1 and 2"),
        ("load %q[", "load %flat[0, ", "must have one rank, got 3, 3, 2 and 2"),
        ("spatial.store %sb into", "spatial.store %pb into", "does not convert: the tensor holds f32, the buffer bf16"),
        ("matmul output", "matmul row", "unknown stationarity 'row'"),
        ("(%qb, %kb) into %sb", "(%qb) into %sb", "reads two buffers and writes one"),
        ("extent [64, 128, 64] fold", "extent [128, 64] fold", "cannot take buffers of rank 2, 2 and 2"),
        ("64, 128, 64] fold 2 x 1", "1, 64, 128, 64] batch 1 fold 2 x 1", "over 4 extents with 1 batch dimensions"),
        ("vector rescale", "vector shrink", "unknown vector operation 'shrink': expected one of mask, "),
        ("exp (%sb, %m, %l, %alpha)", "exp (%sb)", r"exp reads \(scores, maximum, sum\?, correction\?\), got 1"),
        ("into (%m, %alpha)", "into (%m, %alpha, %l)", r"row_max writes \(maximum, correction\?\), got 3"),
        ("(%sb, %m) into", "(%sb, %sb) into", "row_max over 2 extents needs maximum of rank 1, got"),
        ("into (%pb, %l)", "into (%pb)", "exp adds to a sum that it reads and writes, or has no sum at all"),
        ("#attn.mask<causal(offset = 3)>", "", "mask, and only mask, needs a mask attribute"),
        (
            "extent [64, 128] after(%t3)",
            "extent [64, 128] at [0, 0] after(%t3)",
            "row_max takes no position, got 2 expressions",
        ),
        ("at [%query * 64, %key * 128]", "at [%query * 64]", "mask takes a position of query, key, got 1 expressions"),
        ("(%sb, %m) into", "(%sb, %t3) into", "spatial.token should be of base attribute spatial.buffer"),
    ],
)
def test_the_verifier_says_what_is_wrong(right: str, wrong: str, message: str):
    with pytest.raises(VerifyException, match=message):
        parse(changed(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("after(%t2)", "after(%sb)", "!spatial.token"),
        ("after(%t2)", "after(%query)", "!spatial.token"),
        ("(%qb, %kb)", "(%qb, %zz)", "%zz must be defined above its use"),
        ("[%query * 64, 0]", "[%query * %query, 0]", "the product of two indices"),
        ("[%query * 64, 0]", "[%t0 * 64, 0]", "index"),
        ("#attn.mask<causal(offset = 3)>", "5 : i32", r"expected #attn.mask<...> or #spatial.score<...>, got 5 : i32"),
        ("mapping #flat.mapping<", "mapping 5 : i32 #flat.mapping<", r"expected #flat.mapping<...>, got 5 : i32"),
        ("!spatial.buffer<64x64xbf16>", "!spatial.tensor<64x64xbf16>", "expected a !spatial.buffer type"),
        ("!spatial.buffer<64x64xbf16>", "tensor<64x64xbf16>", "expected a !spatial.buffer type"),
        ("slots 2 at 0", "slots two at 0", "integer literal"),
        ("extent [128, 64]", "[128, 64]", "Expected 'extent'"),
    ],
)
def test_the_parser_says_what_is_wrong(right: str, wrong: str, message: str):
    with pytest.raises(ParseError, match=message):
        parse(changed(right, wrong))


def test_a_loop_knows_its_parts():
    outer, inner, piece, *_ = (op for op in parse(SCHEDULE).walk() if isinstance(op, ForOp))
    assert outer.stream_child is inner
    assert inner.stream_child is None
    assert piece.stage.data == 1
    assert [value.name_hint for value in (outer.index, *outer.carried)] == ["query", "last"]
    assert [value.name_hint for value in inner.yield_op.tokens] == ["t2"]
