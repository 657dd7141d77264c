"""What a fused kernel has to do, read off its region: the input of tiling, lowering and bounds.

`match_kernel` recognises a region of attn operators as a contiguous part of attention and says which part:

    logit [+ scores] + softmax + attend    the whole attention; scores are capped, biased, masked between
    logit | softmax | attend | ...         any contiguous part; missing ends are tensors off chip

`AttentionProblem` is the part of it that needs no IR: sizes, storage sizes, the symbolic mask, the steps that scores
take (`score_ops`), which stages are there. The maths of mapping (closed form, search, bounds) sees nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects import attn
from flatc.dialects.attn import AttendOp, LogitOp, SoftmaxOp
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask, shows_all
from flatc.passes.kernels.keyed_storage import pages_of, values_in_keys
from flatc.passes.kernels.score_ops import (
    MatchedScores,
    Operand,
    ScoreOp,
    Sizes,
    column_operand,
    match_scores,
    sink_operand,
)


@frozen
class AttentionProblem:
    """Sizes of one kernel. `group` counts query heads per kv head; bytes are per element.

    `stages` lists what the kernel contains, of logit, mask, softmax, attend; mask where scores may be hidden, or are
    changed in a kernel without logit. `score_ops` are the steps that scores take before `mask` hides some of them, and
    `sink` is the operand of the softmax's sink, `value_scale` that of numbers which multiply the probabilities of each
    key on their way to attend. Where logit is missing the scores come from off chip, where attend is
    missing the result goes there as a [batch, heads, queries, keys] tensor.
    `converts_probabilities` and `converts_output` say that probabilities are stored in another type than scores, and
    outputs in another than they are accumulated in: then each has a buffer of its own.
    """

    stages: tuple[str, ...]
    batch: int
    kv_heads: int
    group: int
    queries: int
    keys: int
    d_qk: int
    d_v: int
    q_bytes: int
    k_bytes: int
    v_bytes: int
    score_bytes: int
    probability_bytes: int
    accumulator_bytes: int
    output_bytes: int
    converts_probabilities: bool = False
    converts_output: bool = False
    mask: Mask | None = None
    score_ops: tuple[ScoreOp, ...] = ()
    sink: Operand | None = None
    value_scale: Operand | None = None
    v_in_k: int | None = None
    """Where V begins among the features of K, if V is some of them: in latent attention, or where both are one."""
    block: int | None = None
    """Rows of a block, where K and V lie in the `pages` of a pool that a table names."""
    pages: int = 0
    on_chip: frozenset[str] = frozenset()
    """Roles of its tensors that stay on chip between kernels."""

    def has(self, stage: str) -> bool:
        """Whether the kernel contains `stage`."""
        return stage in self.stages

    @property
    def skips_hidden(self) -> bool:
        """Whether tiles that the mask hides entirely need no work: their probabilities are zero and stay inside."""
        return self.mask is not None and self.has("softmax") and self.has("attend")

    def sums_at_once(self, key_tile: Any) -> Any:
        """Whether one attend product gives all of an output, so that it has nothing to add to.

        A mask may leave rows without a key: these are zeros, which a product adds to. Takes an integer or an array.
        """
        return (key_tile >= self.keys) & (self.mask is None)

    @property
    def heads(self) -> int:
        """Batch x query heads."""
        return self.batch * self.kv_heads * self.group

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """What is read beside q, k, v and scores."""
        steps = tuple(operand for step in self.score_ops for operand in step.operands)
        return (*steps, *(operand for operand in (self.sink, self.value_scale) if operand is not None))

    def operand_shape(self, operand: Operand) -> tuple[int, ...]:
        """The shape of an operand off chip, heads split into (kv head, group)."""
        return Sizes(self.batch, self.kv_heads, self.group, self.queries, self.keys).of(operand)


@frozen
class Kernel:
    """A matched kernel: its problem, its operators, and the values it reads and gives."""

    problem: AttentionProblem
    logit: LogitOp | None
    softmax: SoftmaxOp | None
    attend: AttendOp | None
    q: SSAValue | None
    k: SSAValue | None
    v: SSAValue | None
    scores: SSAValue | None
    operands: dict[str, SSAValue]
    result: SSAValue
    table: SSAValue | None = None


def _refuse(op: Operation, reason: str, help: str | None = None) -> FlatcError:
    return FlatcError(f"{op.name} cannot be compiled yet: {reason}", position=position_of(op), help=help)


ORDER: tuple[type[Operation], ...] = (LogitOp, attn.ScoreOp, SoftmaxOp, AttendOp)
"""How the operators of a kernel follow one another; of `ScoreOp` there may be any number."""


def match_kernel(fused: FusedOp) -> Kernel:
    """Recognises the region of `fused`. Raises `FlatcError` naming the operator that does not fit."""
    chain: list[Operation] = []
    place = -1
    for op in fused.body_ops():
        found = next((index for index, kind in enumerate(ORDER) if isinstance(op, kind)), None)
        if found is None:
            raise _refuse(op, "schedules cover logit, what scores go through, softmax and attend")
        if isinstance(op, attn.ScaleColumnsOp) and chain and isinstance(chain[-1], SoftmaxOp):
            chain.append(op)  # scales of values, and not of keys
            continue
        if found < place or (found == place and ORDER[found] is not attn.ScoreOp):
            raise _refuse(op, f"it stands out of order in kernel '{fused.kernel.data}'")
        place = found
        chain.append(op)
    kernel = _assemble(fused, chain)
    pages = pages_of(fused, kernel.k, kernel.v)
    problem = replace(
        kernel.problem,
        v_in_k=values_in_keys(fused, kernel.k, kernel.v),
        block=pages.block if pages is not None else None,
        pages=pages.pages if pages is not None else 0,
    )
    return replace(kernel, problem=problem, table=pages.table if pages is not None else None)


def _assemble(fused: FusedOp, chain: Sequence[Operation]) -> Kernel:
    if not chain:
        raise FlatcError(f"kernel '{fused.kernel.data}' is empty", position=position_of(fused))
    for producer, consumer in pairwise(chain):
        if consumer.operands[0] is not producer.results[0]:
            raise _refuse(consumer, f"it does not continue {producer.name} in kernel '{fused.kernel.data}'")
    if list(fused.yield_op.values) != [chain[-1].results[0]]:
        raise _refuse(chain[-1], f"kernel '{fused.kernel.data}' must give its result and nothing else")
    logit = next((op for op in chain if isinstance(op, LogitOp)), None)
    softmax = next((op for op in chain if isinstance(op, SoftmaxOp)), None)
    attend = next((op for op in chain if isinstance(op, AttendOp)), None)
    scores = logit.scores if logit is not None else chain[0].operands[0]
    heads = _shape(scores)[1]
    keyed = logit.k if logit else attend.v if attend else None
    keyed = keyed or next((op.scale for op in chain if isinstance(op, attn.ScaleColumnsOp)), None)
    kv_heads = _shape(keyed)[1] if keyed is not None else heads
    scale = _value_scale(chain)
    for before, op in pairwise(chain):
        if isinstance(before, SoftmaxOp) and isinstance(op, attn.ScaleColumnsOp) and op is not scale:
            raise _refuse(op, "scales of values belong between the softmax and attend, and go nowhere else")
    found = match_scores(
        [op for op in chain if isinstance(op, attn.ScoreOp) and op is not scale], kv_heads, heads // kv_heads
    )
    others = found.steps or any(not isinstance(op, attn.ScoreOp) for op in chain)
    if found.mask is not None and others and shows_all(found.mask, *_shape(scores)[2:]):
        found.mask = None  # as in decode, where the only row sees every key
    problem = _problem(logit, softmax, attend, scores, kv_heads, found)
    operands = dict(found.values)
    if softmax is not None and softmax.sink is not None:
        operands["sink"] = softmax.sink
    if scale is not None:
        problem = replace(problem, value_scale=replace(column_operand(scale, kv_heads), role="value_scale"))
        operands["value_scale"] = scale.scale
    return Kernel(
        problem=problem,
        logit=logit,
        softmax=softmax,
        attend=attend,
        q=logit.q if logit else None,
        k=logit.k if logit else None,
        v=attend.v if attend else None,
        scores=None if logit else scores,
        operands=operands,
        result=chain[-1].results[0],
    )


def _value_scale(chain: Sequence[Operation]) -> attn.ScaleColumnsOp | None:
    """The scales of values: between softmax and attend, or all that happens to probabilities from off chip."""
    for before, op, after in zip((None, *chain), chain, chain[1:], strict=False):
        if isinstance(op, attn.ScaleColumnsOp) and isinstance(after, AttendOp):
            return op if before is None or isinstance(before, SoftmaxOp) else None
    return None


def _problem(
    logit: LogitOp | None,
    softmax: SoftmaxOp | None,
    attend: AttendOp | None,
    scores: SSAValue,
    kv_heads: int,
    found: MatchedScores,
) -> AttentionProblem:
    batch, heads, queries, keys = _shape(scores)
    score_bytes = element_bytes(scores)
    probability_bytes = element_bytes(softmax.probabilities) if softmax else score_bytes
    output_bytes = element_bytes(attend.output) if attend else probability_bytes
    masks = found.hides or (logit is None and bool(found.steps))
    present = (("logit", logit is not None), ("mask", masks), ("softmax", softmax is not None))
    sink = softmax.sink if softmax is not None else None
    return AttentionProblem(
        stages=tuple(name for name, there in (*present, ("attend", attend is not None)) if there),
        batch=batch,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        queries=queries,
        keys=keys,
        d_qk=_shape(logit.q)[3] if logit else 1,
        d_v=_shape(attend.v)[3] if attend else 1,
        q_bytes=element_bytes(logit.q) if logit else 0,
        k_bytes=element_bytes(logit.k) if logit else 0,
        v_bytes=element_bytes(attend.v) if attend else 0,
        score_bytes=score_bytes,
        probability_bytes=probability_bytes,
        accumulator_bytes=type_bytes(attend.accumulator) if attend else output_bytes,
        output_bytes=output_bytes,
        converts_probabilities=softmax is not None and _element(softmax.probabilities) != _element(scores),
        converts_output=attend is not None and attend.accumulator != _element(attend.output),
        mask=found.mask,
        score_ops=tuple(found.steps),
        sink=None if sink is None else sink_operand(sink, kv_heads, heads // kv_heads),
    )


def _element(value: SSAValue) -> Attribute:
    return cast("TensorType[Attribute]", value.type).element_type


def _shape(value: SSAValue) -> tuple[int, ...]:
    return cast("TensorType[Attribute]", value.type).get_shape()


def element_bytes(value: SSAValue) -> int:
    """Bytes of one element of a tensor."""
    return type_bytes(_element(value))


def type_bytes(element: Attribute) -> int:
    """Bytes of one element of a type; types narrower than a byte take a byte."""
    return max(1, int(getattr(element, "bitwidth", 8)) // 8)
