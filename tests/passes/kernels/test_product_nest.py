"""A product's kernel computes the product, whatever its mapping, and is read back as what it is."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from flatc.dialects.mapping import ArrayUse
from flatc.dialects.product_mapping import ProductKeep, ProductMapping, ProductStages, ProductTiles
from flatc.dialects.spatial import ScheduleOp, StoreOp
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_module
from flatc.passes.kernels.product_problem import ProductProblem, read_product
from flatc.passes.kinds.registry import parts
from flatc.report.loops import loop_lines
from tests.products import Product, problem_of, product_schedule, random_product_case
from tests.support import run_checked, strict_machine

MAPPING = ProductMapping(
    ProductTiles(5, 8, 4), ("m", "n"), ProductKeep(2, 2, 2, 2, "m"), ArrayUse("output"), ProductStages(0, 0, 1)
)


def lines(mapping: ProductMapping, product: Product | None = None) -> list[str]:
    schedule = product_schedule((product or Product()).graph(), mapping, strict_machine())
    return [" ".join(line.split()) for line in loop_lines(schedule.kernels()[0])]


def test_the_nest_follows_the_mapping():
    assert lines(MAPPING) == [
        "for m 3",
        "load x -> X [5 x 10] read",
        "for n 2",
        "load b -> bias [8] read",
        "for k 3",
        "load w -> W [4 x 8] read",
        "matmul X, W -> sums [5 x 8 x 4] array, output stationary",
        "add sums, bias -> result [5 x 8] vector",
        "store result -> y [5 x 8] write, stage 1",
    ]


def test_heads_with_weights_of_their_own_follow_one_another():
    mapping = replace(MAPPING, tiles=ProductTiles(5, 12, 10))
    assert lines(mapping, Product(heads=3)) == [
        "for head 3",
        "for m 3",
        "load x -> X [5 x 10] read",
        "load w -> W [10 x 12] read",
        "matmul X, W -> sums [5 x 12 x 10] array, output stationary",
        "cast sums -> result [5 x 12] vector",
        "store result -> y [5 x 12] write, stage 1",
    ]


def test_loops_of_one_trip_are_left_out_and_what_is_kept_there_is_loaded_once():
    mapping = ProductMapping(
        ProductTiles(14, 12, 10),
        ("n", "m"),
        ProductKeep(1, 1, 1, 1, "m", "n"),
        ArrayUse("weight"),
        ProductStages(0, 0, 0),
    )
    assert lines(mapping, Product(bias=False)) == [
        "load x -> X [14 x 10] read",
        "for n 1",
        "load w -> W [10 x 12] read",
        "matmul X, W -> sums [14 x 12 x 10] array, weight stationary",
        "cast sums -> result [14 x 12] vector",
        "store result -> y [14 x 12] write",
    ]


@pytest.mark.parametrize("seed", range(25))
def test_any_mapping_computes_the_product(seed: int):
    """Interpreter and simulator agree on bytes; the result is the graph's own, in float64."""
    case = random_product_case(random.Random(seed))
    inputs = random_inputs(case.module, seed)
    run = run_checked(case.module, inputs, exact=True)
    x, w, bias = inputs["x"].astype(np.float64), inputs["w"].astype(np.float64), inputs.get("b", np.zeros(()))
    if case.problem.heads == 1:
        expected = x @ w + bias.astype(np.float64)
    else:
        expected = np.einsum("bshk,hkn->bhsn", x.reshape(*x.shape[:2], len(w), -1), w)
    np.testing.assert_allclose(run.outputs[0], expected, rtol=1e-12, atol=1e-12)


def test_rounding_happens_once():
    """In storage types, a schedule of whole sums gives what the graph gives, to the bit."""
    graph = Product(k=40).graph()
    inputs = random_inputs(graph, 3)
    expected = run_module(graph, inputs)
    mapping = ProductMapping(
        ProductTiles(3, 5, 40), ("n", "m"), ProductKeep(2, 2, 2, 2), ArrayUse("input"), ProductStages(0, 0, 1)
    )
    module = Product(k=40).graph()
    product_schedule(module, mapping, strict_machine())
    np.testing.assert_array_equal(run_checked(module, inputs).outputs[0], expected[0])


@pytest.mark.parametrize("seed", range(10))
def test_a_kernel_is_read_back_from_its_text(seed: int):
    case = random_product_case(random.Random(100 + seed))
    (schedule,) = (op for op in parse_mlir(str(case.module), "test").ops if isinstance(op, ScheduleOp))
    (part,) = parts(schedule) or []
    assert part.problem == case.problem
    assert part.tensors == {"x": "x", "w": "w", "result": "y"} | ({"bias": "b"} if case.problem.has_bias else {})


def test_a_product_that_is_not_stored_is_no_product_kernel():
    kernel = random_product_case(random.Random(1)).kernel
    assert read_product(kernel) is not None
    next(op for op in kernel.walk() if isinstance(op, StoreOp)).detach()
    assert read_product(kernel) is None


def test_the_problem_takes_all_rows_together():
    assert problem_of(Product((3, 5, 2), 7, 11)) == ProductProblem(30, 7, 11, 2, 2, 2, 4, 2, converts_output=True)
    assert not problem_of(Product(), "f32", "f32").converts_output
