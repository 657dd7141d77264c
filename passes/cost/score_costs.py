"""What the work on scores adds to the closed form: operands on chip and off chip, and vector work on every tile.

The counts are products: an operand that lacks a dimension is loaded once for each tile along it, one that has it once
in all. How many (query, key) tiles are visited says `key_geometry`; which loads stand in which loop `score_ops`.
"""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.arrays import larger
from flatc.passes.cost.key_geometry import KeyGeometry
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Operand, operand_level


class ScoreCosts:
    """The costs of the operands of a kernel for a column of mappings (`mapping_columns.Columns`)."""

    def __init__(self, problem: AttentionProblem, algorithm: str, k_level: str, columns: Any):
        self.problem, self.k_level, self.columns = problem, k_level, columns
        self._streamed = algorithm == "streamed"

    def _along(self, operand: Operand, place: int) -> Any:
        """Over all tiles along batch, kv head or group: how many elements of the operand they have, added up."""
        p, c = self.problem, self.columns
        size, tile = ((p.batch, c.batch), (p.kv_heads, c.kv_head), (p.group, c.group))[place]
        return size if operand.has[place] else ceil_divide(size, tile)

    def _of_visits(self, operand: Operand, geometry: KeyGeometry) -> Any:
        """Over all visited tiles of one head tile: elements along query and key, added up."""
        *_, rows, keys = operand.has
        return sum(
            geometry.visits[q][k] * (q_extent if rows else 1) * (k_extent if keys else 1)
            for q, q_extent in enumerate(geometry.q_extents)
            for k, k_extent in enumerate(geometry.k_extents)
        )

    def footprint_bytes(self) -> Any:
        """Bytes of the buffers of all operands."""
        p, c = self.problem, self.columns
        tiles = (c.batch, c.kv_head, c.group, c.query, c.key)
        whole = (c.batch, c.kv_head, p.group, 1, p.keys)
        total: Any = 0
        for operand in p.operands:
            level = operand_level(operand, self.k_level)
            elements: Any = operand.buckets or 1
            for has, size in zip(operand.has, whole if level == "heads" else tiles, strict=True):
                elements = elements * (size if has else 1)
            inside = level in ("key", "tile")
            buffers = self._slots(inside) * (self._passes(operand) if inside else 1)
            total = total + elements * buffers * operand.element_bytes
        return total

    def _passes(self, operand: Operand) -> int:
        """How often a visited tile works with an operand: a streamed softmax has its scores twice, and weighs once."""
        return 2 if self._streamed and operand is not self.problem.value_scale else 1

    def _slots(self, inside: bool) -> Any:
        """Slots of a buffer inside or outside of the key loops, as `score_ops.operand_slots` has them."""
        c = self.columns
        slots = larger(c.k_slots, c.logit - c.load + 1)
        return slots if inside or not self._streamed else slots + c.attend - c.logit

    def offchip_bytes(self, geometry: KeyGeometry) -> dict[str, Any]:
        """Bytes that are read of each operand, by role."""
        found: dict[str, Any] = {}
        like = self.columns.batch * 0
        for operand in self.problem.operands:
            size = like + self._loaded_elements(operand, geometry) * operand.element_bytes
            found[operand.role] = found.get(operand.role, 0) + size
        return found

    def _loaded_elements(self, operand: Operand, geometry: KeyGeometry) -> Any:
        p = self.problem
        level = operand_level(operand, self.k_level)
        heads = self._along(operand, 0) * self._along(operand, 1) * (operand.buckets or 1)
        _, _, has_group, _, has_keys = operand.has
        if level == "heads":
            return heads * (p.group if has_group else 1) * (p.keys if has_keys else 1)
        if level == "query":
            return heads * self._along(operand, 2) * p.queries
        return heads * self._along(operand, 2) * self._of_visits(operand, geometry) * self._passes(operand)

    def loads(self, geometry: KeyGeometry) -> Any:
        """How many loads the operands take."""
        p, c = self.problem, self.columns
        heads = ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)
        groups = heads * ceil_divide(p.group, c.group)
        visits = groups * sum(geometry.visits[0] + geometry.visits[1])
        counts = {"heads": heads, "query": groups * sum(geometry.q_counts)}
        found: Any = 0
        for operand in p.operands:
            level = operand_level(operand, self.k_level)
            found = found + (counts[level] if level in counts else visits * self._passes(operand))
        return found

    def buffer_read_bytes(self, geometry: KeyGeometry) -> Any:
        """Bytes of repeated operands that the vector unit reads, as stored, once for each operation.

        T5's table is not among them: it is looked up for every score.
        """
        total: Any = 0
        for operand in self.problem.operands:
            if operand.buckets:
                continue
            times = sum(geometry.q_counts)
            if operand is not self.problem.sink:
                times = self._of_visits(operand, geometry) * self._passes(operand)
            heads = self._along(operand, 0) * self._along(operand, 1) * self._along(operand, 2)
            total = total + heads * times * operand.element_bytes
        return total
