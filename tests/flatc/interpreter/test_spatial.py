"""Schedules, executed: every mapping gives attention by its definition, moves the bytes that the simulator charges,
and breaks no rule of memory, on shapes and masks chosen to be hostile.

The expected numbers come from `reference.attention`, which knows nothing of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.builder import Graph, MaskExpr, causal, chunk, first, prefix, window
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import Algorithm, Divide, Level, Tiles
from flatc.dialects.masks import allows
from flatc.interpreter import random_inputs, run_module, run_schedule
from flatc.interpreter.reference import attention as reference
from flatc.passes.fuse_attention import WHOLE as WHOLE_GROUP
from tests.support import UNFUSED, Choice, Shape, attention, every_pair, fused, lower, run_checked, strict_machine

Array = NDArray[Any]

SHAPES = {
    "one query": Shape(batch=3, heads=4, kv_heads=2, queries=1, keys=130, d_qk=80, d_v=16),
    "few queries, few keys": Shape(heads=6, kv_heads=1, queries=7, keys=3, d_qk=80, d_v=80),
    "more queries than keys": Shape(heads=2, kv_heads=2, queries=129, keys=3, d_qk=8, d_v=24),
    "primes": Shape(batch=3, heads=3, kv_heads=3, queries=7, keys=11, d_qk=5, d_v=3),
    "several tiles of all sizes": Shape(heads=2, kv_heads=1, queries=67, keys=97, d_qk=16, d_v=8),
    "one key": Shape(queries=7, keys=1, d_qk=1, d_v=1),
}

MASKS: dict[str, Callable[[], MaskExpr] | None] = {
    "full": None,
    "causal": causal,
    "causal(0)": lambda: causal(0),
    "causal(-4)": lambda: causal(-4),
    "window": lambda: window(5),
    "window(3, 2)": lambda: window(3, 2),
    "prefix": lambda: causal() | prefix(4),
    "sinks": lambda: causal() & (window(5) | first(2)),
    "chunk": lambda: causal() & chunk(4),
}

ODD = Tiles(1, 1, 2, 5, 7, 1 << 30, 1 << 30)  # divides nothing
WIDE = Tiles(2, 2, 4, 32, 48, 1 << 30, 1 << 30)
WHOLE = Tiles(*[1 << 30] * 7)

CHOICES = [
    Choice("online", tiles=ODD),
    Choice("online", tiles=WIDE, levels=("kv_head", "kv_head")),
    Choice("online", tiles=WIDE, levels=("kv_head", "key"), stages=(0, 1, 2, 3, 4), slots=(5, 5, 5, 5, 5)),
    Choice("online", tiles=ODD, stages=(0, 0, 0, 0, 0), slots=(1, 1, 1, 1, 1)),
    Choice("online", tiles=WHOLE),
    Choice("online", tiles=replace(ODD, key=2), rescaled_every=3),
    Choice("rows", "late", tiles=ODD),
    Choice("rows", "early", tiles=WIDE, levels=("key", "kv_head"), stages=(0, 1, 2, 3, 4), slots=(5, 5, 5, 5, 5)),
    Choice("rows", "early", tiles=WHOLE),
    Choice("streamed", "early", tiles=ODD, stages=(0, 0, 1, 1, 2)),
    Choice("streamed", "early", tiles=WIDE, levels=("kv_head", "kv_head"), slots=(4, 4, 4, 4, 4)),
]


def mask_of(name: str) -> MaskExpr | None:
    build = MASKS[name]
    return build() if build else None


def keep_of(shape: Shape, mask: str) -> Array | None:
    expr = mask_of(mask)
    if expr is None or expr.resolve is None:
        return None
    rows, keys = np.arange(shape.queries)[:, None], np.arange(shape.keys)[None, :]
    return np.broadcast_to(allows(expr.resolve(shape.keys - shape.queries), rows, keys), (shape.queries, shape.keys))


@cache
def graph_of(shape: Shape, mask: str, dtype: str = "f64", softmax: str | None = None) -> ModuleOp:
    """The graph of an attention, which nobody changes: `lower` does what it does to a copy."""
    return attention(shape, mask_of(mask), dtype, softmax)


@cache
def expected(shape: Shape, mask: str, dtype: str = "f64") -> tuple[dict[str, Array], Array]:
    """Inputs and the output by definition."""
    inputs = random_inputs(graph_of(shape, "full", dtype), 1)
    return inputs, reference(inputs["q"], inputs["k"], inputs["v"], keep=keep_of(shape, mask))


def check(shape: Shape, mask: str, choice: Choice, groups: tuple[str, ...] | None = None) -> None:
    inputs, output = expected(shape, mask)
    lowered = lower(graph_of(shape, mask), choice, groups or (WHOLE_GROUP,))
    run = run_checked(lowered, inputs)
    np.testing.assert_allclose(run.outputs[0], output, rtol=1e-10, atol=1e-10)


def slow_unless(row: tuple[Any, ...], quick: list[tuple[Any, ...]], name: str) -> Any:
    """A row of parameters, marked as slow unless it is among the quick ones."""
    return pytest.param(*row, id=name, marks=[] if row in quick else [pytest.mark.slow])


def hostile() -> Iterator[Any]:
    """Shapes, masks and choices; every pair of them is among those that are not slow."""
    kinds = SHAPES, ("full", "causal"), CHOICES
    quick = every_pair(*kinds)
    for shape, mask, choice in product(*kinds):
        yield slow_unless((shape, mask, choice), quick, f"{shape}-{mask}-{choice}")


@pytest.mark.parametrize(("shape", "mask", "choice"), list(hostile()))
def test_attention_on_hostile_shapes(shape: str, mask: str, choice: Choice) -> None:
    check(SHAPES[shape], mask, choice)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str, choice: Choice) -> None:
    check(Shape(heads=4, kv_heads=2, queries=17, keys=23, d_qk=5, d_v=3), mask, choice)


GROUPS = [
    UNFUSED,
    ("logit+mask+softmax", "attend"),
    ("logit", "mask+softmax+attend"),
    ("logit+mask", "softmax+attend"),
]


def parts() -> Iterator[Any]:
    """Shapes, masks, groups and choices; every pair of them is among those that are not slow."""
    kinds = SHAPES, ("full", "causal", "sinks"), GROUPS, (CHOICES[0], CHOICES[5], CHOICES[8])
    quick = every_pair(*kinds)
    for shape, mask, groups, choice in product(*kinds):
        name = f"{shape}-{mask}-{' | '.join(groups)}-{choice}"
        yield slow_unless((shape, mask, groups, choice), quick, name)


@pytest.mark.parametrize(("shape", "mask", "groups", "choice"), list(parts()))
def test_parts_of_attention_as_kernels_of_their_own(
    shape: str, mask: str, groups: tuple[str, ...], choice: Choice
) -> None:
    check(SHAPES[shape], mask, choice, groups)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_logit_and_attend_without_softmax(choice: Choice) -> None:
    graph = Graph("linear attention", dtype="f64")
    q, k, v = graph.input("q", [2, 4, 9, 3]), graph.input("k", [2, 2, 8, 3]), graph.input("v", [2, 2, 8, 5])
    graph.output(graph.attend(graph.logit(q, k), v))
    inputs = random_inputs(graph.module(), 2)
    run = run_checked(lower(graph.module(), choice), inputs)
    np.testing.assert_allclose(run.outputs[0], run_module(graph.module(), inputs)[0], rtol=1e-10, atol=1e-10)


# --- Storage types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "choice"),
    every_pair(("one query", "more queries than keys", "primes"), ("bf16", "f16"), CHOICES),
    ids=str,
)
def test_narrow_storage_with_softmax_and_sums_in_f32(shape: str, dtype: str, choice: Choice) -> None:
    """Rounding to b bits moves an output by at most 2^-b of sum(p * |v|), each time: probabilities are rounded
    once, wherever they are divided, and then the output is."""
    inputs, output = expected(SHAPES[shape], "causal", dtype)
    run = run_checked(lower(graph_of(SHAPES[shape], "causal", dtype, "f32"), choice), inputs)
    sums = reference(inputs["q"], inputs["k"], np.abs(inputs["v"]), keep=keep_of(SHAPES[shape], "causal"))
    share = {"bf16": 2.0**-8, "f16": 2.0**-11}[dtype] * 2
    assert run.outputs[0].dtype == inputs["q"].dtype
    assert np.max(np.abs(run.outputs[0].astype(np.float64) - output) - share * 1.01 * sums) <= 1e-6


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_exact_runs_round_nothing(choice: Choice) -> None:
    shape = SHAPES["primes"]
    inputs, output = expected(shape, "causal", "bf16")
    run = run_checked(lower(graph_of(shape, "causal", "bf16", "f32"), choice), inputs, exact=True)
    assert run.outputs[0].dtype == np.float64
    np.testing.assert_allclose(run.outputs[0], output, rtol=1e-10, atol=1e-10)


# --- What stays the same ------------------------------------------------------------------------------


def test_one_function_runs_all_three_levels() -> None:
    module = attention(SHAPES["primes"], causal())
    kernels = module.clone()
    fused(kernels)
    inputs = random_inputs(module, 0)
    (graph,), (kernel,), (schedule,) = (run_module(m, inputs) for m in (module, kernels, lower(module, CHOICES[0])))
    np.testing.assert_array_equal(graph, kernel)
    np.testing.assert_allclose(graph, schedule, rtol=1e-12)


def test_inputs_of_a_schedule_are_those_of_its_graph() -> None:
    module = attention(SHAPES["primes"])
    lowered = lower(module, CHOICES[0])
    for name, array in random_inputs(module, 5).items():
        np.testing.assert_array_equal(array, random_inputs(lowered, 5)[name])


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_heads_and_batches_do_not_touch_each_other(choice: Choice) -> None:
    module = attention(Shape(batch=3, heads=6, kv_heads=2, queries=5, keys=9), causal())
    lowered, inputs = lower(module, choice), random_inputs(module, 3)
    (output,) = run_schedule(lowered, inputs).outputs
    turned = {name: array[::-1, ::-1] for name, array in inputs.items()}
    # To rounding: exponentials of the same number differ in their last bit with the place it has in a vector register.
    np.testing.assert_allclose(run_schedule(lowered, turned).outputs[0], output[::-1, ::-1], rtol=1e-12, atol=1e-15)


def test_infinite_and_masked_scores_leave_no_nan() -> None:
    module = attention(Shape(queries=4, keys=2), causal(-2))
    for choice in CHOICES:
        (output,) = run_schedule(lower(module, choice), random_inputs(module, 3)).outputs
        assert (output[:, :, :2] == 0).all()
        assert np.isfinite(output).all()


# --- The promise: an error or a right answer --------------------------------------------------------------


def sizes(largest: int) -> st.SearchStrategy[int]:
    return st.integers(1, largest)


Five = tuple[int, int, int, int, int]


def five(numbers: st.SearchStrategy[list[int]]) -> st.SearchStrategy[Five]:
    return numbers.map(lambda found: (found[0], found[1], found[2], found[3], found[4]))


STAGES = five(st.lists(st.integers(0, 3), min_size=5, max_size=5).map(sorted))
SLOTS = five(st.lists(st.sampled_from([4, 4, 4, 3, 2, 1]), min_size=5, max_size=5))
LEVEL: st.SearchStrategy[Level] = st.sampled_from(["key", "kv_head"])


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Shape, str]:
    kv_heads = draw(sizes(2))
    lengths = [draw(sizes(12)), draw(sizes(12)), draw(sizes(3)), draw(sizes(3))]
    shape = Shape(draw(sizes(2)), kv_heads * draw(sizes(3)), kv_heads, *lengths)
    return shape, draw(st.sampled_from(list(MASKS)))


SOFTMAX: st.SearchStrategy[tuple[Algorithm, Divide]] = st.sampled_from(
    [("online", "late"), ("rows", "early"), ("rows", "late"), ("streamed", "early"), ("online", "early")]
)
TILES = st.builds(Tiles, sizes(2), sizes(2), sizes(3), sizes(12), sizes(12), st.just(9), st.just(9))


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    algorithm, divide = draw(SOFTMAX)
    levels = draw(LEVEL), draw(LEVEL)
    return Choice(algorithm, divide, draw(TILES), draw(STAGES), draw(SLOTS), levels, draw(st.sampled_from([1, 2, 3])))


def holds_the_promise(case: tuple[Shape, str], choice: Choice, groups: tuple[str, ...], channels: str) -> bool:
    """Whether the mapping was accepted; if so, it gave the right numbers."""
    shape, mask = case
    storage = "f32" if channels == "separate" else "f64"  # f32 beside f64 needs buffers that convert
    machine = strict_machine()
    if channels == "shared":
        machine = replace(machine, offchip=replace(machine.offchip, channels="shared"))
    try:
        lowered = lower(graph_of(shape, mask, storage, "f64"), choice, groups, machine)
    except (FlatcError, VerifyException):
        return False
    inputs, output = expected(shape, mask, storage)
    run = run_checked(lowered, inputs, exact=True)
    np.testing.assert_allclose(run.outputs[0], output, rtol=1e-10, atol=1e-10)
    return True


def one_edit_away(choice: Choice) -> list[Choice]:
    """Every mapping with one slot or one stage more or less."""
    found: list[Choice] = []
    for field in ("stages", "slots"):
        values = getattr(choice, field)
        for i, step in product(range(5), (-1, 1)):
            if values[i] + step >= (field == "slots"):
                edited = (*values[:i], values[i] + step, *values[i + 1 :])
                found.append(replace(choice, **{field: edited}))
    return found


@pytest.mark.parametrize(
    "choice", [*CHOICES[::4], *(pytest.param(one, marks=pytest.mark.slow) for one in CHOICES)], ids=str
)
def test_one_slot_or_stage_edited_gives_an_error_or_a_right_answer(choice: Choice) -> None:
    shape = Shape(heads=2, kv_heads=1, queries=11, keys=13)
    accepted = [
        holds_the_promise((shape, "causal"), edited, groups, "separate")
        for edited, groups in product(one_edit_away(choice), ((WHOLE_GROUP,), UNFUSED))
    ]
    assert any(accepted)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(attentions(), choices(), st.sampled_from([(WHOLE_GROUP,), *GROUPS]), st.sampled_from(["separate", "shared"]))
def test_any_mapping_gives_an_error_or_a_right_answer(
    case: tuple[Shape, str], choice: Choice, groups: tuple[str, ...], channels: str
) -> None:
    holds_the_promise(case, choice, groups, channels)


@pytest.mark.slow
@settings(deadline=None, max_examples=1500)
@given(attentions(), choices(), st.sampled_from([(WHOLE_GROUP,), *GROUPS]), st.sampled_from(["separate", "shared"]))
def test_many_mappings_give_an_error_or_a_right_answer(
    case: tuple[Shape, str], choice: Choice, groups: tuple[str, ...], channels: str
) -> None:
    holds_the_promise(case, choice, groups, channels)
