"""What no schedule can spare of the work on scores: operands as far as somebody needs them, exponentials of a softcap.

Adding a bias is not among it (the array can start its sums from it), nor is hiding scores. Masks known at run time hide
nothing here: their data are not known.
"""

from __future__ import annotations

from flatc.dialects.score_functions import T5Relative, t5_buckets
from flatc.passes.cost.visible import visible, visible_distances
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Operand, ScoreOp


def compulsory_operand_bytes(problem: AttentionProblem) -> dict[str, int]:
    """Least bytes of each operand off chip, by role: the entries of visible scores, each once."""
    found: dict[str, int] = {}
    for step in problem.score_ops:
        for operand in step.operands:
            size = _heads(problem, operand) * _entries(problem, step, operand) * operand.element_bytes
            found[operand.role] = max(found.get(operand.role, 0), size)
    if problem.value_scale is not None:
        seen = visible(problem.mask if problem.has("softmax") else None, problem.queries, problem.keys)
        entries = seen.keys if problem.value_scale.has[-1] else min(1, seen.keys)
        size = _heads(problem, problem.value_scale) * entries * problem.value_scale.element_bytes
        found[problem.value_scale.role] = size
    if problem.sink is not None:
        found[problem.sink.role] = _heads(problem, problem.sink) * problem.sink.element_bytes
    return found


def _heads(problem: AttentionProblem, operand: Operand) -> int:
    """How often an operand is stored along batch and heads."""
    batch, kv_head, group, *_ = operand.has
    sizes = ((problem.batch, batch), (problem.kv_heads, kv_head), (problem.group, group))
    found = 1
    for size, has in sizes:
        found *= size if has else 1
    return found


def _entries(problem: AttentionProblem, step: ScoreOp, operand: Operand) -> int:
    """Entries of one head that visible scores need."""
    seen = visible(problem.mask, problem.queries, problem.keys)
    if isinstance(step.function, T5Relative):
        distances = visible_distances(problem.mask, problem.queries, problem.keys) - step.function.offset
        function = step.function
        used = t5_buckets(distances, operand.buckets, function.max_distance, function.bidirectional)
        return len(set(used.tolist()))
    *_, rows, keys = operand.has
    if rows and keys:
        return seen.pairs
    return seen.queries if rows else seen.keys if keys else min(1, seen.pairs)


def softcap_exponentials(problem: AttentionProblem) -> int:
    """Exponentials of one head that softcaps take: a tanh is at least one."""
    softcaps = sum(step.kind == "softcap" for step in problem.score_ops)
    return softcaps * visible(problem.mask, problem.queries, problem.keys).pairs
