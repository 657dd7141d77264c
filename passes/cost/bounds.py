"""Bounds: cycles that no schedule of a problem can beat, and cycles that no schedule of a mapping can beat.

`problem_bounds` belongs to the graph on the machine, whatever the strategy, so an unfused and a fused compile of
one graph are held against the same three numbers:

    array      the multiply-accumulates of visible (query, key) pairs, spread over all PEs
    off-chip   compulsory bytes: each input once, as far as somebody needs it, and each output once
    vector     one max and one exp for each visible score, another exp for a softcap, and the fewer of early and
               late divisions

Row sums are not in the vector bound (a column of ones gives them on the array), and an operation is not where
the PEs can do it. What a machine does for free bounds nothing.

    bounds = problem_bounds([problem], accelerator)
    bounds.cycles, bounds.binding                    # Fraction(...), "vector"

`mapping_bounds` says how long each resource is busy under one mapping; its schedule takes at least the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.cost.score_bounds import compulsory_operand_bytes, softcap_exponentials
from flatc.passes.cost.visible import Visible, visible
from flatc.passes.kernels.problem import AttentionProblem

RESOURCES = ("array", "off-chip", "vector")


@frozen
class Bounds:
    """Least cycles of each resource."""

    array_cycles: Fraction
    offchip_cycles: Fraction
    vector_cycles: Fraction

    def of(self, resource: str) -> Fraction:
        """The least cycles of one of `RESOURCES`."""
        least = {"array": self.array_cycles, "off-chip": self.offchip_cycles, "vector": self.vector_cycles}
        return least[resource]

    @property
    def cycles(self) -> Fraction:
        """The bound on latency: resources work in parallel at best."""
        return max(self.array_cycles, self.offchip_cycles, self.vector_cycles)

    @property
    def binding(self) -> str:
        """The resource that sets the bound; of equals the first of `RESOURCES`."""
        return max(RESOURCES, key=self.of)

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(*(self.of(resource) + other.of(resource) for resource in RESOURCES))


NO_BOUNDS = Bounds(Fraction(0), Fraction(0), Fraction(0))


# --- Problems of any kind -----------------------------------------------------------------------------------


class Problem(Protocol):
    """What a kernel that is no attention says of its own bounds; attention's depend on masks and are counted here.

    Roles name the tensors of a problem; those that begin with `result` are written, all others read. Those `on_chip`
    stay there between kernels, and move nothing off chip.
    """

    @property
    def on_chip(self) -> frozenset[str]:
        """The roles of tensors that stay on chip between kernels."""
        ...

    def least_macs(self) -> int:
        """Multiply-accumulates that any schedule does."""
        ...

    def compulsory_bytes(self) -> dict[str, int]:
        """Least bytes off chip, by role."""
        ...

    def least_vector_counts(self) -> dict[str, int]:
        """Least work beside the products: how often each operation of the vector price table."""
        ...

    def longest_sum(self) -> int:
        """The most terms that any sum of the problem has: what rounding errors grow with."""
        ...

    def __hash__(self) -> int: ...


AnyProblem = AttentionProblem | Problem


# --- What a mask leaves -------------------------------------------------------------------------------------


def logit_visible(problem: AttentionProblem) -> Visible:
    """What of the score matrix has to be computed: what the kernel's mask shows."""
    return visible(problem.mask, problem.queries, problem.keys)


def attend_visible(problem: AttentionProblem) -> Visible:
    """What of the probabilities is not zero: the softmax makes it so where the mask hides."""
    mask = problem.mask if problem.has("softmax") else None
    return visible(mask, problem.queries, problem.keys)


# --- The three bounds ---------------------------------------------------------------------------------------


def least_macs(problem: AnyProblem) -> int:
    """Multiply-accumulates of visible pairs: d_qk for the logit, d_v for the attend; of a product, all."""
    if not isinstance(problem, AttentionProblem):
        return problem.least_macs()
    logit = logit_visible(problem).pairs * problem.d_qk if problem.has("logit") else 0
    attend = attend_visible(problem).pairs * problem.d_v if problem.has("attend") else 0
    return (logit + attend) * problem.heads


