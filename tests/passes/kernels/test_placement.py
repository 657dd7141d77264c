"""Where results are stored: parts of a joined tensor and rows of a cache in place, wherever the kernel can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import flatc
from flatc.builder import Graph, Tensor
from flatc.dialects.diagnostics import FlatcError
from flatc.interpreter import random_inputs, run_module, run_schedule
from tests.support import simulated_bytes


def kernels(build: Callable[[Graph], Tensor]) -> list[str]:
    """The kernels of a graph, which is run and compared at two levels, and whose bytes are compared."""
    graph = Graph("place", dtype="bf16", softmax="f32")
    graph.output(build(graph), names=["y"])
    module = graph.module()
    result = flatc.compile(module, "edge", simulate="always")
    inputs = random_inputs(result.schedule, 0)
    run = run_schedule(result.schedule, inputs, exact=True)
    np.testing.assert_allclose(run.outputs[0], run_module(module, inputs, exact=True)[0], rtol=1e-9, atol=1e-11)
    assert run.offchip_bytes == simulated_bytes(result.schedule)
    return [kernel.name for kernel in result.report.kernels]


SIZES = [(1, 1, 1), (1, 3, 5), (2, 3, 1), (2, 1, 5), (2, 3, 5)]
"""Sequences, heads and rows."""


@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_store_the_parts_of_a_joined_tensor(sizes: tuple[int, int, int]):
    batch, heads, rows = sizes

    def build(g: Graph) -> Tensor:
        x = g.heads(g.input("x", [batch, rows, heads * 6]), heads)
        return g.concat(x @ g.weight("w", [heads, 6, 7]), g.relu(g.input("r", [batch, heads, rows, 4])))

    assert kernels(build) == ["linear_w", "relu"]


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_joined_goes_straight_to_the_cache_if_rows_of_products_may_lie_so(sizes: tuple[int, int, int]):
    batch, heads, rows = sizes
    shape = [batch, heads, rows]

    def build(g: Graph) -> Tensor:
        x = g.heads(g.input("x", [batch, rows, heads * 6]), heads)
        new = g.concat(x @ g.weight("w", [heads, 6, 7]), g.relu(g.input("r", [*shape, 4])))
        return g.append(g.cache("c", [batch, heads, 3, 11]), new)

    copies = ["append_c"] * (batch > 1 and rows > 1)
    assert kernels(build) == ["linear_w", "relu", *copies]


@pytest.mark.parametrize("sizes", SIZES)
def test_products_head_by_head_follow_one_another(sizes: tuple[int, int, int]):
    """What the first stores, the second can take, also features of it."""
    batch, heads, rows = sizes

    def build(g: Graph) -> Tensor:
        x = g.heads(g.input("x", [batch, rows, heads * 6]), heads)
        a = g.features(g.gelu(g.features(x, 1, 5)) @ g.weight("w", [heads, 4, 7]), 2, 7)
        return g.merge(a @ g.weight("u", [heads, 5, 3])) @ g.weight("o", [heads * 3, 8])

    assert kernels(build) == ["gelu", "linear_w", "linear_u", "linear_o"]


def joined_input(g: Graph) -> Tensor:
    return g.concat(g.input("a", [2, 3]), g.input("b", [2, 4]))


def joined_vectors(g: Graph) -> Tensor:
    return g.concat(g.input("a", [3]), g.input("b", [2]))


def joined_twice(g: Graph) -> Tensor:
    return g.concat(joined_of_tokens(g), g.gelu(g.input("c", [2, 3, 2])))


def joined_of_tokens(g: Graph) -> Tensor:
    return g.concat(g.silu(g.input("a", [2, 3, 4])), g.relu(g.input("b", [2, 3, 2])))


def joined_with_itself(g: Graph) -> Tensor:
    a = g.gelu(g.input("a", [2, 3, 4]))
    return g.concat(a, a)


def joined_and_merged(g: Graph) -> Tensor:
    """The joined features are read as they lie; those of one part alone are not."""
    a = g.gelu(g.input("a", [2, 2, 3, 4]))
    return g.merge(g.concat(a, g.relu(g.input("b", [2, 2, 3, 1])))) @ g.weight("w", [10, 3])


def appended_one_before_the_other(g: Graph) -> Tensor:
    x = g.input("x", [1, 2, 2, 4])
    second, first = g.gelu(x), g.relu(x)
    return g.append(g.append(g.cache("c", [1, 2, 3, 4]), first), second)


def appended_to_what_is_copied(g: Graph) -> Tensor:
    x = g.input("x", [1, 2, 2, 4])
    computed = g.gelu(x)
    return g.append(g.append(g.cache("c", [1, 2, 3, 4]), x), computed)


def appended_product(g: Graph) -> Tensor:
    return g.append(g.cache("c", [2, 3, 4, 6]), g.input("x", [2, 3, 4, 5]) @ g.weight("w", [5, 6]))


def merged_head(g: Graph) -> Tensor:
    return g.merge(g.input("x", [2, 1, 4, 5])) @ g.weight("w", [5, 3])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (joined_input, ["copy_a", "copy_b"]),
        (joined_vectors, ["copy_a", "copy_b"]),
        (joined_of_tokens, ["silu", "relu"]),
        (joined_twice, ["silu", "relu", "gelu"]),
        (joined_with_itself, ["gelu", "copy"]),
        (joined_and_merged, ["gelu", "relu", "linear_w"]),
        (appended_one_before_the_other, ["gelu", "relu", "append"]),
        (appended_to_what_is_copied, ["gelu", "append_c", "append"]),
        (appended_product, ["linear_w", "append_c"]),
        (merged_head, ["linear_w"]),
    ],
)
def test_what_no_kernel_can_store_in_place_is_copied(build: Callable[[Graph], Tensor], expected: list[str]):
    assert kernels(build) == expected


def sequence_by_sequence(g: Graph) -> Tensor:
    return g.input("x", [2, 3, 4, 5]) @ g.weight("w", [3, 5, 6])


def heads_of_one_weight(g: Graph) -> Tensor:
    return g.heads(g.input("x", [2, 4, 15]), 3) @ g.weight("w", [5, 6])


@pytest.mark.parametrize("build", [sequence_by_sequence, heads_of_one_weight])
def test_rows_that_do_not_lie_at_even_distances_are_refused(build: Callable[[Graph], Tensor]):
    with pytest.raises(FlatcError, match=r"takes all rows of .* together, and they do not lie at even distances"):
        kernels(build)
