"""What a schedule computes can be read back from it: the same problem that the graph states."""

from __future__ import annotations

import random

import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, window
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.spatial import ScheduleOp
from flatc.frontend.mlir import parse_mlir
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.kernels.schedule_problem import kernel_attention, outside_tensors
from flatc.passes.kinds.registry import parts as found_parts
from flatc.passes.tile_attention import tile_module
from tests.support import UNFUSED, Shape, attention, fused, lower_mapped, random_case

SIZES = Shape(batch=2, heads=4, kv_heads=2, queries=9, keys=7, d_qk=16, d_v=24)


def unfused(mask: MaskExpr | None) -> tuple[list[AttentionProblem], ScheduleOp]:
    """The problems of the kernels of an unfused attention, and its schedule."""
    module = attention(SIZES, mask, "bf16", "f32")
    kernels = fused(module, UNFUSED)
    attach_accelerator(module, load("edge"))
    tile_module(module, "unfused", "latency")
    return [match_kernel(kernel).problem for kernel in kernels], lower_mapped(module, load("edge"))


@pytest.mark.parametrize("seed", range(40))
def test_the_problem_of_a_kernel_is_that_of_its_region(seed: int):
    case = random_case(random.Random(seed))
    found = kernel_attention(case.kernel)
    assert found is not None
    assert found.problem == case.problem
    assert found.scale == pytest.approx(case.problem.d_qk**-0.5)
    assert found.tensors == {"q": "q", "k": "k", "v": "v", "result": "o"}


@pytest.mark.parametrize("mask", [None, causal(), window(3, 2)], ids=["full", "causal", "window"])
def test_three_kernels_join_to_the_attention_that_one_kernel_computes(mask: MaskExpr | None):
    (whole,) = fused(attention(SIZES, mask, "bf16", "f32"))
    parts, schedule = unfused(mask)
    assert [found.problem for kernel in schedule.kernels() if (found := kernel_attention(kernel))] == parts
    (joined,) = found_parts(schedule) or []
    assert joined.problem == match_kernel(whole).problem
    assert outside_tensors(schedule, joined) == {"q": "q", "k": "k", "v": "v", "result": "o"}


def test_tensors_between_kernels_need_not_leave_the_chip():
    _, schedule = unfused(None)
    softmax = kernel_attention(schedule.kernels()[1])
    assert softmax is not None
    assert softmax.tensors == {"scores": "logit", "result": "softmax"}
    assert outside_tensors(schedule, softmax) == {"scores": None, "result": None}


def test_a_kernel_that_is_no_attention_has_no_problem():
    copy = parse_mlir(
        """
        spatial.schedule @copy inputs ["x"] (%x: !spatial.tensor<4xf32>) outputs ["y"] {
          %y = spatial.offchip "y" : !spatial.tensor<4xf32>
          spatial.kernel "copy" {
            %b = spatial.buffer "b" slots 1 : !spatial.buffer<4xf32>
            %t = spatial.load %x[0] into %b extent [4]
            %u = spatial.store %b into %y[0] extent [4] after(%t)
          }
          spatial.return %y
        }
        """,
        "copy.mlir",
    )
    (schedule,) = (op for op in copy.ops if isinstance(op, ScheduleOp))
    assert found_parts(schedule) is None