def compulsory_bytes(problem: AnyProblem) -> dict[str, int]:
    """Least bytes of each tensor off chip: `result` is written; q, k, v, scores and operands, by role, are read."""
    if not isinstance(problem, AttentionProblem):
        return problem.compulsory_bytes()
    p, found = problem, dict[str, int]()
    kv = p.batch * p.kv_heads
    if p.has("logit"):
        seen = logit_visible(p)
        found["q"] = p.heads * seen.queries * p.d_qk * p.q_bytes
        found["k"] = kv * seen.keys * p.d_qk * p.k_bytes
    else:
        seen = logit_visible(p) if p.has("softmax") else attend_visible(p)
        found["scores"] = p.heads * seen.pairs * p.score_bytes
    if p.block is not None:
        found["pages"] = p.batch * -(-logit_visible(p).keys // p.block) * 4
    if p.has("attend"):
        # Values that are features of the keys come with them.
        found["v"] = kv * attend_visible(p).keys * p.d_v * p.v_bytes if p.v_in_k is None else 0
        found["result"] = p.heads * p.queries * p.d_v * p.output_bytes
    else:
        found["result"] = p.heads * p.queries * p.keys * p.probability_bytes
    return found | compulsory_operand_bytes(p)


def least_vector_counts(problem: AnyProblem) -> dict[str, int]:
    """One max and one exp for each visible score, another for a softcap; a division of probabilities or of outputs."""
    if not isinstance(problem, AttentionProblem):
        return problem.least_vector_counts()
    counts = {"exp": softcap_exponentials(problem)}
    if problem.has("softmax"):
        seen = logit_visible(problem)
        divided = min(seen.pairs, seen.queries * problem.d_v) if problem.has("attend") else seen.pairs
        counts = {"max": seen.pairs, "exp": seen.pairs + counts["exp"], "divide": divided}
    return {name: count * problem.heads for name, count in counts.items()}


def least_vector_cycles(problem: AnyProblem, accelerator: Accelerator) -> Fraction:
    """The least vector work, spread over all lanes."""
    if not accelerator.vector.lanes:
        return Fraction(0)
    lane_cycles = sum(_price(accelerator, name) * count for name, count in least_vector_counts(problem).items())
    return Fraction(lane_cycles, accelerator.vector.lanes)


def _price(accelerator: Accelerator, operation: str) -> int:
    """Lane-cycles that the vector unit must spend: none where the PEs can do it."""
    if accelerator.array.cycles_of(operation) is not None:
        return 0
    return int(getattr(accelerator.vector.prices, operation))


def offchip_cycles(accelerator: Accelerator, read: int, written: int) -> Fraction:
    """Cycles of that many bytes: one after the other on a shared channel, else the longer of both directions."""
    reading, writing = read * accelerator.cycles_per_byte_read, written * accelerator.cycles_per_byte_written
    return reading + writing if accelerator.offchip.channels == "shared" else max(reading, writing)


def longest_sum(problem: AnyProblem) -> int:
    """The most terms that the sums behind one result have."""
    return problem.keys + problem.d_qk if isinstance(problem, AttentionProblem) else problem.longest_sum()


def buffer_cycles(accelerator: Accelerator, work: Work) -> Fraction:
    """Cycles that the buffer's ports need for what moves through them; 0 where the machine says they never limit.

    No schedule is charged for them (docs/limits.md): it shows whether that matters. All ports are taken to be busy,
    each at the buffer's bandwidth, so this is the least they need.
    """
    moved = work.buffer_read_bytes + work.buffer_write_bytes
    return moved * accelerator.buffer_cycles_per_byte / accelerator.buffer.ports


TensorNames = Mapping[str, str | None]
"""Which tensor plays a role (q, k, v, ..., an operand's) in a problem; None where it need not leave the chip."""


def is_written(role: str) -> bool:
    """Whether a tensor of this role is a result of its kernel."""
    return role.startswith("result")


def least_traffic(
    problems: Sequence[AnyProblem],
    tensors: Sequence[TensorNames] | None = None,
    inside: Sequence[Mapping[str, int]] | None = None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Least bytes (read, written) by tensor; see `problem_bounds` for the arguments."""
    read, written = dict[str, int](), dict[str, int]()
    for index, problem in enumerate(problems):
        for role, size in compulsory_bytes(problem).items():
            name = f"{index}.{role}" if tensors is None else tensors[index].get(role)
            if name is not None and role not in problem.on_chip:
                direction = written if is_written(role) else read
                outside = size - (inside[index].get(role, 0) if inside is not None else 0)
                direction[name] = max(direction.get(name, 0), outside)
    return read, written


def problem_bounds(
    problems: Sequence[AnyProblem],
    accelerator: Accelerator,
    tensors: Sequence[TensorNames] | None = None,
    inside: Sequence[Mapping[str, int]] | None = None,
) -> Bounds:
    """The bounds of a graph that consists of these problems.

    `tensors` says which of their tensors are the same or stay inside; without it, each has its own. `inside` counts by
    role the bytes that the graph makes itself of a tensor that is outside: rows appended to a cache.
    """
    read, written = least_traffic(problems, tensors, inside)
    return Bounds(
        array_cycles=Fraction(sum(map(least_macs, problems)), accelerator.array.pes),
        offchip_cycles=offchip_cycles(accelerator, sum(read.values()), sum(written.values())),
        vector_cycles=sum((least_vector_cycles(p, accelerator) for p in problems), Fraction(0)),
    )


class Costs(Protocol):
    """What a closed form of one mapping and a simulation have in common."""

    @property
    def busy_cycles(self) -> Mapping[str, Any]: ...
    @property
    def work(self) -> Work: ...


def mapping_bounds(costs: Costs, accelerator: Accelerator) -> Bounds:
    """How long each resource is busy, from the closed form of one mapping or from a simulation."""
    read, written = int(_one(costs.work.offchip_read_bytes)), int(_one(costs.work.offchip_write_bytes))
    return Bounds(
        array_cycles=Fraction(_one(costs.busy_cycles.get("array", 0))),
        offchip_cycles=offchip_cycles(accelerator, read, written),
        vector_cycles=Fraction(_one(costs.busy_cycles.get("vector", 0))),
    )


def _one(value: Any) -> Any:
    """The only entry of a column, or the number itself."""
    return value.item() if hasattr(value, "item") else value
