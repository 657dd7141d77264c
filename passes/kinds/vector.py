"""Chains of vector operations as a kind of kernel: norms, activations, rope, residuals, scales and casts."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from typing_extensions import override
from xdsl.dialects.builtin import Float64Type, TensorType, f32
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp
from flatc.dialects.spatial import KernelOp
from flatc.dialects.vector_mapping import VectorMapping
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.vector_form import evaluate_chain
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.kernels.vector_nest import ChainTensors, VectorNest
from flatc.passes.kernels.vector_problem import Operand, VectorProblem
from flatc.passes.kernels.vector_region import CHAIN_OPS, match_chain, read_chain
from flatc.passes.kinds.kind import KernelKind, Region
from flatc.passes.mapping.search import Choice, Objective
from flatc.passes.mapping.vector_search import check_chain, find_chain_mappings

MOST_TILES_SHORTENED = 6


class ChainKind(KernelKind[VectorProblem, VectorMapping]):
    """See `kind` for what the methods do, and the modules they call for how."""

    name = "vector"
    problem_type = VectorProblem
    mapping_type = VectorMapping

    @override
    def computes(self, ops: Sequence[Operation]) -> bool:
        return bool(ops) and all(isinstance(op, CHAIN_OPS) for op in ops)

    @override
    def match(self, fused: FusedOp) -> Region[VectorProblem]:
        region = match_chain(fused)
        values = dict(zip(region.problem.operand_roles, region.operands, strict=True))
        values |= dict(zip(region.problem.result_roles, region.results, strict=True))
        return Region(region.problem, {role: value for role, value in values.items() if value is not None})

    @override
    def check(self, problem: VectorProblem, mapping: VectorMapping, accelerator: Accelerator, kernel: str) -> None:
        check_chain(problem, mapping, accelerator, kernel)

    @override
    def find(
        self, problem: VectorProblem, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
    ) -> list[Choice[VectorMapping]]:
        return find_chain_mappings(problem, accelerator, strategy, objective, kernel)

    @override
    def shortened(self, problem: VectorProblem, mapping: VectorMapping) -> VectorProblem:
        sizes = zip(problem.dims, mapping.tiles, strict=True)
        dims = tuple(min(size, MOST_TILES_SHORTENED * tile) for size, tile in sizes)

        def cut(operand: Operand) -> Operand:
            parts = zip(operand.dims, problem.dims, dims, strict=True)
            return replace(operand, dims=tuple(new if own == old else own for own, old, new in parts))

        return replace(problem, dims=dims, operands=tuple(map(cut, problem.operands)))

    @override
    def tensor_shapes(self, problem: VectorProblem) -> dict[str, tuple[int, ...]]:
        operands = zip(problem.operand_roles, problem.operands, strict=True)
        shapes = {role: operand.dims for role, operand in operands if operand.table is None}
        return shapes | dict.fromkeys(problem.result_roles, problem.dims)

    @override
    def build(
        self, fused: FusedOp, problem: VectorProblem, mapping: VectorMapping, tensors: Dictionary[str, SSAValue]
    ) -> list[Operation]:
        found = ChainTensors(
            [tensors.get(role) for role in problem.operand_roles],
            [tensors[role] for role in problem.result_roles],
            _element_types(fused),
        )
        return VectorNest(problem, mapping, found).build()

    @override
    def price(self, problem: VectorProblem, accelerator: Accelerator, mapping: VectorMapping) -> ClosedForm:
        return evaluate_chain(problem, accelerator, mapping)

    @override
    def read_back(self, kernel: KernelOp) -> Part | None:
        return read_chain(kernel)

    @override
    def corner(self, problem: VectorProblem, mapping: VectorMapping) -> str:
        if mapping.tiles == problem.dims:
            return "whole"
        return "rows" if mapping.tiles[-1] == problem.dims[-1] else "parts of rows"


def _element_types(fused: FusedOp) -> dict[str, Attribute]:
    """Every element type of a region by its text, and that of rope tables."""
    values = [value for op in fused.body_ops() for value in (*op.operands, *op.results)]
    elements = [cast("TensorType[Attribute]", value.type).element_type for value in values]
    return {str(element): element for element in (*elements, f32, Float64Type())}


VECTOR = ChainKind()
