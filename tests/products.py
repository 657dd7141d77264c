"""Matrix products for tests: graphs of one product, mappings by hand or at random, schedules of both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import ArrayUse, Stationarity
from flatc.dialects.product_mapping import ProductKeep, ProductMapping, ProductStages, ProductTiles
from flatc.dialects.spatial import KernelOp, ScheduleOp
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.kernels.product_problem import ProductProblem, match_product
from tests.support import lower_mapped


@dataclass(frozen=True)
class Product:
    """A product x[rows, k] . w[k, n], with a bias or without; with a weight for each of several heads, without."""

    rows: tuple[int, ...] = (2, 7)
    n: int = 12
    k: int = 10
    bias: bool = True
    heads: int = 1

    def graph(self, dtype: str = "bf16", softmax: str = "f32") -> ModuleOp:
        """The module of `output y = x @ w + b`."""
        graph = Graph("product", dtype=dtype, softmax=softmax)
        if self.heads > 1:
            x, w = graph.input("x", [*self.rows, self.heads * self.k]), graph.input("w", [self.heads, self.k, self.n])
            graph.output(graph.heads(x, self.heads) @ w, names=["y"])
            return graph.module()
        x, w = graph.input("x", [*self.rows, self.k]), graph.input("w", [self.k, self.n])
        bias = graph.input("b", [self.n]) if self.bias else None
        graph.output(graph.linear(x, w, bias=bias), names=["y"])
        return graph.module()


def products_in(module: ModuleOp) -> list[FusedOp]:
    """Fuses what is no attention, in place; gives all kernels."""
    FuseLayersPass().apply(Context(), module)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def problem_of(product: Product, dtype: str = "bf16", softmax: str = "f32") -> ProductProblem:
    """The problem of a product."""
    (kernel,) = products_in(product.graph(dtype, softmax))
    return match_product(kernel)[0]


def product_schedule(module: ModuleOp, mapping: ProductMapping, accelerator: Accelerator) -> ScheduleOp:
    """The schedule of a graph of one product, in place."""
    (kernel,) = products_in(module)
    kernel.mapping = MappingAttr(mapping)
    return lower_mapped(module, accelerator)


@dataclass(frozen=True)
class ProductCase:
    """A random product, its mapping, and the schedule of both."""

    problem: ProductProblem
    mapping: ProductMapping
    accelerator: Accelerator
    module: ModuleOp

    @property
    def kernel(self) -> KernelOp:
        """The only kernel."""
        return next(op for op in self.module.walk() if isinstance(op, KernelOp))


def random_product_case(rng: random.Random, accelerators: Sequence[str] = ("edge", "cloud")) -> ProductCase:
    """One product and one mapping of it that fits, tried until the verifier of schedules accepts it."""
    while True:
        heads = rng.choice([1, 1, 2, 5])
        product = Product(
            rng.choice([(1,), (13,), (2, 7), (3, 5, 2), (64,)] if heads == 1 else [(1, 1), (1, 13), (4, 1), (2, 7)]),
            rng.choice([1, 7, 32, 45]),
            rng.choice([1, 5, 33, 64]),
            heads == 1 and rng.random() < 0.5,
            heads,
        )
        types = rng.choice([("bf16", "f32"), ("f64", "f64"), ("f32", "f32")])
        problem, accelerator = problem_of(product, *types), load(rng.choice(accelerators))
        mapping, module = random_product_mapping(rng, problem), product.graph(*types)
        try:
            product_schedule(module, mapping, accelerator)
        except VerifyException as error:
            if " needs " not in str(error):
                raise
            continue
        return ProductCase(problem, mapping, accelerator, module)


def random_product_mapping(rng: random.Random, problem: ProductProblem) -> ProductMapping:
    """A mapping that may need more slots than it has."""
    load, multiply, store = rng.choice([(0, 0, 0), (0, 0, 1), (0, 1, 2)])
    m, n, k = (rng.randint(1, size) for size in (problem.m, problem.n, problem.k))
    x, w, sums, y = (rng.randint(1, 3) for _ in range(4))
    stationarities: list[Stationarity] = ["output", "weight", "input"]
    return ProductMapping(
        ProductTiles(m, n, k),
        rng.choice([("m", "n"), ("n", "m")]),
        ProductKeep(x, w, sums if problem.own_result else y, y, rng.choice(["k", "m"]), rng.choice(["k", "n"])),
        ArrayUse(rng.choice(stationarities)),
        ProductStages(load, multiply, store),
    )
