"""The work on one tile of query rows: source, mask, softmax, sink, in four shapes.

`kernel_schedule` shows the shapes. `source` puts a tile of scores into a buffer (a logit product, or a load); `sink`
uses a tile of probabilities (an attend product, or a store); what lies between depends on the softmax algorithm.

Where PEs of the array do a part of an online softmax (FuseMax, MICRO 2024), score tiles stay in their registers, and
what belongs to scores is told apart from what belongs to rows, which is the vector unit's:

    row max      tile_max (array)                  merge_max with the running maximum (vector)
    exp          exp, of scores - merged maximum (array)
    row sum      tile_sum (array)                  merge_sum with the running sum (vector)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from xdsl.ir import Attribute, SSAValue

from flatc.dialects.attn import MaskAttr
from flatc.dialects.quasi_affine import Expr, ceildiv, const, maximum, minimum, var
from flatc.dialects.spatial import Access, BufferType, MatmulOp, OnArray, VectorOp, YieldOp, make_for
from flatc.passes.kernels.nest_builder import KeyBody, NestBuilder
from flatc.passes.kernels.score_work import ScoreWork


class QueryTile:
    """The work on one tile of query rows; `kernel_schedule` shows its four shapes."""

    def __init__(self, kernel: NestBuilder, score_work: ScoreWork):
        self.kernel, self.score_work = kernel, score_work
        self.problem, self.mapping, self.types = kernel.problem, kernel.mapping, kernel.types
        self.stages = kernel.mapping.stages
        self.slots = kernel.mapping.keep
        use = kernel.mapping.attend
        self.held = OnArray(2, (use.fold_rows, use.fold_columns)) if kernel.mapping.softmax.on_array else None
        """How score tiles lie in the registers of PEs, where they stay there."""
        self.sums_in_attend = kernel.mapping.softmax.total == "attend"
        self.width = self.problem.d_v + self.sums_in_attend
        """Columns of outputs while they are summed up: the last may be the row sum."""
        self.rows_tile = [*kernel.heads_tile(), kernel.tile["query"]]
        self.rows_extent = [*kernel.heads_extent(), kernel.extent("query")]
        self.rows_start = [*kernel.heads_start(), kernel.start("query")]
        self.first_row = const(0)
        """Where the rows at work start in the buffers that hold all rows of the tile."""
        self.shared: dict[str, tuple[Access, SSAValue]] = {}
        """Tiles of K and V that several tiles of rows share."""
        self.q: tuple[SSAValue, SSAValue] | None = None
        self.output: SSAValue | None = None

    # --- The four shapes ----------------------------------------------------------------------------------

    def one_loop(self) -> None:
        """Online softmax, or no softmax: one pass over the key tiles."""
        online, held = self.problem.has("softmax"), self.held
        self._begin(maximum_slots=1, sum_slots=self._depth("attend" if held else "softmax", "store"))

        self._sink_row(self.stages.softmax)

        def step(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, self.stages.load, self.stages.logit)
            masked = self._change(scores, ready, self.stages.softmax, self.score_work.load_stage(self.stages.softmax))
            if held is not None:
                probabilities, waits, merged, correction = self._held_step(scores, ready, masked)
                return self._sink(probabilities, waits, carried, correction, corrected=merged)
            correction: SSAValue | None = None
            ready = masked
            if online:
                scores, ready, correction = self._online_step(scores, ready)
            ready = self._scale_values(
                scores, ready, self.stages.softmax, self.score_work.load_stage(self.stages.softmax)
            )
            return self._sink(scores, [ready], carried, correction)

        body = step if self.mapping.interleave == 1 else self._parts(step)
        done = self.kernel.key_loop(body, stream=True, stage=0)
        self._finish(done)

    def _parts(self, step: KeyBody) -> KeyBody:
        """`step` for one part of the rows after the other, all with the same tile of K and V.

        Running maxima, sums and outputs of all parts stay on chip; everything else is as large as a part.
        """
        kernel, rows = self.kernel, self.mapping.tiles.query
        kernel.ranges["part"] = (0, self.mapping.interleave - 1)

        def body(carried: SSAValue) -> SSAValue:
            for name, stage in (("k", self.stages.load), ("v", kernel.load_stage("v"))):
                self.shared[name] = kernel.keyed(name, stage)
            whole = self.rows_tile, self.rows_extent, self.rows_start, self.first_row
            *heads, extent = self.rows_extent
            outside, kernel.ops = kernel.ops, []
            block = kernel.loop_block("part", tokens=1)
            self.first_row = kernel.simplified(var("part") * rows)
            self.rows_tile = [*self.rows_tile[:-1], rows]
            self.rows_extent = [*heads, kernel.simplified(minimum(rows, extent - self.first_row))]
            self.rows_start = [*self.rows_start[:-1], kernel.simplified(self.rows_start[-1] + self.first_row)]
            token = step(block.args[1])
            block.add_ops([*kernel.ops, YieldOp([token])])
            kernel.ops = outside
            del kernel.loops["part"]
            self.rows_tile, self.rows_extent, self.rows_start, self.first_row = whole
            self.shared.clear()
            loop = make_for(kernel.loops, 0, ceildiv(extent, rows), block, [carried], stream=True)
            kernel.ops.append(loop)
            return loop.done[0]

        return body

    def rows(self) -> None:
        """Whole rows of scores on chip: fill them, softmax over them, use them."""
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))
        strip, filled = self._filled_strip()
        probabilities, ready = self._rows_softmax(strip, self._change_strip(strip, filled))
        ready = self._scale_strip(probabilities, ready)
        self._finish(self._use_strip(probabilities, [ready]))

    def strips(self) -> None:
        """Online softmax that rescales every few key tiles: each strip of them as whole rows are."""
        self._begin(maximum_slots=1, sum_slots=self._depth("softmax", "store"))
        self._sink_row(self.stages.softmax)

        def step(carried: SSAValue) -> SSAValue:
            strip, filled = self._filled_strip()
            extents = [*self.rows_extent, self.kernel.strip_keys()]
            ready = self._change_strip(strip, filled)
            probabilities, ready, correction = self._online_step(Access(strip), ready, extents=extents)
            ready = self._scale_strip(probabilities.value, ready)
            rescaled = self._rescale(correction, [ready, carried], self.stages.attend)
            return self._use_strip(probabilities.value, [ready, rescaled])

        self._finish(self.kernel.strip_loop(step))

    def _filled_strip(self) -> tuple[SSAValue, SSAValue]:
        """A strip of scores, filled tile by tile; gives (buffer, token of the last)."""
        strip = self._score_buffer("scores", self.kernel.strip_width(), self.types.scores)

        def fill(carried: SSAValue) -> SSAValue:
            return self._source(self._strip_window(strip), 0, 0)[1]

        return strip, self.kernel.key_loop(fill, stream=False, stage=self.stages.logit)

    def _use_strip(self, probabilities: SSAValue, ready: Sequence[SSAValue]) -> SSAValue:
        """Uses a strip of probabilities tile by tile."""

        def use(carried: SSAValue) -> SSAValue:
            return self._sink(self._strip_window(probabilities), ready, carried, None, pipelined=False)

        stage = self.stages.attend if self.problem.has("attend") else self.stages.store
        return self.kernel.key_loop(use, stream=False, stage=stage)

    def streamed(self) -> None:
        """Two passes over the source: the first finds each row's maximum and sum, the second divides."""
        self._begin(maximum_slots=1 + self.stages.attend - self.stages.logit, sum_slots=1 + self.stages.attend)
        self._sink_row(self.stages.logit)

        def measure(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._change(scores, ready, 0, 0)
            _, ready, _ = self._online_step(scores, ready, pipelined=False)
            return ready

        measured = self.kernel.key_loop(measure, stream=False, stage=self.stages.logit)

        def use(carried: SSAValue) -> SSAValue:
            scores, ready = self._source(None, 0, 0)
            ready = self._change(scores, ready, 0, 0)
            exponentials, ready = self._exp(scores, [ready, measured], 0, total=False, final=False)
            probabilities, ready = self._divide_scores(exponentials, ready, 0)
            ready = self._scale_values(probabilities, ready, 0, 0)
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
            if not self.sums_in_attend:
                self.sum = kernel.buffer("sum", sum_slots, self.rows_tile, self.types.scores, zero)
        self.score_work.load_rows()
        if problem.has("attend"):
            shape = [*self.rows_tile, self.width]
            self.output = kernel.buffer("output", self.slots.output_slots, shape, self.types.accumulator, 0.0)

    def _score_buffer(self, label: str, width: int, type: Attribute) -> SSAValue:
        shape = [*self.rows_tile, width]
        return self.kernel.buffer(label, self.slots.score_slots, shape, type, registers=self.held)

    def _row_buffer(self, label: str, slots: int) -> SSAValue:
        return self.kernel.buffer(label, slots, self.rows_tile, self.types.scores)

    def _strip_window(self, strip: SSAValue) -> Access:
        lower, _ = self.kernel.strip_range()
        offset = (var("key") - lower) * self.kernel.tile["key"]
        if self.kernel.trips["key"] == 1:
            offset = const(0)
        return Access(strip, (*[const(0)] * 4, offset))

    def _at_rows(self, buffer: SSAValue) -> Access:
        """The rows at work, in a buffer of all rows of the tile."""
        if self.first_row == const(0):
            return Access(buffer)
        rank = len(cast(BufferType, buffer.type).dims)
        return Access(buffer, (const(0), const(0), const(0), self.first_row, *[const(0)] * (rank - 4)))

    def _keyed(self, name: str, stage: int) -> tuple[Access, SSAValue]:
        return self.shared[name] if name in self.shared else self.kernel.keyed(name, stage)

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
        k, loaded = self._keyed("k", load_stage)
        into = into or Access(self._score_buffer("scores", kernel.tile["key"], self.types.scores))
        use = self.mapping.logit
        op = MatmulOp(
            kernel.timed(
                [*self._tile_extents(), const(self.problem.d_qk)],
                reads=[self._at_rows(self.q[0]), k],
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

    def _change(self, scores: Access, ready: SSAValue, stage: int, load_stage: int) -> SSAValue:
        """What scores go through before the softmax: the steps of the kernel, then the symbolic mask."""
        extents = self._tile_extents()
        return self._mask(
            scores, self.score_work.apply(scores, extents, ready, stage=stage, load_stage=load_stage), stage
        )

    def _sink_row(self, stage: int, after: Sequence[SSAValue] = ()) -> SSAValue | None:
        """The sink's part in the maximum and the sum of each row; the vector unit keeps it before what reads them."""
        if self.problem.sink is None:
            return None
        return self.score_work.sink(self.maximum, self.sum, after, stage)

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

    def _change_strip(self, strip: SSAValue, filled: SSAValue) -> SSAValue:
        """The steps and the mask on the tiles of a strip, with the softmax: the vector unit takes its work in order,
        and work on the strip being filled must not hold up the softmax of the strip before."""
        kernel = self.kernel
        if self.problem.mask is None and not self.problem.score_ops:
            return filled
        first: Expr | None = None
        if kernel.edge.full is not None and not self.problem.score_ops:
            lower, upper = (kernel.at_rows(bound) for bound in kernel.edge.full)
            if lower.is_constant() and lower.constant <= 0:
                first = upper // kernel.tile["key"]

        def change(carried: SSAValue) -> SSAValue:
            return self._change(self._strip_window(strip), filled, 0, 0)

        return kernel.key_loop(change, stream=False, stage=self.stages.softmax, first=first, init=filled)

    def _scale_values(self, probabilities: Access, ready: SSAValue, stage: int, load_stage: int) -> SSAValue:
        """The scales of values on a tile of probabilities, whose row sums are without them."""
        extents = self._tile_extents()
        return self.score_work.scale_values(probabilities, extents, ready, stage=stage, load_stage=load_stage)

    def _scale_strip(self, strip: SSAValue, ready: SSAValue) -> SSAValue:
        """The scales of values on the tiles of a strip of probabilities, with the softmax (see `_change_strip`)."""
        if self.problem.value_scale is None:
            return ready

        def scale(carried: SSAValue) -> SSAValue:
            return self._scale_values(self._strip_window(strip), ready, 0, 0)

        return self.kernel.key_loop(scale, stream=False, stage=self.stages.softmax, init=ready)

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
        self, scores: Access, ready: SSAValue, *, pipelined: bool = True, extents: Sequence[Expr] | None = None
    ) -> tuple[Access, SSAValue, SSAValue]:
        """Running maximum, exponentials, running sum of a tile, or of a strip, whose extents are given.

        Gives probabilities, token and correction.
        """
        kernel = self.kernel
        stage = self.stages.softmax if pipelined else 0
        correction = self._row_buffer("correction", self._depth("softmax", "attend") if pipelined else 1)
        maximum = self._at_rows(self.maximum)
        timed = kernel.timed(extents or self._tile_extents(), [scores, maximum], [maximum, correction], [ready], stage)
        ready = kernel.emit(VectorOp("row_max", timed), "row_max")
        total = not self.sums_in_attend
        summed = correction if total else None
        probabilities, ready = self._exp(
            scores, [ready], stage, total=total, final=pipelined, correction=summed, extents=extents
        )
        return probabilities, ready, correction

    def _held_step(
        self, scores: Access, ready: SSAValue, masked: SSAValue
    ) -> tuple[Access, list[SSAValue], SSAValue, SSAValue]:
        """An online step on a tile in registers; gives probabilities, what attend waits for, and the correction.

        On the array, what a PE does to its own registers follows in order: it waits for others only. Attend is the
        last to use a tile, so it waits for whatever the vector unit does with it.
        """
        kernel, softmax, stages = self.kernel, self.mapping.softmax, self.stages
        extents = self._tile_extents()
        tile = self._row_buffer("tile_maximum", 2 * self.slots.score_slots)
        correction = self._row_buffer("correction", self._depth("softmax", "attend"))
        waits = [masked] if masked is not ready or softmax.maximum == "vector" else []
        timed = kernel.timed(extents, [scores], [tile], waits, stages.softmax)
        found = kernel.emit(VectorOp("tile_max", timed, on_array=self._unit(softmax.maximum)), "tile_max")
        maximum = self._at_rows(self.maximum)
        timed = kernel.timed(self.rows_extent, [tile, maximum], [tile, maximum, correction], [found], stages.softmax)
        merged = kernel.emit(VectorOp("merge_max", timed), "merge_max")
        probabilities = self._probabilities(scores, None)
        timed = kernel.timed(extents, [scores, tile], [probabilities], [merged], stages.attend)
        op = VectorOp("exp", timed, on_array=self._unit(softmax.exponential))
        weighed = [kernel.emit(op, "exp")] if softmax.exponential == "vector" else self._unawaited(op, "exp")
        if not self.sums_in_attend:
            summed = self._held_sum(probabilities, weighed, op, correction)
            weighed = [summed] if softmax.total == "vector" else weighed
        return probabilities, weighed, merged, correction

    def _unawaited(self, op: VectorOp, hint: str) -> list[SSAValue]:
        """Emits an operation that the array follows in order."""
        self.kernel.emit(op, hint)
        return []

    def _held_sum(
        self, probabilities: Access, weighed: list[SSAValue], exp: VectorOp, correction: SSAValue
    ) -> SSAValue:
        """Adds the row sums of a tile in registers to the running sums; gives the token of the tile's own."""
        kernel, total, stage = self.kernel, self.mapping.softmax.total, self.stages.attend
        tile = self._row_buffer("tile_sum", 2 * self.slots.score_slots)
        waits = [exp.token] if total == "vector" else weighed
        timed = kernel.timed(self._tile_extents(), [probabilities], [tile], waits, stage)
        found = kernel.emit(VectorOp("tile_sum", timed, on_array=self._unit(total)), "tile_sum")
        total_so_far = self._at_rows(self.sum)
        timed = kernel.timed(self.rows_extent, [tile, total_so_far, correction], [total_so_far], [found], stage)
        kernel.emit(VectorOp("merge_sum", timed), "merge_sum")
        return found

    def _unit(self, unit: str) -> OnArray | None:
        return self.held if unit == "array" else None

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
        sums = [self._at_rows(self.sum)] if total else []
        reads = [scores, self._at_rows(self.maximum), *sums, *([correction] if correction is not None else [])]
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
        ready = self._sink_row(stage, [ready]) or ready
        early = self.mapping.softmax.divide == "early"
        total = not self.sums_in_attend
        probabilities, ready = self._exp(Access(strip), [ready], stage, total=total, final=not early, extents=extents)
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
        corrected: SSAValue | None = None,
    ) -> SSAValue:
        """Uses the current tile of probabilities: an attend product or a store.

        `corrected` is the token of the correction, where `ready` does not imply it.
        """
        kernel = self.kernel
        if not self.problem.has("attend"):
            starts = [*self.rows_start, kernel.start("key")]
            stage = self.stages.store if pipelined else 0
            return kernel.store(scores, kernel.tensors.result, starts, self._tile_extents(), ready, stage)
        assert self.output is not None
        v, loaded = self._keyed("v", kernel.load_stage("v") if pipelined else 0)
        stage = self.stages.attend if pipelined else 0
        after = [*ready, loaded]
        adds = self.mapping.attend.add == "vector"
        rescaled: SSAValue | None = None
        if correction is not None:
            waits = [*(ready if corrected is None else [corrected]), carried]
            rescaled = self._rescale(correction, waits, stage)
            after += [] if adds else [rescaled]
        into = Access(self._product_buffer()) if adds else self._at_rows(self.output)
        use = self.mapping.attend
        op = MatmulOp(
            kernel.timed(
                [*self.rows_extent, const(self.width), kernel.extent("key")],
                reads=[scores, v],
                writes=[into],
                after=after,
                stage=stage,
            ),
            stationarity=use.stationarity,
            batch_rank=2,
            fold=(use.fold_rows, use.fold_columns),
            accumulate=not adds and not self.problem.sums_at_once(self.mapping.tiles.key),
        )
        done = kernel.emit(op, "attend")
        if not adds:
            return done
        extents, output = [*self.rows_extent, const(self.width)], self._at_rows(self.output)
        timed = kernel.timed(extents, [into, output], [output], [done], stage)
        return kernel.emit(VectorOp("add", timed), "add")

    def _product_buffer(self) -> SSAValue:
        """Where attend products wait to be added: as many as the array may be ahead of the vector unit."""
        slots = self.slots.score_slots * (2 if self.held else 1)
        return self.kernel.buffer("product", slots, [*self.rows_tile, self.width], self.types.accumulator)

    def _rescale(self, correction: SSAValue, waits: Sequence[SSAValue], stage: int) -> SSAValue:
        """Brings earlier outputs to the new maximum; the first tile or strip has none."""
        kernel = self.kernel
        assert self.output is not None
        extents, output = [*self.rows_extent, const(self.width)], self._at_rows(self.output)
        timed = kernel.timed(extents, [output, correction], [output], waits, stage)
        lower, _ = kernel.key_range()
        first = var("strip") if kernel.strip_tiles > 1 else var("key") - lower
        first = first if kernel.trips["key"] > 1 else const(0)
        when = None if self.mapping.softmax.rescales_first else first
        return kernel.emit(VectorOp("rescale", replace(timed, when=when)), "rescale")

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
            reads = [self.output, self.sum] if late and not self.sums_in_attend else [self.output]
            timed = kernel.timed(extents, reads, [output], [done], stage)
            kind = "cast" if not late else "divide_by_last" if self.sums_in_attend else "divide"
            done = kernel.emit(VectorOp(kind, timed), kind)
        starts = [*self.rows_start, const(0)]
        kernel.store(Access(output), kernel.tensors.result, starts, extents, [done], self.stages.store)
