"""What the kernels of a schedule compute, read back from their operations.

`match_kernel` reads a problem off a region of attn operators; this reads the same problem off the buffers,
transfers, products and vector operations that `lower-to-spatial` made of them. A schedule file is
therefore complete in itself: it can be priced, bounded and compared with reference attention without its graph.

    (attention,) = joined(map(kernel_attention, schedule.kernels()))   # where one's scores are the other's input
    attention.problem.stages                     # ("logit", "mask", "softmax", "attend"), also when unfused
    attention.tensors                            # {"q": "q", "k": "k", "v": "v", "result": "a"}

A hand-written kernel that is no contiguous part of attention has no problem: `kernel_attention` gives None. Kernels
of other kinds are read back by their kinds (`flatc.passes.kinds`), as a `Part` each.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from xdsl.ir import SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import (
    BufferType,
    ExtendOp,
    KernelOp,
    LoadOp,
    MatmulOp,
    ReturnOp,
    ScheduleOp,
    SliceOp,
    StoreOp,
    TensorRefType,
    TimedOp,
    VectorOp,
    ViewOp,
    stays_on_chip,
    storage,
    timed_ops,
)
from flatc.passes.cost.bounds import AnyProblem, Bounds, is_written, least_traffic, problem_bounds
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import (
    RUNTIME_MASKS,
    STEP_KINDS,
    Operand,
    ScoreOp,
    named,
    regrouped,
)
from flatc.passes.simulation.simulator import tensor_name

_RANKS = {"k": 4, "v": 4, "pages": 2}
"""How many dims tensors have whose query heads are not split."""

STAGES = ("logit", "mask", "softmax", "attend")


@frozen
class Part:
    """What a kernel computes: its problem, and its tensors off chip by role."""

    problem: AnyProblem
    values: dict[str, SSAValue]

    @property
    def tensors(self) -> dict[str, str]:
        """The names that the user knows the tensors by."""
        return {role: tensor_name(value) for role, value in self.values.items()}


@frozen
class Attention(Part):
    """A contiguous part of attention, with the scale of its logit.

    The roles are q, k, v, scores (read where there is no logit), result, and those of the operands.
    """

    problem: AttentionProblem
    scale: float | None


@frozen
class _Parts:
    """The operations of a kernel that say what it computes."""

    logit: MatmulOp | None
    mask: VectorOp | None
    steps: tuple[VectorOp, ...]
    sink: VectorOp | None
    value_scale: VectorOp | None
    softmax: VectorOp | None
    attend: MatmulOp | None
    loads: dict[SSAValue, LoadOp]
    store: StoreOp

    @property
    def first_of_scores(self) -> TimedOp:
        """The operation that reads scores which the kernel did not make."""
        first = (*self.steps, self.mask, self.softmax, self.value_scale, self.attend)
        return next(op for op in first if op is not None)

    @property
    def hides(self) -> bool:
        """Whether the kernel has the stage mask (see `AttentionProblem`)."""
        hidden = self.mask is not None or any(op.kind.data in RUNTIME_MASKS for op in self.steps)
        return hidden or (self.logit is None and bool(self.steps))

    def source(self, buffer: SSAValue) -> SSAValue | None:
        """The tensor that a buffer is loaded from."""
        load = self.loads.get(buffer)
        return load.tensor if load is not None else None


def kernel_attention(kernel: KernelOp) -> Attention | None:
    """What one kernel computes, or None if it is no part of attention that `lower-to-spatial` would make."""
    parts = _parts(list(timed_ops(kernel)))
    return None if parts is None else _attention(parts)


def _parts(ops: Sequence[TimedOp]) -> _Parts | None:
    """The parts of attention among the operations; of several alike (streamed softmax) the last."""
    products = [op for op in ops if isinstance(op, MatmulOp)]
    logit = next((op for op in reversed(products) if op.transposed is not None), None)
    attend = next((op for op in products if op.transposed is None), None)
    vector = {op.kind.data: op for op in ops if isinstance(op, VectorOp)}
    loads = {op.writes[0]: op for op in ops if isinstance(op, LoadOp)}
    stores = [op for op in ops if isinstance(op, StoreOp)]
    mask, softmax = vector.get("mask"), vector.get("exp")
    scale = (
        _value_scale(ops, softmax if logit is None or softmax is not None else logit) if attend is not None else None
    )
    steps = _steps([op for op in ops if op is not scale])
    if len(stores) != 1 or not (products or softmax or mask or steps):
        return None
    return _Parts(logit, mask, steps, vector.get("sink"), scale, softmax, attend, loads, stores[0])


def _value_scale(ops: Sequence[TimedOp], source: TimedOp | None) -> VectorOp | None:
    """The scales of values: behind the softmax, or all that happens to probabilities from off chip (no `source`)."""
    steps = [op for op in ops if isinstance(op, VectorOp) and op.kind.data in STEP_KINDS]
    if not steps or steps[-1].kind.data != "scale_columns" or isinstance(source, MatmulOp):
        return None
    behind = len(steps) == 1 if source is None else ops.index(steps[-1]) > ops.index(source)
    return steps[-1] if behind else None


def _steps(ops: Sequence[TimedOp]) -> tuple[VectorOp, ...]:
    """The steps that scores take, in order; of several loops that take them (streamed softmax) the last."""
    steps = [op for op in ops if isinstance(op, VectorOp) and op.kind.data in STEP_KINDS]
    return tuple(op for op in steps if op.parent is steps[-1].parent)


def _attention(parts: _Parts) -> Attention | None:
    logit, attend = parts.logit, parts.attend
    values: dict[str, SSAValue | None] = {"result": parts.store.tensor}
    if logit is not None:
        values |= {"q": parts.source(logit.reads[0]), "k": parts.source(logit.reads[1])}
    else:
        values["scores"] = parts.source(parts.first_of_scores.reads[0])
    if attend is not None:
        values["v"] = parts.source(attend.reads[1])
    paged = _paged_load(parts)
    if paged is not None:
        values["pages"] = parts.source(paged.reads[0])
    found = {role: value for role, value in values.items() if value is not None}
    if len(found) != len(values) or any(len(_dims(value)) != _RANKS.get(role, 5) for role, value in found.items()):
        return None
    scale = logit.scale.value.data if logit is not None and logit.scale is not None else None
    operands = _operands(parts)
    if operands is None:
        return None
    steps, sink, tensors = operands
    problem = replace(_problem(parts, found), score_ops=steps, sink=sink)
    if parts.value_scale is not None:
        source = parts.source(parts.value_scale.reads[1])
        if source is None or len(_dims(source)) != 5:
            return None
        problem = replace(problem, value_scale=replace(_operand(source), role="value_scale"))
        tensors = tensors | {"value_scale": source}
    return Attention(problem, found | tensors, scale)


def _operands(parts: _Parts) -> tuple[tuple[ScoreOp, ...], Operand | None, dict[str, SSAValue]] | None:
    """The steps, the sink, and the tensors of their operands by role; None where one is not loaded."""
    steps: list[ScoreOp] = []
    tensors: dict[str, SSAValue] = {}
    for place, op in enumerate(parts.steps):
        kind = op.kind.data
        sources = [parts.source(buffer) for buffer in op.reads[1:]]
        rank = 3 if _is_table(op) else 5
        found = [source for source in sources if source is not None and len(_dims(source)) == rank]
        if len(found) != len(sources):
            return None
        operands = [_operand(source, table=_is_table(op)) for source in found]
        if kind == "same":
            operands = [_documents(operands[0], rows=True), _documents(operands[1], rows=False)]
        function = None if op.function is None else op.function.data
        step = named(ScoreOp(kind, tuple(operands), function), place)
        steps.append(step)
        tensors |= {operand.role: source for operand, source in zip(step.operands, found, strict=True)}
    if parts.sink is None:
        return tuple(steps), None, tensors
    source = parts.source(parts.sink.reads[0])
    if source is None or len(_dims(source)) != 5:
        return None
    return tuple(steps), replace(_operand(source), role="sink"), tensors | {"sink": source}


def _is_table(op: VectorOp) -> bool:
    return op.kind.data == "t5_relative"


def _operand(source: SSAValue, *, table: bool = False) -> Operand:
    """The operand that a view of a tensor is: what has size 1 there is repeated."""
    dims, type = _dims(source), cast(TensorRefType, source.type)
    if table:
        buckets, kv_heads, group = dims
        return Operand("", (False, kv_heads > 1, group > 1, False, False), type.element_bytes, buckets)
    batch, kv_heads, group, rows, keys = (size > 1 for size in dims)
    return Operand("", (batch, kv_heads, group, rows, keys), type.element_bytes)


def _documents(operand: Operand, *, rows: bool) -> Operand:
    """Document numbers of rows or of keys, whatever their size."""
    has = (*operand.has[:3], rows, not rows)
    return replace(operand, has=has, ends_with_keys=rows)


def _problem(parts: _Parts, values: dict[str, SSAValue]) -> AttentionProblem:
    logit, mask, softmax, attend = parts.logit, parts.mask, parts.softmax, parts.attend
    result = cast(TensorRefType, values["result"].type)
    source = values["q"] if logit is not None else values["scores"]
    keyed = values.get("k", values.get("v"))
    scores = _element(logit.writes[0] if logit is not None else parts.first_of_scores.reads[0])
    probabilities = _element((attend or parts.store).reads[0]) if softmax is not None else scores
    accumulator = _element(attend.writes[0]) if attend is not None else result
    batch, kv_heads, group, queries = _dims(source)[:4]
    present = zip(STAGES, (logit is not None, parts.hides, softmax is not None, attend is not None), strict=True)
    return AttentionProblem(
        stages=tuple(name for name, there in present if there),
        batch=batch,
        kv_heads=kv_heads,
        group=group,
        queries=queries,
        keys=_dims(keyed)[2] if keyed is not None else result.dims[4],
        d_qk=_dims(values["q"])[4] if logit is not None else 1,
        d_v=result.dims[4] if attend is not None else 1,
        q_bytes=_bytes(values.get("q")),
        k_bytes=_bytes(values.get("k")),
        v_bytes=_bytes(values.get("v")),
        score_bytes=scores.element_bytes,
        probability_bytes=probabilities.element_bytes,
        accumulator_bytes=accumulator.element_bytes,
        output_bytes=result.element_bytes,
        converts_probabilities=probabilities.element_type != scores.element_type,
        converts_output=attend is not None and accumulator.element_type != result.element_type,
        mask=mask.mask.data if mask is not None and mask.mask is not None else None,
        v_in_k=_values_in_keys(parts, values),
        block=_block(parts),
        pages=_dims(values["pages"])[1] if "pages" in values else 0,
    )


def _paged_load(parts: _Parts) -> LoadOp | None:
    """The load of K or V that takes it from pages."""
    return next((load for load in parts.loads.values() if load.block is not None), None)


def _block(parts: _Parts) -> int | None:
    load = _paged_load(parts)
    return load.block.data if load is not None and load.block is not None else None


def _values_in_keys(parts: _Parts, values: dict[str, SSAValue]) -> int | None:
    """Where V begins among the features of K: read out of K's buffer, or loaded from a window of K's tensor."""
    k, v = values.get("k"), values.get("v")
    if k is None or v is None or parts.logit is None or parts.attend is None:
        return None
    if parts.logit.reads[1] is parts.attend.reads[1]:
        offsets = parts.attend.read_accesses[1].offsets
        return offsets[-1].constant if offsets else 0
    if v is k:
        return 0
    if isinstance(v.owner, SliceOp) and v.owner.source is k and _dims(v)[:3] == _dims(k)[:3]:
        return v.owner.offsets[3]
    return None


def _element(buffer: SSAValue) -> BufferType:
    return cast(BufferType, buffer.type)


def _dims(tensor: SSAValue) -> tuple[int, ...]:
    return cast(TensorRefType, tensor.type).dims


def _bytes(tensor: SSAValue | None) -> int:
    return cast(TensorRefType, tensor.type).element_bytes if tensor is not None else 0


def placed(part: Part) -> Part:
    """A part of a kernel with what of its tensors stays on chip between kernels."""
    kept = frozenset(role for role, value in part.values.items() if stays_on_chip(value))
    return replace(part, problem=replace(cast(Any, part.problem), on_chip=kept)) if kept else part


# --- Kernels joined to attentions ---------------------------------------------------------------------------


def joined(parts: Iterable[Part | None], returned: Container[SSAValue] = ()) -> list[Part] | None:
    """The parts of a schedule, those of one attention as one; None if a kernel is unknown.

    Scores whose storage is `returned` do not stay inside of an attention, so what makes and what reads them are two.
    """
    found: list[Part] = []
    for part in parts:
        if part is None:
            return None
        producer = _producer(part, found, returned) if isinstance(part, Attention) else None
        if producer is None:
            found.append(part)
        else:
            found[found.index(producer)] = _joined(producer, cast(Attention, part))
    return found


def _producer(part: Attention, found: Iterable[Part], returned: Container[SSAValue]) -> Attention | None:
    """The attention whose scores or probabilities are the input of `part` and need not leave the chip."""
    scores = part.values.get("scores")
    if scores is None or storage(scores) in returned:
        return None
    for attention in found:
        if not isinstance(attention, Attention):
            continue
        follows = STAGES.index(attention.problem.stages[-1]) < STAGES.index(part.problem.stages[0])
        if follows and storage(attention.values["result"]) is storage(scores):
            return attention
    return None


def _joined(producer: Attention, consumer: Attention) -> Attention:
    """Both parts as one. Where heads are grouped differently, the part that has keys knows how."""
    first, second = producer.problem, consumer.problem
    heads = second if not first.has("logit") and second.has("attend") else first
    softmax = first if first.has("softmax") else second
    steps = (*first.score_ops, *second.score_ops)
    sink = first.sink or second.sink
    problem = replace(
        second,
        stages=first.stages + second.stages,
        kv_heads=heads.kv_heads,
        group=heads.group,
        d_qk=first.d_qk,
        q_bytes=first.q_bytes,
        k_bytes=first.k_bytes,
        score_bytes=first.score_bytes,
        probability_bytes=softmax.probability_bytes,
        converts_probabilities=softmax.converts_probabilities,
        mask=first.mask & second.mask if first.mask and second.mask else first.mask or second.mask,
        score_ops=tuple(regrouped(step, heads.kv_heads, heads.group) for step in _renamed(steps)),
        on_chip=frozenset(),
        sink=None if sink is None else regrouped(ScoreOp("sink", (sink,)), heads.kv_heads, heads.group).operands[0],
        value_scale=second.value_scale,
    )
    behind = _new_roles(second.score_ops, len(first.score_ops))
    values = {behind.get(role, role): value for role, value in consumer.values.items() if role != "scores"}
    return Attention(problem, producer.values | values, producer.scale)


def _renamed(steps: Sequence[ScoreOp]) -> list[ScoreOp]:
    return [named(step, place) for place, step in enumerate(steps)]


def _new_roles(steps: Sequence[ScoreOp], places: int) -> dict[str, str]:
    """The roles that operands have when so many steps stand before theirs, by the role they had."""
    pairs = ((old, named(old, place + places)) for place, old in enumerate(steps))
    return {a.role: b.role for old, new in pairs for a, b in zip(old.operands, new.operands, strict=True)}


def outside_tensors(schedule: ScheduleOp, part: Part) -> dict[str, str | None]:
    """The tensors of a part by role, None for what need not be moved: neither read from inputs nor an output."""
    given = {storage(value) for value in schedule.body.block.args}
    written = given | returned_storage(schedule)
    return {
        role: tensor_name(value) if storage(value) in (written if is_written(role) else given) else None
        for role, value in part.values.items()
    }


def returned_storage(schedule: ScheduleOp) -> set[SSAValue]:
    """The tensors off chip that hold what a schedule returns."""
    last = schedule.body.block.last_op
    return {storage(value) for value in last.values} if isinstance(last, ReturnOp) else set()


def _appended_bytes(part: Part) -> dict[str, int]:
    """Bytes by role that the schedule itself appends to a cache, and that need not be loaded to be used."""
    found: dict[str, int] = {}
    for role, tensor in part.values.items():
        while isinstance(tensor.owner, ViewOp | SliceOp | ExtendOp):
            if isinstance(tensor.owner, ExtendOp) and not is_written(role):
                found[role] = found.get(role, 0) + tensor.owner.added_bytes
            tensor = tensor.owner.source
    return found


def least_by_tensor(schedule: ScheduleOp, found: Sequence[Part]) -> tuple[dict[str, int], dict[str, int]]:
    """Least bytes (read, written) of each tensor that is outside of the chip at the start or at the end."""
    return least_traffic(*_problems(schedule, found))


def compulsory_by_tensor(schedule: ScheduleOp, found: Sequence[Part]) -> dict[str, int]:
    """Least bytes of each tensor that is outside of the chip at the start or at the end."""
    read, written = least_by_tensor(schedule, found)
    return {name: read.get(name, 0) + written.get(name, 0) for name in read | written}


def schedule_bounds(schedule: ScheduleOp, found: Sequence[Part], accelerator: Accelerator) -> Bounds:
    """The bounds of what a schedule computes."""
    problems, tensors, inside = _problems(schedule, found)
    return problem_bounds(problems, accelerator, tensors, inside)


def _problems(
    schedule: ScheduleOp, found: Sequence[Part]
) -> tuple[list[AnyProblem], list[dict[str, str | None]], list[dict[str, int]]]:
    names = [outside_tensors(schedule, part) for part in found]
    return [part.problem for part in found], names, [_appended_bytes(part) for part in found]
