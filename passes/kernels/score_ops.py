"""What happens to scores between the logit and the softmax, and the tensors that it reads.

A `ScoreOp` is one step: scales of keys, softcap, bias, ALiBi, T5's relative bias, or a mask that is known at run time
only. A symbolic mask is no step: it decides which tiles are visited, and hides scores after all steps.

    attention(q, k, v, softcap = 50, bias = b, mask = causal & valid(pad))

    (ScoreOp("softcap", function = Softcap(50.0)),
     ScoreOp("bias", (Operand("bias1", ...),)),
     ScoreOp("keep", (Operand("keep2", ...),)))           and the mask causal(offset = 0)

Operands are loaded as they are stored: a bias [H, S, T] has no batch, so a tile of any batch loads the same bytes.
Where an operand stays on chip follows from the dimensions that it has:

    heads     no rows (T5's table, sinks), and no keys or K kept at kv_head: loaded once for each tile of kv heads
    query     rows, no keys: loaded with Q
    key       keys, no rows (padding), K kept at key: loaded with each tile of K
    tile      rows and keys: loaded for every tile of scores that is visited
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from xdsl.ir import SSAValue

from flatc.dialects import attn
from flatc.dialects.attn import element_type_of, shape_of
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Keep, Softmax, Stages
from flatc.dialects.masks import Mask
from flatc.dialects.score_functions import Alibi, ScoreFunction, Softcap, T5Relative
from flatc.dialects.spatial_types import TensorRefType

Level = Literal["heads", "query", "key", "tile"]


@frozen
class Operand:
    """A tensor that a step reads. `role` names it within a kernel.

    `has` says which of batch, kv head, group, query and key it has, in this order; it is repeated along the others.
    `buckets` is the length of its first dimension where it is T5's table; `ends_with_keys` says that its rows are the
    last of the keys, as document numbers are.
    """

    role: str
    has: tuple[bool, bool, bool, bool, bool]
    element_bytes: int
    buckets: int = 0
    ends_with_keys: bool = False

    @property
    def level(self) -> Level:
        """Which loop the operand stays on chip across, where K is kept at key."""
        *_, rows, keys = self.has
        if rows:
            return "tile" if keys else "query"
        return "key" if keys else "heads"


@frozen
class ScoreOp:
    """One step. `kind` is the kind of its vector operation, `function` what that is told beside its operands."""

    kind: str
    operands: tuple[Operand, ...] = ()
    function: ScoreFunction | None = None


STEP_KINDS = ("scale_columns", "softcap", "bias", "alibi", "t5_relative", "keep", "same")
"""The kinds of all steps."""
RUNTIME_MASKS = ("keep", "same")
"""Kinds of steps that hide scores, so that their rows may be empty."""


def regrouped(step: ScoreOp, kv_heads: int, group: int) -> ScoreOp:
    """The same step where the query heads are split otherwise into kv heads and groups."""

    def split(operand: Operand) -> Operand:
        batch, *heads, rows, keys = operand.has
        # Scales of keys belong to kv heads, whose query heads share them.
        apart = any(heads) and group > 1 and step.kind != "scale_columns"
        return replace(operand, has=(batch, any(heads) and kv_heads > 1, apart, rows, keys))

    function = step.function
    if isinstance(function, Alibi):
        function = replace(function, group=group)
    return replace(step, operands=tuple(map(split, step.operands)), function=function)


def named(step: ScoreOp, place: int) -> ScoreOp:
    """The step with operands named by its place among the steps."""
    suffixes = ("_rows", "_keys") if step.kind == "same" else ("",)
    roles = (f"{step.kind}{place}{suffix}" for suffix in suffixes)
    return replace(step, operands=tuple(replace(o, role=r) for o, r in zip(step.operands, roles, strict=False)))


# --- Sizes -------------------------------------------------------------------------------------------------


@frozen
class Sizes:
    """The sizes of a kernel that operands share with it."""

    batch: int
    kv_heads: int
    group: int
    queries: int
    keys: int

    def of(self, operand: Operand) -> tuple[int, ...]:
        """The shape of an operand off chip, heads split into (kv head, group), repeated dimensions of size 1."""
        queries = self.keys if operand.ends_with_keys else self.queries
        sizes = (self.batch, self.kv_heads, self.group, queries, self.keys)
        shape = tuple(size if has else 1 for size, has in zip(sizes, operand.has, strict=True))
        return (operand.buckets, *shape[1:3]) if operand.buckets else shape


def operand_slots(keep: Keep, stages: Stages, softmax: Softmax, level: Level) -> int:
    """Slots of an operand's buffer: it is loaded as far ahead as K, and as many tiles of it wait.

    Streamed softmax goes twice over the scores, and what is loaded outside of the key loops stays in between.
    """
    slots = max(keep.k_slots, stages.logit - stages.load + 1)
    between = softmax.algorithm == "streamed" and level in ("heads", "query")
    return slots + (stages.attend - stages.logit) * between


def operand_level(operand: Operand, k_level: str) -> Level:
    """The loop that an operand stays on chip across: what has keys only stays where K does."""
    return "heads" if operand.level == "key" and k_level == "kv_head" else operand.level


# --- Matching ------------------------------------------------------------------------------------------------


@dataclass
class MatchedScores:
    """What the operators between logit and softmax do, and by role the value that each operand is."""

    mask: Mask | None = None
    steps: list[ScoreOp] = field(default_factory=list[ScoreOp])
    values: dict[str, SSAValue] = field(default_factory=dict[str, SSAValue])

    @property
    def hides(self) -> bool:
        """Whether some scores may be hidden."""
        return self.mask is not None or any(step.kind in RUNTIME_MASKS for step in self.steps)

    def add(self, step: ScoreOp, *values: SSAValue) -> None:
        """Appends a step, whose operands are named by its place."""
        step = named(step, len(self.steps))
        self.steps.append(step)
        self.values |= {operand.role: value for operand, value in zip(step.operands, values, strict=True)}


def match_scores(ops: Sequence[attn.ScoreOp], kv_heads: int, group: int) -> MatchedScores:
    """The steps and the symbolic mask of operators in order. Raises `FlatcError` where a mask would not last."""
    found = MatchedScores()
    for op in ops:
        match op:
            case attn.ScaleColumnsOp():
                _check_visible(op, found, "scale")
                found.add(ScoreOp("scale_columns", (column_operand(op, kv_heads),)), op.scale)
            case attn.SoftcapOp():
                _check_visible(op, found, "cap")
                found.add(ScoreOp("softcap", function=Softcap(op.cap.value.data)))
            case attn.BiasOp():
                found.add(ScoreOp("bias", (_onto_scores(op.bias, kv_heads, group),)), op.bias)
            case attn.AlibiOp():
                found.add(ScoreOp("alibi", function=Alibi(kv_heads * group, group, op.offset.value.data)))
            case attn.T5RelativeOp():
                buckets, heads = shape_of(op.table)
                operand = replace(_operand(op.table, (1, heads, 1, 1), kv_heads, group), buckets=buckets)
                function = T5Relative(op.max_distance.value.data, op.offset.value.data, op.bidirectional is not None)
                found.add(ScoreOp("t5_relative", (operand,), function), op.table)
            case attn.MaskOp():
                _match_mask(op, found, kv_heads, group)
            case _:
                raise FlatcError(f"{op.name} cannot be compiled yet", position=position_of(op))
    return found


def sink_operand(sink: SSAValue, kv_heads: int, group: int) -> Operand:
    """The operand of a softmax's sink, one entry for each query head."""
    return replace(_operand(sink, (1, *shape_of(sink), 1, 1), kv_heads, group), role="sink")


