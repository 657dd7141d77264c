"""The loop nest of one kernel: from a problem and a mapping to spatial operations.

Four shapes cover every contiguous part of attention. `source` is a logit product, or a load of scores;
`sink` is an attend product, or a store of the result:

    one loop (online softmax, or none)     rows (whole rows on chip)        streamed (rows do not fit)
    for query:                             for query:                       for query:
      load Q                                 load Q                           load Q
      for key stream:                        for key: source, mask            for key: source, mask, max, sum
        source, mask                         softmax over the rows            for key: source, mask, exp, divide
        max, exp, rescale                    for key: sink                             sink
        sink                                 divide, store                    store
      divide, store

An online softmax that rescales every few key tiles is the first of these, with strips in the place of tiles and the
inside of the second, so that scores lie on chip in strips and K and V in tiles:

    for query:
      load Q
      for strip stream:
        for key of the strip: source, mask
        max, exp, rescale
        for key of the strip: sink
      divide, store

Products without a softmax can run over whole rows too: see `product_rows`.

What else happens to scores between `source` and the softmax (softcap, biases, masks known at run time, sinks) is in
`score_work`. Loops over batch, kv head and group stand around `query` where their tiles do not cover them; all are one
pipeline. Masks become loop bounds (`live_keys`): tiles that are hidden entirely are never visited, and only tiles
that cross the mask's edge are masked.
"""

from __future__ import annotations

from xdsl.ir import Operation

from flatc.dialects.quasi_affine import const
from flatc.dialects.spatial import YieldOp, make_for
from flatc.passes.kernels.nest_builder import ElementTypes, NestBuilder, Tensors
from flatc.passes.kernels.product_rows import ProductRows
from flatc.passes.kernels.query_tile import QueryTile
from flatc.passes.kernels.score_work import ScoreWork

__all__ = ["ElementTypes", "KernelSchedule", "Tensors"]


class KernelSchedule(NestBuilder):
    """Builds the operations of one kernel. `build` gives the operations of its body."""

    def build(self) -> list[Operation]:
        """The operations of the kernel's body."""
        self.score_work = ScoreWork(self)
        self._outer(0)
        return self.ops

    def _outer(self, depth: int) -> None:
        heads = sum(dim in ("batch", "kv_head") for dim in self.outer)
        if depth == heads:
            self._load_resident()
        if depth == len(self.outer):
            self._query_tile()
            return
        dim = self.outer[depth]
        outside, self.ops = self.ops, []
        block = self.loop_block(dim)
        self._outer(depth + 1)
        block.add_ops([*self.ops, YieldOp()])
        self.ops = outside
        del self.loops[dim]
        self.ops.append(make_for(self.loops, 0, self.trips[dim], block, stream=depth > 0))

    def _load_resident(self) -> None:
        """The table of pages, and K or V of the whole head tile, where the mapping keeps it across the query loop."""
        keep = self.mapping.keep
        self.load_table(self.mapping.stages.load if self.loops else 0)
        for name, level in (("k", keep.k_level), ("v", keep.v_level)):
            tensor = getattr(self.tensors, name)
            if level == "kv_head" and tensor is not None:
                # A kernel's body is no loop: what stands there has no stage.
                stage = self.load_stage(name) if self.loops else 0
                self.resident[name] = self.load_keyed(name, const(0), const(self.size["key"]), stage)
        self.score_work.load_heads()

    def _query_tile(self) -> None:
        algorithm = self.mapping.softmax.algorithm
        if algorithm == "rows" and not self.problem.has("softmax"):
            ProductRows(self).build()
            return
        body = QueryTile(self, self.score_work)
        if algorithm == "rows":
            body.rows()
        elif algorithm == "streamed":
            body.streamed()
        elif self.strip_tiles > 1:
            body.strips()
        else:
            body.one_loop()
