"""Whether the mapping of a product can be scheduled, apart from memory and timing (see `legal_mapping`)."""

from __future__ import annotations

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.product_mapping import ProductMapping
from flatc.passes.cost.primitive_costs import MatmulTile
from flatc.passes.kernels.product_problem import ProductProblem
from flatc.passes.mapping.legal_mapping import check_array_use


def check_product_mapping(
    problem: ProductProblem, mapping: ProductMapping, accelerator: Accelerator, kernel: str
) -> None:
    """Raises `FlatcError` with the first rule that the mapping breaks and what to change."""
    tiles, stages = mapping.tiles, mapping.stages
    for dim in ("m", "n", "k"):
        tile, size = getattr(tiles, dim), getattr(problem, dim)
        if tile > size:
            raise FlatcError(f"{kernel}: the tile of {dim} is {tile}, and there are only {size}")
    if mapping.array.add != "array":
        raise FlatcError(f"{kernel}: the array adds up the sums of a product", help="leave 'add on vector' out")
    if not stages.load <= stages.multiply <= stages.store:
        raise FlatcError(
            f"{kernel}: load, multiply and store follow one another, and their stages are "
            f"{stages.load}, {stages.multiply} and {stages.store}"
        )
    if not problem.own_result and mapping.keep.sums_slots != mapping.keep.y_slots:
        raise FlatcError(
            f"{kernel}: the sums are the result, and the mapping gives them {mapping.keep.sums_slots} slots and the "
            f"result {mapping.keep.y_slots}",
            help="give both the same number",
        )
    check_vector_unit(problem, accelerator, kernel)
    check_array_use(accelerator, mapping.array, MatmulTile(1, tiles.m, tiles.n, tiles.k), kernel)


def check_vector_unit(problem: ProductProblem, accelerator: Accelerator, kernel: str) -> None:
    """Raises `FlatcError` if the product needs a vector unit and there is none."""
    if problem.finishes and not accelerator.vector.lanes:
        why = "to add the bias" if problem.has_bias else "to convert the sums to the type of the result"
        raise FlatcError(
            f"{kernel}: accelerator '{accelerator.name}' has no vector unit, and the product needs one {why}",
            help="choose an accelerator with a vector unit",
        )