def column_operand(op: attn.ScaleColumnsOp, kv_heads: int) -> Operand:
    """The operand of scales of keys or values, not yet named. Raises `FlatcError` if K or V has other heads."""
    batch, heads, keys = shape_of(op.scale)
    if heads not in (1, kv_heads):
        raise FlatcError(
            f"{op.name} cannot be compiled: its scales are for {heads} kv heads, and there are {kv_heads}",
            position=position_of(op),
            help="give a scale for each kv head, or one for all",
        )
    return _operand(op.scale, (batch, heads, 1, keys), kv_heads, 1)


def _check_visible(op: attn.ScoreOp, before: MatchedScores, verb: str) -> None:
    if before.hides:
        raise FlatcError(
            f"{op.name} cannot be compiled behind a mask: it would make hidden scores visible again",
            position=position_of(op),
            help=f"{verb} the scores first, then mask them",
        )


def _match_mask(op: attn.MaskOp, found: MatchedScores, kv_heads: int, group: int) -> None:
    if op.symbolic is not None:
        symbolic = op.symbolic.data
        found.mask = symbolic if found.mask is None else found.mask & symbolic
    if op.keep is not None:
        found.add(ScoreOp("keep", (_onto_scores(op.keep, kv_heads, group),)), op.keep)
    if op.valid is not None:
        batch, keys = shape_of(op.valid)
        found.add(ScoreOp("keep", (_operand(op.valid, (batch, 1, 1, keys), kv_heads, group),)), op.valid)
    if op.same is not None:
        batch, keys = shape_of(op.same)
        entry = _operand(op.same, (batch, 1, 1, keys), kv_heads, group)
        rows = replace(entry, has=(batch > 1, False, False, True, False), ends_with_keys=True)
        columns = replace(entry, has=(batch > 1, False, False, False, True))
        found.add(ScoreOp("same", (rows, columns)), op.same, op.same)


def _onto_scores(value: SSAValue, kv_heads: int, group: int) -> Operand:
    """The operand of a tensor that broadcasts to the scores from the right."""
    shape = shape_of(value)
    return _operand(value, (*(1,) * (4 - len(shape)), *shape), kv_heads, group)


def _operand(value: SSAValue, shape: tuple[int, ...], kv_heads: int, group: int) -> Operand:
    """The operand of a tensor whose shape, aligned with [batch, heads, queries, keys], is given; not yet named."""
    batch, heads, rows, keys = shape
    has = (batch > 1, heads > 1 and kv_heads > 1, heads > 1 and group > 1, rows > 1, keys > 1)
    return Operand("", has, TensorRefType(shape, element_type_of(value)).element_bytes)
