"""`lower-to-spatial`, by example: what a graph of tiled kernels becomes, and what it keeps.

What happens inside of a kernel is tested in `test_kernel_schedule`, the numbers in the interpreter's tests.
"""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Operation

from flatc.builder import Graph, causal
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.diagnostics import FlatcError, Position, position_of
from flatc.dialects.flat import MappingAttr
from flatc.dialects.mapping import Tiles
from flatc.dialects.spatial import KernelOp, OffchipOp, ScheduleOp, TimedOp, ViewOp
from flatc.frontend.mlir import parse_mlir
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from tests.support import UNFUSED, Choice, Shape, attention, fused, kernels_of, lower, strict_machine

SMALL = Choice("online", tiles=Tiles(1, 1, 1, 4, 4, 1 << 30, 1 << 30))


def lines_of(module: ModuleOp, *words: str) -> list[str]:
    """The lines of the module's text with one of these operations."""
    lines = [line.strip() for line in str(module).splitlines()]
    return [line for line in lines if any(f"{word} " in line for word in words)]


def schedule_in(module: ModuleOp) -> ScheduleOp:
    (schedule,) = (op for op in module.ops if isinstance(op, ScheduleOp))
    return schedule


def test_a_kernel_becomes_a_loop_nest():
    """One head, 8 queries in 2 tiles, 12 keys in 3: the causal mask makes the key loop triangular."""
    loops = lines_of(lower(attention(Shape(queries=8, keys=12), causal()), SMALL), "spatial.for", "spatial.matmul")
    assert loops == [
        "spatial.for %query = 0 to 2 {",
        "%1 = spatial.for %key = 0 to %query + 2 stream carry(%2 = %0) {",
        "%logit = spatial.matmul output (%Q, %K) into %scores extent [1, 1, 1, 4, 4, 4] batch 2 transposed scale 0.5 "
        "after(%load_q, %load_k)",
        "%attend = spatial.matmul output (%scores, %V) into %output extent [1, 1, 1, 4, 4, 4] batch 2 accumulate "
        "after(%exp, %load_v, %rescale) stage 1",
    ]


def test_a_function_becomes_a_schedule_with_its_names():
    module = lower(attention(Shape()), SMALL)
    schedule = schedule_in(module)
    assert [op.name for op in module.ops] == ["spatial.schedule"]
    assert schedule.sym_name.data == "attention"
    assert [name.data for name in schedule.input_names] == ["q", "k", "v"]
    assert [name.data for name in schedule.output_names] == ["o"]


def test_heads_are_split_into_kv_heads_and_groups_without_moving():
    """The queries and the output are viewed as [batch, kv head, group, ...]; keys and values have kv heads only."""
    module = lower(attention(Shape(batch=2, heads=6, kv_heads=2, queries=5, d_qk=4, d_v=3)), SMALL)
    views = [str(op.tensor.type) for op in module.walk() if isinstance(op, ViewOp)]
    assert views == ["!spatial.tensor<2x2x3x5x4xf64>", "!spatial.tensor<2x2x3x5x3xf64>"]


def test_values_between_kernels_become_tensors_off_chip():
    module = lower(attention(Shape(heads=2, queries=5, keys=7), None, "bf16", "f32"), SMALL, UNFUSED)
    tensors = {op.label.data: str(op.tensor.type) for op in module.walk() if isinstance(op, OffchipOp)}
    assert [kernel.label.data for kernel in kernels_of(module)] == ["logit", "softmax", "attend"]
    assert tensors == {
        "logit": "!spatial.tensor<1x2x5x7xf32>",
        "softmax": "!spatial.tensor<1x2x5x7xbf16>",
        "o": "!spatial.tensor<1x2x5x4xbf16>",
    }


ALGORITHMS = [Choice("online"), Choice("rows", "early"), Choice("streamed", "early")]


@pytest.mark.parametrize("choice", ALGORITHMS, ids=str)
def test_the_size_of_a_schedule_does_not_depend_on_lengths(choice: Choice):
    """512 tokens and a hundred thousand give the same operations."""

    def operations(length: int) -> list[str]:
        module = attention(Shape(heads=4, queries=length, keys=length, d_qk=1, d_v=1), causal(), "bf16")
        return [op.name for op in lower(module, choice).walk()]

    assert operations(512) == operations(100_000)


@pytest.mark.parametrize("choice", ALGORITHMS, ids=str)
@pytest.mark.parametrize("groups", [("logit+mask+softmax+attend",), UNFUSED], ids=" | ".join)
def test_schedules_read_back_from_their_text(groups: tuple[str, ...], choice: Choice):
    module = lower(attention(Shape(heads=2, queries=17, keys=23), causal(), "bf16", "f32"), choice, groups)
    assert str(parse_mlir(str(module), "schedule.mlir")) == str(module)


def test_every_operation_knows_where_the_user_wrote_it():
    graph = Graph("g", dtype="f32")
    q, k, v = (graph.input(name, [1, 1, 8, 4]) for name in "qkv")
    at = Position("g.flat", 3, 5)
    graph.output(graph.attention(q, k, v, at=at))
    module = graph.module()
    for kernel in kernels_of(lower(module, SMALL)):
        for op in kernel.walk():
            assert str(position_of(op)) == "g.flat:3:5", op.name


def test_kernels_keep_strategy_and_mapping():
    module = attention(Shape())
    (kernel,) = fused(module)
    kernel.mapping = mapping = MappingAttr(SMALL.mapping(match_kernel(kernel).problem))
    kernel.strategy = StringAttr("online")
    attach_accelerator(module, strict_machine())
    LowerToSpatialPass().apply(Context(), module)
    (lowered,) = kernels_of(module)
    assert (lowered.mapping, lowered.strategy) == (mapping, StringAttr("online"))


# --- What is refused ----------------------------------------------------------------------------------


def refusal(module: ModuleOp) -> FlatcError:
    attach_accelerator(module, strict_machine())
    with pytest.raises(FlatcError) as caught:
        LowerToSpatialPass().apply(Context(), module)
    return caught.value


def test_a_kernel_needs_a_mapping():
    module = attention(Shape())
    fused(module)
    error = refusal(module)
    assert error.message == "kernel 'attention' has no mapping"
    assert error.help == "run tile-attention before lower-to-spatial"


def test_an_operator_outside_of_kernels_is_refused_where_it_stands():
    graph = Graph("g", dtype="f32")
    x = graph.input("x", [2, 3])
    graph.output(graph.gelu(x, at=Position("g.flat", 7, 2)))
    error = refusal(graph.module())
    assert error.message == "attn.activation cannot be compiled yet: it is outside of every fused kernel"
    assert str(error.position) == "g.flat:7:2"


def test_the_module_must_hold_an_accelerator():
    with pytest.raises(FlatcError, match="accelerator"):
        LowerToSpatialPass().apply(Context(), attention(Shape()))


def test_every_timed_operation_stands_in_a_kernel():
    module = lower(attention(Shape(heads=2)), SMALL, UNFUSED)

    def inside_kernel(op: Operation) -> bool:
        parent = op.parent_op()
        return parent is not None and (isinstance(parent, KernelOp) or inside_kernel(parent))

    assert all(inside_kernel(op) for op in module.walk() if isinstance(op, TimedOp))
