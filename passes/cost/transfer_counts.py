"""What a column of mappings moves off chip and back: bytes by tensor, and how many transfers."""

from __future__ import annotations

from typing import Any

from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.score_costs import ScoreCosts
from flatc.passes.cost.tile_counts import Tally, TileKinds, tiles_along
from flatc.passes.kernels.keyed_storage import PAGE_BYTES


class TransferCounts:
    """Adds transfers and their bytes to a tally (see `Counts`)."""

    def __init__(self, tiles: TileKinds, tally: Tally):
        p, c = tiles.problem, tiles.columns
        self.tiles, self.tally = tiles, tally
        self.problem, self.structure = p, tiles.structure
        self.columns, self.geometry = c, tiles.geometry
        self.scores = ScoreCosts(p, self.structure.algorithm, self.structure.k_level, c) if p.operands else None
        self.kv_head_tiles = ceil_divide(p.kv_heads, c.kv_head)
        self.group_tiles = ceil_divide(p.group, c.group)
        self.head_tiles = ceil_divide(p.batch, c.batch) * self.kv_head_tiles
        full, ragged = self.geometry.visits
        self.visits: tuple[Any, Any] = full[0] + ragged[0], full[1] + ragged[1]
        """How often one tile of heads visits full and ragged key tiles, its query tiles all together."""
        self.query_tiles: Any = self.geometry.q_counts[0] + self.geometry.q_counts[1]
        self.all_visits: Any = self.visits[0] + self.visits[1]
        if tiles.shares_keys:
            # So often are they interleaved, and then their keys are streamed once.
            self.query_tiles = ceil_divide(p.queries, c.query * self.structure.interleave)
            self.all_visits = self.query_tiles * ceil_divide(p.keys, c.key)

    def add(self) -> None:
        """Adds bytes and transfers, and what the buffer is read for them beside."""
        loads_of_keys = self.loads_of_keys()
        if self.problem.block is not None:
            self.tally.reads = self.tally.reads + loads_of_keys * PAGE_BYTES
        self.tally.tensor_bytes = self.tensor_bytes()
        self.tally.transfers = self.transfers(loads_of_keys)

    def tensor_bytes(self) -> dict[str, Any]:
        """Off-chip bytes by tensor."""
        p, s = self.problem, self.structure
        like = self.columns.batch * 0
        kv = p.batch * p.kv_heads
        if self.tiles.shares_keys:
            streamed_keys = like + p.keys * self.query_tiles
        else:
            streamed_keys = sum(times * keys for times, keys in zip(self.visits, self.geometry.k_extents, strict=True))
        streamed_keys = self.group_tiles * streamed_keys
        found: dict[str, Any] = {}
        if p.block is not None:
            found["pages"] = self.kv_head_tiles * (p.batch * p.pages * PAGE_BYTES)
        if p.has("logit"):
            again = ceil_divide(p.keys, self.columns.key) if self.tiles.product_rows and s.k_level == "key" else 1
            found["q"] = (like + p.heads * p.queries * p.d_qk * p.q_bytes) * again
            keys = like + p.keys if s.k_level == "kv_head" else streamed_keys * self.tiles.passes
            found["k"] = keys * (kv * p.d_qk * p.k_bytes)
        else:
            found["scores"] = self._visited_scores() * (p.score_bytes * self.tiles.passes)
        if p.has("attend"):
            levels: dict[str, Any] = {"kv_head": like + p.keys, "k": like}
            keys = levels.get(s.v_level, streamed_keys)
            found["v"] = keys * (kv * p.d_v * p.v_bytes)
            found["result"] = like + p.heads * p.queries * p.d_v * p.output_bytes
        else:
            found["result"] = self._visited_scores() * p.probability_bytes
        return found if self.scores is None else found | self.scores.offchip_bytes(self.geometry)

    def _visited_scores(self) -> Any:
        g = self.geometry
        return self.problem.heads * sum(
            times * k_extent * q_extent
            for visits, q_extent in zip(g.visits, g.q_extents, strict=True)
            for times, k_extent in zip(visits, g.k_extents, strict=True)
        )

    def loads_of_keys(self) -> Any:
        """How many transfers load K and V. Of pages each takes one, for every sequence of a tile."""
        p, s = self.problem, self.structure
        if p.block is None:
            whole, streamed = self.head_tiles, self.head_tiles * self.all_visits
        else:
            heads = self.kv_head_tiles * p.batch
            whole, streamed = heads * ceil_divide(p.keys, p.block), heads * self._visited_pages(p.block)
        tile = self.group_tiles * streamed
        loads: Any = 0
        if p.has("logit"):
            loads = whole if s.k_level == "kv_head" else tile * self.tiles.passes
        if p.has("attend") and s.v_level != "k":
            loads = loads + (whole if s.v_level == "kv_head" else tile)
        return loads

    def _visited_pages(self, block: int) -> Any:
        """How many pages one sequence of one tile of heads visits."""
        if self.tiles.shares_keys:
            tiles = tiles_along(self.problem.keys, self.columns.key)
            return self.query_tiles * sum(count * ceil_divide(extent, block) for count, extent in tiles)
        kinds = zip(self.visits, self.geometry.k_extents, strict=True)
        return sum(count * ceil_divide(extent, block) for count, extent in kinds)

    def transfers(self, loads_of_keys: Any) -> tuple[Any, Any]:
        """How many loads and how many stores."""
        p, s = self.problem, self.structure
        groups = self.head_tiles * self.group_tiles
        tiles, visits = groups * self.query_tiles, groups * self.all_visits
        fills = tiles if s.k_level == "query" else visits
        if self.tiles.product_rows:
            loads = 2 * fills * ceil_divide(p.d_qk, s.d_qk or p.d_qk)
        elif p.has("logit"):
            loads = tiles + loads_of_keys
        else:
            loads = visits * self.tiles.passes + loads_of_keys
        if self.scores is not None:
            loads = loads + self.scores.loads(self.geometry)
        if self.tiles.product_rows and p.has("attend"):
            loads = loads + visits
        if p.block is not None:
            loads = loads + self.head_tiles  # of the table
        return loads, tiles if p.has("attend") else fills
