"""The gap to the bound, explained: named causes that add up to it, whatever the schedule."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import pytest

import flatc
from flatc.builder import Graph, MaskExpr, causal, window
from flatc.dialects.accelerator import accelerator_of
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.spatial import ScheduleOp
from flatc.passes.cost.explanation import Explanation, explain
from tests.support import every_pair


def graph(queries: int, keys: int, mask: MaskExpr | None = None) -> Graph:
    found = Graph("attention", dtype="bf16", softmax="f32")
    q = found.input("q", [2, 4, queries, 64])
    k, v = (found.input(name, [2, 2, keys, 64]) for name in "kv")
    found.output(found.attention(q, k, v, mask=mask), names=["o"])
    return found


def explained(source: Graph, accelerator: str, strategy: str) -> Explanation:
    module = flatc.compile(source, accelerator, strategy=strategy, simulate="never").schedule
    (schedule,) = (op for op in module.ops if isinstance(op, ScheduleOp))
    return explain(schedule, accelerator_of(module))


def causes(explanation: Explanation) -> dict[str, Fraction]:
    return {cause.name: cause.cycles for cause in explanation.causes}


MASKS: dict[str, MaskExpr | None] = {"full": None, "causal": causal(), "window": window(40, 10)}


def machines_strategies_and_masks() -> Iterator[Any]:
    """Every pair of them is among those that are not slow."""
    kinds = ("edge", "cloud", "fusemax"), ("auto", "flat-r", "unfused"), MASKS
    quick = every_pair(*kinds)
    for row in product(*kinds):
        yield pytest.param(*row, marks=[] if row in quick else [pytest.mark.slow])


@pytest.mark.parametrize(("accelerator", "strategy", "mask"), list(machines_strategies_and_masks()))
def test_the_causes_add_up_to_the_gap(accelerator: str, strategy: str, mask: str) -> None:
    explanation = explained(graph(150, 190, MASKS[mask]), accelerator, strategy)
    assert sum(cause.cycles for cause in explanation.causes) == explanation.gap_cycles
    assert explanation.gap_cycles >= 0
    assert explanation.latency_cycles == sum(kernel.latency_cycles for kernel in explanation.kernels)


def test_an_unfused_schedule_leaves_the_array_idle_during_the_softmax() -> None:
    explanation = explained(graph(256, 256), "edge", "unfused")
    assert explanation.resource == "array"
    assert causes(explanation)["kernel softmax does not use it"] > 0


def test_hidden_scores_are_named_under_a_mask_only() -> None:
    hidden = "scores that the mask hides, in tiles on its edge"
    assert causes(explained(graph(256, 256, causal()), "edge", "auto"))[hidden] > 0
    assert hidden not in causes(explained(graph(256, 256), "edge", "auto"))


def test_row_sums_are_what_the_vector_unit_does_beyond_the_least() -> None:
    """With a column of ones the array sums rows: `auto` does so, and `online`, which may not, names what it pays."""
    sums = "row sums on the vector unit"
    explanation = explained(graph(512, 512), "cloud", "online")
    assert explanation.resource == "vector"
    assert explanation.causes[0].name == sums
    assert sums not in causes(explained(graph(512, 512), "cloud", "auto"))


def test_decode_is_explained_by_its_bytes() -> None:
    explanation = explained(graph(1, 4096), "edge", "auto")
    assert explanation.resource == "off-chip"
    assert explanation.latency_cycles < 1.05 * explanation.bounds.cycles


@pytest.mark.parametrize("accelerator", ["edge", "cloud", "fusemax"])
def test_chains_of_vector_operations_are_explained_too(accelerator: str) -> None:
    """In tiles of 37 rows of 48 some lanes idle, and that is all the vector unit does beyond the formulas."""
    found = Graph("layer", dtype="bf16")
    x = found.input("x", [2, 37, 48])
    found.output(found.gelu(found.layernorm(x, found.weight("g", [48]))))
    explanation = explained(found, accelerator, "auto")
    assert sum(cause.cycles for cause in explanation.causes) == explanation.gap_cycles
    assert explanation.resource == "vector"
    work = {cause.name for cause in explanation.causes if cause.kind == "work"}
    assert work <= {"lanes that tiles of norms, activations and the like leave idle"}


def test_a_schedule_that_is_no_attention_is_refused() -> None:
    module = flatc.compile(graph(16, 16), "edge", strategy="online", simulate="never").schedule
    (schedule,) = (op for op in module.ops if isinstance(op, ScheduleOp))
    for op in list(schedule.kernels()[0].body.block.ops):
        op.detach()
    with pytest.raises(FlatcError, match="no bound to explain"):
        explain(schedule, accelerator_of(module))
