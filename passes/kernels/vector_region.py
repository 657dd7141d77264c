"""Reading chains of vector operations: off a region of attn operators, and back off the kernel made of it.

    flat.fused "add_layernorm" (%a = %x, %b = %h, %c = %g) {
      %s = attn.add %a, %b ...
      %t = attn.norm layernorm %s weight(%c ...) epsilon 1e-05 ...          steps add, layernorm
      flat.yield %t
    }

Every operator becomes one step, but for rope of some features (the others are copied), a norm with a bias and no
weight (the bias is added), and softcap (scale, tanh, scale).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from xdsl.dialects.builtin import AnyFloat, Float64Type, TensorType, f32
from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.attn import (
    ActivationOp,
    AddOp,
    CastOp,
    MultiplyOp,
    NormOp,
    RopeOp,
    ScaleOp,
    SoftcapOp,
    shape_of,
)
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import (
    BufferType,
    KernelOp,
    LoadOp,
    RopeTableOp,
    StoreOp,
    TensorRefType,
    VectorOp,
    timed_ops,
)
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.passes.kernels.problem import type_bytes
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.kernels.vector_problem import Operand, RopeTable, Step, VectorProblem

CHAIN_OPS = (ActivationOp, AddOp, CastOp, MultiplyOp, NormOp, RopeOp, ScaleOp, SoftcapOp)
"""The operators that chains are made of: they work on every element or every row of a tensor."""


@frozen
class VectorRegion:
    """A chain, and the block arguments and yielded values behind its operands (None for tables) and results."""

    problem: VectorProblem
    operands: tuple[SSAValue | None, ...]
    results: tuple[SSAValue, ...]


def match_chain(fused: FusedOp) -> VectorRegion:
    """Recognises the region of `fused`. Raises `FlatcError` naming the operator that does not fit."""
    yielded = list(fused.yield_op.values)
    dims = _dims(fused.body_ops()[-1].results[0])
    reader = _Reader(dims)
    for op in fused.body_ops():
        reader.read(op)
    made = [reader.steps_of.get(value) for value in yielded]
    if not yielded or None in made:
        raise FlatcError(
            f"kernel '{fused.kernel.data}' must give what it computes, and nothing else", position=position_of(fused)
        )
    region = reader.region(yielded)
    problem = region.problem
    for value, op in zip(problem.written, problem.steps, strict=True):
        if value not in problem.results and not problem.uses(value):
            raise FlatcError(f"kernel '{fused.kernel.data}' does not use its {op.kind}", position=position_of(fused))
    return region


@dataclass
class _Reader:
    """Turns operators into steps. Values of steps are `~number` until the operands are all known."""

    dims: tuple[int, ...]
    operands: list[Operand] = field(default_factory=list[Operand])
    sources: list[SSAValue | None] = field(default_factory=list["SSAValue | None"])
    steps: list[Step] = field(default_factory=list[Step])
    steps_of: dict[SSAValue, int] = field(default_factory=dict[SSAValue, int])
    made: int = 0

    def read(self, op: Operation) -> None:
        """Adds the steps of one operator."""
        if not isinstance(op, CHAIN_OPS):
            raise _refuse(op, "no chain of vector operations has it")
        if _dims(op.results[0]) != self.dims:
            raise _refuse(op, f"its result has another shape than that of its kernel, {list(self.dims)}")
        for value in (*op.operands, *op.results):
            if not isinstance(_element(value), AnyFloat):
                raise _refuse(op, f"the vector unit has no operation on {_element(value)}")
        result = op.results[0]
        match op:
            case AddOp() | MultiplyOp():
                self._step("add" if isinstance(op, AddOp) else "multiply", [op.left, op.right], result)
            case ScaleOp():
                self._step("scale", [op.x], result, op.factor.value.data)
            case CastOp():
                self._step("cast", [op.x], result)
            case ActivationOp():
                self._step(op.kind.data.value, [op.x], result)
            case SoftcapOp():
                self._softcap(op)
            case NormOp():
                self._norm(op)
            case RopeOp():
                self._rope(op)
        self.steps_of[result] = self.made - 1

    def region(self, yielded: Sequence[SSAValue]) -> VectorRegion:
        """The chain, with values numbered."""
        count = len(self.operands)
        steps = tuple(
            Step(
                step.kind,
                tuple(count + ~value if value < 0 else value for value in step.reads),
                step.element,
                step.element_bytes,
                step.number,
                step.columns,
            )
            for step in self.steps
        )
        results = tuple(count + self.steps_of[value] for value in yielded)
        return VectorRegion(
            VectorProblem(self.dims, tuple(self.operands), steps, results), tuple(self.sources), tuple(yielded)
        )

    # --- Operators ----------------------------------------------------------------------------------------

    def _norm(self, op: NormOp) -> None:
        weight = [op.weight] if op.weight is not None else []
        bias = [op.bias] if op.bias is not None else []
        kind, epsilon = op.kind.data.value, op.epsilon.value.data
        if weight or not bias:
            self._step(kind, [op.x, *weight, *bias], op.result, epsilon)
            return
        self._step(kind, [op.x], op.result, epsilon)
        self._append("add", (~(self.made - 1), self._value(bias[0])), op.result)

    def _softcap(self, op: SoftcapOp) -> None:
        cap = op.cap.value.data
        self._step("scale", [op.operands[0]], op.results[0], 1 / cap)
        self._append("tanh", (~(self.made - 1),), op.results[0])
        self._append("scale", (~(self.made - 1),), op.results[0], cap)

    def _rope(self, op: RopeOp) -> None:
        dims, width = op.dims.value.data, self.dims[-1]
        kind = "rope" if op.interleaved is None else "rope_interleaved"
        x = self._value(op.x)
        table = self._table(op, dims)
        if dims == width:
            self._append(kind, (x, table), op.result)
            return
        self._append(kind, (x, table), op.result, columns=(0, dims))
        self._append("cast", (x,), op.result, columns=(dims, width - dims))

    # --- Values -------------------------------------------------------------------------------------------

    def _step(self, kind: str, reads: Sequence[SSAValue], result: SSAValue, number: float | None = None) -> None:
        self._append(kind, tuple(map(self._value, reads)), result, number)

    def _append(
        self,
        kind: str,
        reads: tuple[int, ...],
        result: SSAValue,
        number: float | None = None,
        columns: tuple[int, int] | None = None,
    ) -> None:
        element = _element(result)
        step = Step(kind, reads, str(element), type_bytes(element), number, columns)
        self.made += step.makes_value
        self.steps.append(step)

    def _value(self, value: SSAValue) -> int:
        """The number of a value; one from outside becomes an operand when it is first used."""
        if value in self.steps_of:
            return ~self.steps_of[value]
        if value not in self.sources:
            self._operand(value, shape_of(value), _element(value))
        return self.sources.index(value)

    def _operand(
        self, value: SSAValue | None, shape: Sequence[int], element: Attribute, table: RopeTable | None = None
    ) -> None:
        dims = (1,) * (len(self.dims) - len(shape)) + tuple(shape)
        self.operands.append(Operand(dims, str(element), type_bytes(element), table))
        self.sources.append(value)

    def _table(self, op: RopeOp, dims: int) -> int:
        """The table of a rope: float32, or float64 where x is."""
        element = _element(op.x) if isinstance(_element(op.x), Float64Type) else f32
        table = RopeTable(op.start.value.data, op.wavelength.value.data)
        self._operand(None, (self.dims[-2], dims), element, table)
        return len(self.operands) - 1


def _dims(value: SSAValue) -> tuple[int, ...]:
    """The shape of a value with at least two dims: rows of one column each are columns of one row."""
    shape = shape_of(value)
    return (1,) * (2 - len(shape)) + tuple(shape)


def _element(value: SSAValue) -> Attribute:
    return cast("TensorType[Attribute]", value.type).element_type


def _refuse(op: Operation, reason: str) -> FlatcError:
    return FlatcError(f"{op.name} cannot be compiled yet: {reason}", position=position_of(op))


# --- Back from a schedule -----------------------------------------------------------------------------------


def read_chain(kernel: KernelOp) -> Part | None:
    """The chain that a kernel computes, or None if it is none that `lower-to-spatial` would make."""
    ops = list(timed_ops(kernel))
    work = [op for op in ops if isinstance(op, VectorOp)]
    stores = [op for op in ops if isinstance(op, StoreOp)]
    loads = {op.writes[0]: op for op in ops if isinstance(op, LoadOp)}
    known = all(op.kind.data in VALUE_KINDS or op.kind.data == "cast" for op in work)
    if not known or not work or not stores or len(work) + len(stores) + len(loads) != len(ops):
        return None
    operands = list(dict.fromkeys(value for op in work for value in op.reads if value in loads))
    values: dict[SSAValue, int] = {buffer: number for number, buffer in enumerate(operands)}
    steps: list[Step] = []
    for op in work:
        if any(buffer not in values for buffer in op.reads):
            return None
        step = _step_of(op, [values[buffer] for buffer in op.reads])
        steps.append(step)
        values[op.writes[0]] = len(operands) + sum(step.makes_value for step in steps) - 1
    tensors = [loads[buffer].tensor for buffer in operands]
    if any(store.reads[0] not in values for store in stores):
        return None
    results = tuple(values[store.reads[0]] for store in stores)
    problem = VectorProblem(_type(stores[0].tensor).dims, tuple(map(_operand_of, tensors)), tuple(steps), results)
    roles = dict(zip(problem.operand_roles, tensors, strict=True))
    roles |= {role: store.tensor for role, store in zip(problem.result_roles, stores, strict=True)}
    return Part(problem, {role: cast(SSAValue, tensor) for role, tensor in roles.items()})


def _step_of(op: VectorOp, reads: Iterable[int]) -> Step:
    result = cast(BufferType, op.writes[0].type)
    window = op.write_accesses[0].offsets
    columns = (window[-1].constant, op.extents.data[-1].data.constant) if window else None
    number = None if op.number is None else op.number.value.data
    return Step(op.kind.data, tuple(reads), str(result.element_type), result.element_bytes, number, columns)


def _operand_of(tensor: SSAValue | None) -> Operand:
    assert tensor is not None
    type, owner = _type(tensor), tensor.owner
    table = None
    if isinstance(owner, RopeTableOp):
        table = RopeTable(owner.start.data, owner.wavelength.value.data)
    return Operand(type.dims, str(type.element_type), type.element_bytes, table)


def _type(tensor: SSAValue | None) -> TensorRefType:
    assert tensor is not None
    return cast(TensorRefType, tensor.type)
