"""What a fused kernel has to do, read off its region: the input of tiling, lowering and bounds.

`match_kernel` recognises a region of attn operators as a contiguous part of attention and says which part:

    logit [+ mask] + softmax + attend      the whole attention
    logit | softmax | attend | ...         any contiguous part; missing ends are tensors off chip

`AttentionProblem` is the part of it that needs no IR: sizes, storage sizes, the symbolic mask, which stages
are there. The maths of mapping (closed form, search, bounds) sees nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.attn import AttendOp, FeaturesOp, LogitOp, MaskOp, SoftmaxOp
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.masks import Mask, shows_all


@dataclass(frozen=True)
class AttentionProblem:
    """Sizes of one kernel. `group` counts query heads per kv head; bytes are per element.

    `stages` lists what the kernel contains, of logit, mask, softmax, attend. Where logit is missing the scores
    come from off chip, where attend is missing the result goes there as a [batch, heads, queries, keys] tensor.
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
    v_in_k: int | None = None
    """Where V begins among the features of K, if V is some of them: in latent attention, or where both are one."""

    def has(self, stage: str) -> bool:
        """Whether the kernel contains `stage`."""
        return stage in self.stages

    @property
    def skips_hidden(self) -> bool:
        """Whether tiles that the mask hides entirely need no work: their probabilities are zero and stay inside."""
        return self.mask is not None and self.has("softmax") and self.has("attend")

    @property
    def heads(self) -> int:
        """Batch x query heads."""
        return self.batch * self.kv_heads * self.group


@dataclass(frozen=True)
class Kernel:
    """A matched kernel: its problem, its operators, and the values it reads and gives."""

    problem: AttentionProblem
    logit: LogitOp | None
    mask: MaskOp | None
    softmax: SoftmaxOp | None
    attend: AttendOp | None
    q: SSAValue | None
    k: SSAValue | None
    v: SSAValue | None
    scores: SSAValue | None
    result: SSAValue


def _refuse(op: Operation, reason: str, help: str | None = None) -> FlatcError:
    return FlatcError(f"{op.name} cannot be compiled yet: {reason}", position=position_of(op), help=help)


def match_kernel(fused: FusedOp) -> Kernel:
    """Recognises the region of `fused`. Raises `FlatcError` naming the operator that does not fit."""
    found: dict[type[Operation], Operation] = {}
    order: list[type[Operation]] = [LogitOp, MaskOp, SoftmaxOp, AttendOp]
    place = -1
    for op in fused.body_ops():
        if type(op) not in order:
            raise _refuse(op, "schedules cover logit, mask, softmax and attend")
        if order.index(type(op)) <= place:
            raise _refuse(op, f"it stands out of order in kernel '{fused.kernel.data}'")
        place = order.index(type(op))
        found[type(op)] = op
    kernel = _assemble(
        fused,
        cast("LogitOp | None", found.get(LogitOp)),
        cast("MaskOp | None", found.get(MaskOp)),
        cast("SoftmaxOp | None", found.get(SoftmaxOp)),
        cast("AttendOp | None", found.get(AttendOp)),
    )
    _check_supported(kernel)
    return replace(kernel, problem=replace(kernel.problem, v_in_k=_values_in_keys(fused, kernel)))


def _values_in_keys(fused: FusedOp, kernel: Kernel) -> int | None:
    """The first feature of K that is one of V, if V is made of features of K."""
    if kernel.k is None or kernel.v is None:
        return None
    outside: dict[SSAValue, SSAValue] = dict(zip(fused.body.block.args, fused.inputs, strict=True))
    k, v = outside.get(kernel.k), outside.get(kernel.v)
    if k is not None and v is k:
        return 0
    if v is not None and isinstance(v.owner, FeaturesOp) and v.owner.x is k:
        return v.owner.start.value.data
    return None


def _check_supported(kernel: Kernel) -> None:
    if kernel.mask is not None and kernel.mask.operands[1:]:
        raise _refuse(kernel.mask, "masks given by tensors are not scheduled", "use a symbolic mask such as causal")
    if kernel.softmax is not None and kernel.softmax.sink is not None:
        raise _refuse(kernel.softmax, "a sink is not scheduled")


def _assemble(
    fused: FusedOp, logit: LogitOp | None, mask: MaskOp | None, softmax: SoftmaxOp | None, attend: AttendOp | None
) -> Kernel:
    chain = [op for op in (logit, mask, softmax, attend) if op is not None]
    if not chain:
        raise FlatcError(f"kernel '{fused.kernel.data}' is empty", position=position_of(fused))
    scores_in = None if logit else chain[0].operands[0]
    for producer, consumer in pairwise(chain):
        if consumer.operands[0] is not producer.results[0]:
            raise _refuse(consumer, f"it does not continue {producer.name} in kernel '{fused.kernel.data}'")
    if list(fused.yield_op.values) != [chain[-1].results[0]]:
        raise _refuse(chain[-1], f"kernel '{fused.kernel.data}' must give its result and nothing else")
    return Kernel(
        problem=_problem(logit, mask, softmax, attend, scores_in or cast(LogitOp, logit).scores),
        logit=logit,
        mask=mask,
        softmax=softmax,
        attend=attend,
        q=logit.q if logit else None,
        k=logit.k if logit else None,
        v=attend.v if attend else None,
        scores=scores_in,
        result=chain[-1].results[0],
    )


def _problem(
    logit: LogitOp | None, mask: MaskOp | None, softmax: SoftmaxOp | None, attend: AttendOp | None, scores: SSAValue
) -> AttentionProblem:
    batch, heads, queries, keys = _shape(scores)
    keyed = logit.k if logit else attend.v if attend else None
    kv_heads = _shape(keyed)[1] if keyed is not None else heads
    score_bytes = element_bytes(scores)
    probability_bytes = element_bytes(softmax.probabilities) if softmax else score_bytes
    output_bytes = element_bytes(attend.output) if attend else probability_bytes
    symbolic = mask.symbolic.data if mask is not None and mask.symbolic is not None else None
    others = logit is not None or softmax is not None or attend is not None
    if symbolic is not None and others and shows_all(symbolic, queries, keys):
        mask, symbolic = None, None  # as in decode, where the only row sees every key
    present = (("logit", logit), ("mask", mask), ("softmax", softmax), ("attend", attend))
    return AttentionProblem(
        stages=tuple(name for name, op in present if op is not None),
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
        mask=symbolic,
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
