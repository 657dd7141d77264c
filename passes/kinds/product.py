"""One matrix product as a kind of kernel: projections, feed-forward layers, with their bias."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import override
from xdsl.ir import Operation, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.attn import LinearOp
from flatc.dialects.flat import FusedOp
from flatc.dialects.product_mapping import ProductMapping
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.product_costs import evaluate_product
from flatc.passes.cost.product_trips import product_cycles
from flatc.passes.kernels.product_nest import ProductNest, ProductTensors
from flatc.passes.kernels.product_problem import ProductProblem, match_product, read_product
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.kinds.kind import KernelKind, Region
from flatc.passes.mapping.product_legality import check_product_mapping
from flatc.passes.mapping.product_search import find_products
from flatc.passes.mapping.search import Choice, Objective


class ProductKind(KernelKind[ProductProblem, ProductMapping]):
    """See `kind` for what the methods do, and the modules they call for how."""

    name = "product"
    problem_type = ProductProblem
    mapping_type = ProductMapping

    @override
    def computes(self, ops: Sequence[Operation]) -> bool:
        return any(isinstance(op, LinearOp) for op in ops)

    @override
    def match(self, fused: FusedOp) -> Region[ProductProblem]:
        problem, linear = match_product(fused)
        values: dict[str, SSAValue] = {"x": linear.x, "w": linear.w}
        if linear.bias is not None:
            values["bias"] = linear.bias
        by_head = frozenset(("x", "result")) if problem.heads > 1 else frozenset[str]()
        return Region(problem, values | {"result": linear.output}, by_head)

    @override
    def check(self, problem: ProductProblem, mapping: ProductMapping, accelerator: Accelerator, kernel: str) -> None:
        check_product_mapping(problem, mapping, accelerator, kernel)

    @override
    def find(
        self, problem: ProductProblem, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
    ) -> list[Choice[ProductMapping]]:
        return find_products(problem, accelerator, objective, kernel=kernel)

    @override
    def shortened(self, problem: ProductProblem, mapping: ProductMapping) -> ProductProblem:
        p, tiles = problem, mapping.tiles
        sizes = {"m": min(p.m, 4 * tiles.m), "n": min(p.n, 4 * tiles.n), "k": min(p.k, 8 * tiles.k)}
        return replace(p, **sizes, heads=min(p.heads, 4))

    @override
    def tensor_shapes(self, problem: ProductProblem) -> dict[str, tuple[int, ...]]:
        return {role: problem.shape(role) for role in ("x", "w", "result", *["bias"] * problem.has_bias)}

    @override
    def build(
        self, fused: FusedOp, problem: ProductProblem, mapping: ProductMapping, tensors: Dictionary[str, SSAValue]
    ) -> list[Operation]:
        _, linear = match_product(fused)
        found = ProductTensors(tensors["x"], tensors["w"], tensors.get("bias"), tensors["result"], linear.accumulator)
        return ProductNest(problem, mapping, found).build()

    @override
    def price(self, problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping) -> ClosedForm:
        import numpy as np

        form = evaluate_product(problem, accelerator, mapping)
        walked = product_cycles(problem, accelerator, mapping)
        return replace(form, latency_cycles=np.maximum(form.latency_cycles, walked))

    @override
    def least_cycles(self, problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping) -> float:
        return product_cycles(problem, accelerator, mapping)

    @override
    def read_back(self, kernel: KernelOp) -> Part | None:
        found = read_product(kernel)
        return None if found is None else Part(*found)

    @override
    def corner(self, problem: ProductProblem, mapping: ProductMapping) -> str:
        return "product"


PRODUCT = ProductKind()
