"""Attention as a kind of kernel: logit, mask, softmax, attend, or any contiguous part of them."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from typing_extensions import override
from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.attn import AttendOp, LogitOp, ScoreOp, SoftmaxOp
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.dialects.mapping import Mapping
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.cost.closed_form import ClosedForm, tight_form
from flatc.passes.kernels.kernel_schedule import ElementTypes, KernelSchedule, Tensors
from flatc.passes.kernels.problem import AttentionProblem, Kernel, match_kernel
from flatc.passes.kernels.schedule_problem import Part, kernel_attention
from flatc.passes.kinds.kind import KernelKind, Region
from flatc.passes.mapping.legal_mapping import check_mapping
from flatc.passes.mapping.live_footprint import beyond_strategies, granularity, live_elements
from flatc.passes.mapping.search import Choice, Objective, find_mappings


class AttentionKind(KernelKind[AttentionProblem, Mapping]):
    """See `kind` for what the methods do, and the modules they call for how."""

    name = "attention"
    problem_type = AttentionProblem
    mapping_type = Mapping

    @override
    def computes(self, ops: Sequence[Operation]) -> bool:
        return any(isinstance(op, LogitOp | ScoreOp | SoftmaxOp | AttendOp) for op in ops)

    @override
    def match(self, fused: FusedOp) -> Region[AttentionProblem]:
        kernel = match_kernel(fused)
        values = {"q": kernel.q, "k": kernel.k, "v": kernel.v, "scores": kernel.scores, "result": kernel.result}
        values["pages"] = kernel.table
        present = {role: value for role, value in values.items() if value is not None}
        return Region(kernel.problem, present | kernel.operands)

    @override
    def check(self, problem: AttentionProblem, mapping: Mapping, accelerator: Accelerator, kernel: str) -> None:
        check_mapping(problem, mapping, accelerator, kernel)

    @override
    def find(
        self, problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
    ) -> list[Choice[Mapping]]:
        whole = problem.has("logit") and problem.has("softmax") and problem.has("attend")
        if strategy == "unfused" and whole:
            raise FlatcError(
                f"kernel '{kernel}' is fused and the strategy is unfused",
                help='run fuse-attention{groups="logit","mask+softmax","attend"} before',
            )
        fused = problem.has("attend") and (problem.has("logit") or problem.has("softmax"))
        return find_mappings(problem, accelerator, strategy if fused else "unfused", objective, kernel=kernel)

    @override
    def shortened(self, problem: AttentionProblem, mapping: Mapping) -> AttentionProblem:
        tiles = mapping.tiles
        return replace(
            problem,
            batch=min(problem.batch, 2 * tiles.batch),
            kv_heads=min(problem.kv_heads, 2 * tiles.kv_head),
            group=min(problem.group, 2 * tiles.group),
            queries=min(problem.queries, 12 * tiles.query),
            keys=min(problem.keys, 24 * tiles.key),
            mask=None,
        )

    @override
    def tensor_shapes(self, problem: AttentionProblem) -> dict[str, tuple[int, ...]]:
        p = problem
        heads = (p.batch, p.kv_heads, p.group)
        keyed = (p.batch, p.kv_heads, p.keys)
        return {
            "q": (*heads, p.queries, p.d_qk),
            "k": (*keyed, p.d_qk),
            "v": (*keyed, p.d_v),
            "pages": (p.batch, p.pages),
            "scores": (*heads, p.queries, p.keys),
            "result": (*heads, p.queries, p.d_v if p.has("attend") else p.keys),
            **{operand.role: p.operand_shape(operand) for operand in p.operands},
        }

    @override
    def build(
        self, fused: FusedOp, problem: AttentionProblem, mapping: Mapping, tensors: Dictionary[str, SSAValue]
    ) -> list[Operation]:
        kernel = match_kernel(fused)
        scale = kernel.logit.scale.value.data if kernel.logit is not None else None
        q, k, v, scores = (tensors.get(role) for role in ("q", "k", "v", "scores"))
        operands = {operand.role: tensors[operand.role] for operand in problem.operands}
        found = Tensors(q, k, v, scores, tensors["result"], operands, tensors.get("pages"))
        return KernelSchedule(problem, mapping, _element_types(kernel), found, scale).build()

    @override
    def price(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> ClosedForm:
        return tight_form(problem, accelerator, mapping)

    @override
    def least_cycles(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> float:
        return trip_cycles(problem, accelerator, mapping) or 0.0

    @override
    def read_back(self, kernel: KernelOp) -> Part | None:
        return kernel_attention(kernel)

    @override
    def corner(self, problem: AttentionProblem, mapping: Mapping) -> str:
        return granularity(problem, mapping)

    @override
    def beyond(self, problem: AttentionProblem, mapping: Mapping) -> tuple[str, ...]:
        return beyond_strategies(problem, mapping)

    @override
    def live_elements(self, problem: AttentionProblem, mapping: Mapping) -> int | None:
        return live_elements(problem, mapping)


def _element(value: SSAValue) -> Attribute:
    return cast("TensorType[Attribute]", value.type).element_type


def _element_types(kernel: Kernel) -> ElementTypes:
    scores = kernel.logit.scores if kernel.logit is not None else kernel.scores
    assert scores is not None
    probabilities = kernel.softmax.probabilities if kernel.softmax is not None else scores
    output = _element(kernel.result)
    return ElementTypes(
        q=_element(kernel.q) if kernel.q is not None else None,
        k=_element(kernel.k) if kernel.k is not None else None,
        v=_element(kernel.v) if kernel.v is not None else None,
        scores=_element(scores),
        probabilities=_element(probabilities),
        accumulator=kernel.attend.accumulator if kernel.attend is not None else output,
        output=output,
    )


ATTENTION = AttentionKind()
