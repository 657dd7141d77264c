"""The work on one tile of query rows: source, mask, softmax, sink, in three shapes.

`kernel_schedule` shows the shapes. `source` puts a tile of scores into a buffer (a logit product, or a load); `sink`
uses a tile of probabilities (an attend product, or a store); what lies between depends on the softmax algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xdsl.ir import Attribute, SSAValue

from flatc.dialects.attn import MaskAttr
from flatc.dialects.quasi_affine import Expr, const, maximum, var
from flatc.dialects.spatial import Access, MatmulOp, VectorOp
from flatc.passes.kernels.nest_builder import NestBuilder


class QueryTile:
    """The work on one tile of query rows; `kernel_schedule` shows its three shapes."""

    def __init__(self, kernel: NestBuilder):
        self.kernel = kernel
        self.problem, self.mapping, self.types = kernel.problem, kernel.mapping, kernel.types
        self.stages = kernel.mapping.stages
        self.slots = kernel.mapping.keep
        self.rows_tile = [*kernel.heads_tile(), kernel.tile["query"]]
        self.rows_extent = [*kernel.heads_extent(), kernel.extent("query")]
        self.rows_start = [*kernel.heads_start(), kernel.start("query")]
        self.q: tuple[SSAValue, SSAValue] | None = None
        self.output: SSAValue | None = None

    # --- The three shapes ---------------------------------------------------------------------------------

    def one_loop(self) -> None:
        """Online softmax, or no softmax: one pass over the key tiles."""
        online = self.problem.has("softmax")
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))

        def body(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, self.stages.load, self.stages.logit)
            ready = self._mask(scores, ready, self.stages.softmax)
            correction: SSAValue | None = None
            if online:
                scores, ready, correction = self._online_step(scores, ready)
            return self._sink(scores, [ready], carried, correction)

        done = self.kernel.key_loop(body, stream=True, stage=0)
        self._finish(done)

    def rows(self) -> None:
        """Whole rows of scores on chip: fill them, softmax over them, use them."""
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))
        strip = self._score_buffer("scores", self.kernel.strip_width(), self.types.scores)

        def fill(carried: SSAValue) -> SSAValue:
            return self._source(self._strip_window(strip), 0, 0)[1]

        filled = self.kernel.key_loop(fill, stream=False, stage=self.stages.logit)
        probabilities, ready = self._rows_softmax(strip, self._mask_strip(strip, filled))

        def use(carried: SSAValue) -> SSAValue:
            return self._sink(self._strip_window(probabilities), [ready], carried, None, pipelined=False)

        stage = self.stages.attend if self.problem.has("attend") else self.stages.store
        done = self.kernel.key_loop(use, stream=False, stage=stage)
        self._finish(done)

    def streamed(self) -> None:
        """Two passes over the source: the first finds each row's maximum and sum, the second divides."""
        self._begin(maximum_slots=1 + self.stages.attend - self.stages.logit, sum_slots=1 + self.stages.attend)

        def measure(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._mask(scores, ready, 0)
            _, ready, _ = self._online_step(scores, ready, pipelined=False)
            return ready

        measured = self.kernel.key_loop(measure, stream=False, stage=self.stages.logit)

        def use(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._mask(scores, ready, 0)
            exponentials, ready = self._exp(scores, [ready, measured], 0, total=False, final=False)
            probabilities, ready = self._divide_scores(exponentials, ready, 0)
            return self._sink(probabilities, [ready], carried, None, pipelined=False)

        done = self.kernel.key_loop(use, stream=False, stage=self.stages.attend)
        self._finish(done)

    # --- Pieces ---------------------------------------------------------------------------------------------

    def _depth(self, producer: str, consumer: str) -> int:
        """Slots that a small buffer needs to live from one stage to another."""
        return max(1, getattr(self.stages, consumer) - getattr(self.stages, producer) + 1)

    def _begin(self, maximum_slots: int, sum_slots: int) -> None:
        kernel, problem = self.kernel, self.problem
        if problem.has("logit"):
            assert self.types.q is not None
            assert kernel.tensors.q is not None
            shape = [*self.rows_tile, problem.d_qk]
            buffer = kernel.buffer("Q", self.slots.q_slots, shape, self.types.q)
            token = kernel.load(
                kernel.tensors.q,
                [*self.rows_start, const(0)],
                [*self.rows_extent, const(problem.d_qk)],
                Access(buffer),
                self.stages.load,
                "q",
            )
            self.q = buffer, token
        if problem.has("softmax"):
            low, zero = float("-inf"), 0.0
            self.maximum = kernel.buffer("maximum", maximum_slots, self.rows_tile, self.types.scores, low)
            self.sum = kernel.buffer("sum", sum_slots, self.rows_tile, self.types.scores, zero)
        if problem.has("attend"):
            shape = [*self.rows_tile, problem.d_v]
            self.output = kernel.buffer("output", self.slots.output_slots, shape, self.types.accumulator, 0.0)

    def _score_buffer(self, label: str, width: int, type: Attribute) -> SSAValue:
        return self.kernel.buffer(label, self.slots.score_slots, [*self.rows_tile, width], type)

    def _strip_window(self, strip: SSAValue) -> Access:
        lower, _ = self.kernel.key_range()
        offset = self.kernel.start("key") - lower * self.kernel.tile["key"]
        if self.kernel.trips["key"] == 1:
            offset = const(0)
        return Access(strip, (*[const(0)] * 4, offset))

    def _tile_extents(self) -> list[Expr]:
        return [*self.rows_extent, self.kernel.extent("key")]

    def _source(self, into: Access | None, load_stage: int, stage: int) -> tuple[Access, SSAValue]:
        """Puts the current tile of scores into a buffer: a logit product or a load."""
        kernel = self.kernel
        if not self.problem.has("logit"):
            assert kernel.tensors.scores is not None
            into = into or Access(self._score_buffer("scores", kernel.tile["key"], self.types.scores))
            starts = [*self.rows_start, kernel.start("key")]
            return into, kernel.load(kernel.tensors.scores, starts, self._tile_extents(), into, load_stage, "scores")
        assert self.q is not None
        k, loaded = kernel.keyed("k", load_stage)
        into = into or Access(self._score_buffer("scores", kernel.tile["key"], self.types.scores))
        use = self.mapping.logit
        op = MatmulOp(
            kernel.timed(
                [*self._tile_extents(), const(self.problem.d_qk)],
                reads=[self.q[0], k],
                writes=[into],
                after=[self.q[1], loaded],
                stage=stage,
            ),
            stationarity=use.stationarity,
            batch_rank=2,
            fold=(use.fold_rows, use.fold_columns),
            transposed=True,
            scale=kernel.scale,
        )
        return into, kernel.emit(op, "logit")

    def _mask(self, scores: Access, ready: SSAValue, stage: int) -> SSAValue:
        """Hides scores where the mask's edge crosses the current tile."""
        mask = self.problem.mask
        if mask is None:
            return ready
        kernel = self.kernel
        timed = kernel.timed(self._tile_extents(), [scores], [scores], [ready], stage)
        op = VectorOp(
            "mask",
            replace(timed, when=self._crosses_edge()),
            mask=MaskAttr(mask),
            position=[kernel.start("query"), kernel.start("key")],
        )
        return kernel.emit(op, "mask")

    def _mask_strip(self, strip: SSAValue, filled: SSAValue) -> SSAValue:
        """Masks the tiles of a strip on the mask's edge, with the softmax: the vector unit takes its work in order,
        and masks of the strip being filled must not hold up the softmax of the strip before."""
        kernel = self.kernel
        if self.problem.mask is None:
            return filled
        first: Expr | None = None
        if kernel.edge.full is not None:
            lower, upper = (kernel.at_rows(bound) for bound in kernel.edge.full)
            if lower.is_constant() and lower.constant <= 0:
                first = upper // kernel.tile["key"]

        def mask(carried: SSAValue) -> SSAValue:
            return self._mask(self._strip_window(strip), filled, 0)

        return kernel.key_loop(mask, stream=False, stage=self.stages.softmax, first=first, init=filled)

    def _crosses_edge(self) -> Expr | None:
        """Positive where some row of the tile does not see some key of it; None if that must be assumed."""
        kernel = self.kernel
        full = kernel.edge.full
        if full is None:
            return None
        lower, upper = (kernel.at_rows(bound) for bound in full)
        start = kernel.start("key")
        beyond = start + kernel.extent("key") - upper
        if lower.is_constant() and lower.constant <= 0:
            return beyond
        return maximum(beyond, lower - start)

    def _online_step(
        self, scores: Access, ready: SSAValue, *, pipelined: bool = True
    ) -> tuple[Access, SSAValue, SSAValue]:
        """Running maximum, exponentials, running sum; gives probabilities, token and correction."""
        kernel = self.kernel
        stage = self.stages.softmax if pipelined else 0
        slots = self._depth("softmax", "attend") if pipelined else 1
        correction = kernel.buffer("correction", slots, self.rows_tile, self.types.scores)
        timed = kernel.timed(self._tile_extents(), [scores, self.maximum], [self.maximum, correction], [ready], stage)
        ready = kernel.emit(VectorOp("row_max", timed), "row_max")
        probabilities, ready = self._exp(scores, [ready], stage, total=True, final=pipelined, correction=correction)
        return probabilities, ready, correction

    def _exp(
        self,
        scores: Access,
        after: Sequence[SSAValue],
        stage: int,
        *,
        total: bool,
        final: bool,
        correction: SSAValue | None = None,
        extents: Sequence[Expr] | None = None,
    ) -> tuple[Access, SSAValue]:
        """Exponentials of scores; `final` ones are probabilities already and are stored as such."""
        kernel = self.kernel
        probabilities = self._probabilities(scores, extents) if final else scores
        sums = [self.sum] if total else []
        reads = [scores, self.maximum, *sums, *([correction] if correction is not None else [])]
        timed = kernel.timed(extents or self._tile_extents(), reads, [probabilities, *sums], after, stage)
        return probabilities, kernel.emit(VectorOp("exp", timed), "exp")

    def _probabilities(self, scores: Access, extents: Sequence[Expr] | None) -> Access:
        """Where probabilities go: over the scores, or into a buffer of their own type."""
        if not self.problem.converts_probabilities:
            return scores
        width = self.kernel.tile["key"] if extents is None else self.kernel.strip_width()
        return Access(self._score_buffer("probabilities", width, self.types.probabilities))

    def _rows_softmax(self, strip: SSAValue, filled: SSAValue) -> tuple[SSAValue, SSAValue]:
        """Softmax over whole rows, division included where it is early."""
        kernel, stage = self.kernel, self.stages.softmax
        extents = [*self.rows_extent, kernel.strip_keys()]
        timed = kernel.timed(extents, [strip, self.maximum], [self.maximum], [filled], stage)
        ready = kernel.emit(VectorOp("row_max", timed), "row_max")
        early = self.mapping.softmax.divide == "early"
        probabilities, ready = self._exp(Access(strip), [ready], stage, total=True, final=not early, extents=extents)
        if early:
            probabilities, ready = self._divide_scores(probabilities, ready, stage, extents)
        return probabilities.value, ready

    def _divide_scores(
        self, exponentials: Access, ready: SSAValue, stage: int, extents: Sequence[Expr] | None = None
    ) -> tuple[Access, SSAValue]:
        """Divides exponentials by their sum; rounded to the probabilities' type once, here."""
        probabilities = self._probabilities(exponentials, extents)
        timed = self.kernel.timed(
            extents or self._tile_extents(), [exponentials, self.sum], [probabilities], [ready], stage
        )
        return probabilities, self.kernel.emit(VectorOp("divide", timed), "divide")

    def _sink(
        self,
        scores: Access,
        ready: Sequence[SSAValue],
        carried: SSAValue,
        correction: SSAValue | None,
        *,
        pipelined: bool = True,
    ) -> SSAValue:
        """Uses the current tile of probabilities: an attend product or a store."""
        kernel = self.kernel
        if not self.problem.has("attend"):
            starts = [*self.rows_start, kernel.start("key")]
            stage = self.stages.store if pipelined else 0
            return kernel.store(scores, kernel.tensors.result, starts, self._tile_extents(), ready, stage)
        assert self.output is not None
        v, loaded = kernel.keyed("v", kernel.load_stage("v") if pipelined else 0)
        stage = self.stages.attend if pipelined else 0
        after = [*ready, loaded]
        if correction is not None:
            after.append(self._rescale(correction, ready, carried, stage))
        use = self.mapping.attend
        op = MatmulOp(
            kernel.timed(
                [*self.rows_extent, const(self.problem.d_v), kernel.extent("key")],
                reads=[scores, v],
                writes=[self.output],
                after=after,
                stage=stage,
            ),
            stationarity=use.stationarity,
            batch_rank=2,
            fold=(use.fold_rows, use.fold_columns),
            accumulate=True,
        )
        return kernel.emit(op, "attend")

    def _rescale(self, correction: SSAValue, ready: Sequence[SSAValue], carried: SSAValue, stage: int) -> SSAValue:
        """Brings earlier outputs to the new maximum; the first tile has none."""
        kernel = self.kernel
        assert self.output is not None
        extents = [*self.rows_extent, const(self.problem.d_v)]
        timed = kernel.timed(extents, [self.output, correction], [self.output], [*ready, carried], stage)
        lower, _ = kernel.key_range()
        first = var("key") - lower if kernel.trips["key"] > 1 else const(0)
        return kernel.emit(VectorOp("rescale", replace(timed, when=first)), "rescale")

    def _finish(self, done: SSAValue) -> None:
        """Divides or converts the finished outputs where that is due, and stores them."""
        if not self.problem.has("attend"):
            return
        kernel = self.kernel
        assert self.output is not None
        extents = [*self.rows_extent, const(self.problem.d_v)]
        # With the store, not with attend: else the vector unit would wait for attend before the next softmax.
        output, stage = self.output, self.stages.store
        late = self.problem.has("softmax") and self.mapping.softmax.divide == "late"
        if self.problem.converts_output:
            shape = [*self.rows_tile, self.problem.d_v]
            output = kernel.buffer("result", self.slots.output_slots, shape, self.types.output)
        if late or self.problem.converts_output:
            reads = [self.output, self.sum] if late else [self.output]
            timed = kernel.timed(extents, reads, [output], [done], stage)
            done = kernel.emit(VectorOp("divide" if late else "cast", timed), "divide" if late else "cast")
        starts = [*self.rows_start, const(0)]
        kernel.store(Access(output), kernel.tensors.result, starts, extents, [done], self.stages.store)
