"""What a column of mappings moves off chip and back: bytes by tensor, and how many transfers."""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.primitive_costs import Work, ceil_divide
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.cost.tile_counts import Counts, TileKinds, tiles_along
from flatc.passes.kernels.keyed_storage import PAGE_BYTES


class TransferCounts(TileKinds):
    """Counts transfers and their bytes (see `Counts`)."""

    def counts(self) -> Counts:
        """Bytes and transfers, and what the buffer is read for them beside."""
        work = Work() if self.problem.block is None else Work(buffer_read_bytes=self.loads_of_keys() * PAGE_BYTES)
        return Counts(work, tensor_bytes=self.tensor_bytes(), transfers=self.transfers())

    def tensor_bytes(self) -> dict[str, Any]:
        """Off-chip bytes by tensor."""
        p, s, g = self.problem, self.structure, self.geometry
        like = self.columns.batch * 0
        kv = p.batch * p.kv_heads
        streamed_keys = sum(g.visits[q][k] * k_extent for q in (0, 1) for k, k_extent in enumerate(g.k_extents))
        if self.shares_keys:
            streamed_keys = like + p.keys * self._blocks()
        streamed_keys = ceil_divide(p.group, self.columns.group) * streamed_keys
        scores = p.heads * sum(
            g.visits[q][k] * k_extent * q_extent
            for q, q_extent in enumerate(g.q_extents)
            for k, k_extent in enumerate(g.k_extents)
        )
        found: dict[str, Any] = {}
        if p.block is not None:
            found["pages"] = ceil_divide(p.kv_heads, self.columns.kv_head) * (p.batch * p.pages * PAGE_BYTES)
        if p.has("logit"):
            again = ceil_divide(p.keys, self.columns.key) if self.product_rows and s.k_level == "key" else 1
            found["q"] = (like + p.heads * p.queries * p.d_qk * p.q_bytes) * again
            keys = like + p.keys if s.k_level == "kv_head" else streamed_keys * self.passes
            found["k"] = keys * (kv * p.d_qk * p.k_bytes)
        else:
            found["scores"] = scores * (p.score_bytes * self.passes)
        if p.has("attend"):
            levels: dict[str, Any] = {"kv_head": like + p.keys, "k": like}
            keys = levels.get(s.v_level, streamed_keys)
            found["v"] = keys * (kv * p.d_v * p.v_bytes)
            found["result"] = like + p.heads * p.queries * p.d_v * p.output_bytes
        else:
            found["result"] = scores * p.probability_bytes
        return found | self._scores().offchip_bytes(g)

    def _scores(self) -> ScoreCosts:
        return ScoreCosts(self.problem, self.structure.algorithm, self.structure.k_level, self.columns)

    def _blocks(self) -> Any:
        """How many times query tiles are interleaved: how often their keys are streamed."""
        return ceil_divide(self.problem.queries, self.columns.query * self.structure.interleave)

    def loads_of_keys(self) -> Any:
        """How many transfers load K and V. Of pages each takes one, for every sequence of a tile."""
        p, s, g, c = self.problem, self.structure, self.geometry, self.columns
        block = p.block or p.keys
        heads = ceil_divide(p.kv_heads, c.kv_head) * (ceil_divide(p.batch, c.batch) if p.block is None else p.batch)
        streamed = sum(
            g.visits[q][k] * ceil_divide(k_extent, block) for q in (0, 1) for k, k_extent in enumerate(g.k_extents)
        )
        if self.shares_keys:
            streamed = self._blocks() * sum(
                count * ceil_divide(extent, block) for count, extent in tiles_along(p.keys, c.key)
            )
        whole, tile = heads * ceil_divide(p.keys, block), heads * ceil_divide(p.group, c.group) * streamed
        loads: Any = 0
        if p.has("logit"):
            loads = whole if s.k_level == "kv_head" else tile * self.passes
        if p.has("attend") and s.v_level != "k":
            loads = loads + (whole if s.v_level == "kv_head" else tile)
        return loads

    def transfers(self) -> tuple[Any, Any]:
        """How many loads and how many stores."""
        p, s, g, c = self.problem, self.structure, self.geometry, self.columns
        heads = ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)
        groups = heads * ceil_divide(p.group, c.group)
        tiles, visits = groups * sum(g.q_counts), groups * sum(g.visits[0] + g.visits[1])
        if self.shares_keys:
            tiles = groups * self._blocks()
            visits = tiles * ceil_divide(p.keys, c.key)
        fills = tiles if s.k_level == "query" else visits
        loads: Any = 0
        if self.product_rows:
            loads = 2 * fills * ceil_divide(p.d_qk, s.d_qk or p.d_qk)
        elif p.has("logit"):
            loads = tiles + self.loads_of_keys()
        else:
            loads = visits * self.passes + self.loads_of_keys()
        loads = loads + self._scores().loads(g)
        if self.product_rows and p.has("attend"):
            loads = loads + visits
        if p.block is not None:
            loads = loads + heads  # of the table
        return loads, tiles if p.has("attend") else fills
