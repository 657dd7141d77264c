"""The work on scores between their source and the softmax: operands that are loaded for it, and its vector operations.

    for query:
      for key:
        load K, matmul Q, K -> scores
        load bias                                  # level `tile`: each tile of scores has its own
        softcap scores                             # the steps, in the order of the graph
        bias    scores, bias
        mask    scores                             # at the mask's edge only
        ...softmax

`score_ops` says what the steps are and on which level an operand stays on chip. A `ScoreWork` belongs to one nest: it
remembers what was loaded outside of the key loops.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from flatc.dialects.quasi_affine import Expr, const
from flatc.dialects.score_functions import ScoreFunctionAttr
from flatc.dialects.spatial import Access, TensorRefType, VectorOp
from flatc.passes.kernels.nest_builder import NestBuilder
from flatc.passes.kernels.score_ops import Level, Operand, ScoreOp, operand_level, operand_slots

_Dim = tuple[Expr, Expr, int]
"""Where a load starts along one dimension, how much it loads, and how much the buffer holds."""


class ScoreWork:
    """Loads operands and emits the steps, at the current place of a nest."""

    def __init__(self, kernel: NestBuilder):
        self.kernel, self.problem, self.mapping = kernel, kernel.problem, kernel.mapping
        self._on_chip: dict[Operand, tuple[SSAValue, SSAValue]] = {}

    # --- Loads --------------------------------------------------------------------------------------------

    def load_heads(self) -> None:
        """Operands of a whole tile of kv heads; here is where K stays at kv_head."""
        # A kernel's body is no loop: what stands there has no stage.
        self._load_level("heads", self.load_stage(self._first_use()) if self.kernel.loops else 0)

    def load_rows(self) -> None:
        """Operands of the current query rows."""
        self._load_level("query", self.load_stage(self._first_use()))

    def load_stage(self, use: int) -> int:
        """Stage of the load of what stage `use` works on: as far ahead as K is loaded."""
        return self.mapping.stages.load + use - self.mapping.stages.logit

    def _first_use(self) -> int:
        stages = self.mapping.stages
        return stages.logit if self.mapping.softmax.algorithm == "streamed" else stages.softmax

    def _load_level(self, level: Level, stage: int) -> None:
        for operand in self.problem.operands:
            if self._level(operand) == level:
                self._on_chip[operand] = self._load(operand, level, stage)

    def _level(self, operand: Operand) -> Level:
        return operand_level(operand, self.mapping.keep.k_level)

    def _load(self, operand: Operand, level: Level, stage: int) -> tuple[SSAValue, SSAValue]:
        """Loads what `level` needs of an operand into a new buffer; gives (buffer, token)."""
        kernel = self.kernel
        tensor = kernel.tensors.operands[operand.role]
        assert isinstance(tensor.type, TensorRefType)
        starts, extents, sizes = zip(*self._dims(operand, level), strict=True)
        slots = operand_slots(self.mapping.keep, self.mapping.stages, self.mapping.softmax, level)
        buffer = kernel.buffer(operand.role, slots, sizes, tensor.type.element_type)
        return buffer, kernel.load(tensor, starts, extents, Access(buffer), stage, operand.role)

    def _dims(self, operand: Operand, level: Level) -> list[_Dim]:
        """What is loaded along each dimension of the operand off chip."""
        kernel, problem = self.kernel, self.problem
        names = ("batch", "kv_head", "group", "query", "key")
        whole = ("group", "key") if level == "heads" else ()
        dims: list[_Dim] = []
        for name, has in zip(names, operand.has, strict=True):
            if not has:
                dims.append((const(0), const(1), 1))
            elif name in whole:
                dims.append((const(0), const(kernel.size[name]), kernel.size[name]))
            else:
                start = kernel.start(name)
                if name == "query" and operand.ends_with_keys:
                    start = start + (problem.keys - problem.queries)
                dims.append((start, kernel.extent(name), kernel.tile[name]))
        if operand.buckets:
            return [(const(0), const(operand.buckets), operand.buckets), *dims[1:3]]
        return dims

    def _operand(self, operand: Operand, stage: int) -> tuple[Access, SSAValue]:
        """The part of an operand that belongs to the current tile, and the token of its load."""
        if operand not in self._on_chip:
            buffer, token = self._load(operand, self._level(operand), stage)
            return Access(buffer), token
        buffer, token = self._on_chip[operand]
        offsets = [const(0)] * 5
        if self._level(operand) == "heads":
            for place, name in ((2, "group"), (4, "key")):
                if operand.has[place]:
                    offsets[place] = self.kernel.start(name)
        if operand.buckets:
            offsets = offsets[:3]
        return Access(buffer, tuple(offsets) if any(not o.is_constant() for o in offsets) else ()), token

    # --- Steps --------------------------------------------------------------------------------------------

    def apply(
        self, scores: Access, extents: Sequence[Expr], ready: SSAValue, *, stage: int, load_stage: int
    ) -> SSAValue:
        """All steps on the current tile of scores; gives the token of the last."""
        for step in self.problem.score_ops:
            ready = self._step(step, scores, extents, ready, stage, load_stage)
        return ready

    def _step(
        self, step: ScoreOp, scores: Access, extents: Sequence[Expr], ready: SSAValue, stage: int, load_stage: int
    ) -> SSAValue:
        kernel = self.kernel
        operands = [self._operand(operand, load_stage) for operand in step.operands]
        reads, after = [scores, *(access for access, _ in operands)], [ready, *(token for _, token in operands)]
        place = {"alibi": ("kv_head", "group", "query", "key"), "t5_relative": ("query", "key")}.get(step.kind)
        op = VectorOp(
            step.kind,
            kernel.timed(extents, reads, [scores], after, stage),
            function=None if step.function is None else ScoreFunctionAttr(step.function),
            position=None if place is None else [kernel.start(name) for name in place],
        )
        return kernel.emit(op, step.kind)

    def scale_values(
        self, probabilities: Access, extents: Sequence[Expr], ready: SSAValue, *, stage: int, load_stage: int
    ) -> SSAValue:
        """Scales of values on the current tile of probabilities, whose sums are known; gives the token to wait for."""
        operand = self.problem.value_scale
        if operand is None:
            return ready
        step = ScoreOp("scale_columns", (operand,))
        return self._step(step, probabilities, extents, ready, stage, load_stage)

    def sink(self, maximum: SSAValue, total: SSAValue, after: Sequence[SSAValue], stage: int) -> SSAValue | None:
        """Lets the sink join the maximum and the sum of each row; None without a sink."""
        operand = self.problem.sink
        if operand is None:
            return None
        kernel = self.kernel
        access, loaded = self._operand(operand, stage)
        extents = [*kernel.heads_extent(), kernel.extent("query"), const(1)]
        timed = kernel.timed(extents, [access, maximum], [maximum, total], [*after, loaded], stage)
        return kernel.emit(VectorOp("sink", timed), "sink")
