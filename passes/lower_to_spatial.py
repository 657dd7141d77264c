"""Lower tiled kernels to a schedule: `lower-to-spatial`.

Every `flat.fused` with a mapping becomes a `spatial.kernel` on tensors off chip; the function becomes a
`spatial.schedule`; values between kernels become tensors off chip.

    func.func @f(%q: tensor<...>, ...) -> tensor<...> {
      %o = flat.fused "attention" (...) strategy "online" mapping #flat.mapping<...> { ... }
      return %o
    }

    spatial.schedule @f inputs ["q", ...] (%q: !spatial.tensor<...>, ...) outputs ["o"] {
      %o = spatial.offchip "o" : !spatial.tensor<...>
      %q5 = spatial.view %q : ...                      # heads split into (kv head, group)
      spatial.kernel "attention" strategy "online" mapping #flat.mapping<...> { ...loops... }
      spatial.return %o
    }

The loop nest itself is built by `kernel_schedule`. The module must hold the accelerator (for what its array
permits); addresses are given later, by `allocate-buffers`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import Mapping
from flatc.dialects.spatial import KernelOp, OffchipOp, ScheduleOp, TensorRefType, ViewOp
from flatc.dialects.spatial import ReturnOp as ScheduleReturnOp
from flatc.passes.kernels.kernel_schedule import ElementTypes, KernelSchedule, Tensors
from flatc.passes.kernels.problem import AttentionProblem, Kernel, match_kernel
from flatc.passes.mapping.legal_mapping import check_mapping


@dataclass(frozen=True)
class LowerToSpatialPass(ModulePass):
    """See the module docstring."""

    name = "lower-to-spatial"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        accelerator = accelerator_of(op)
        for function in [f for f in op.body.block.ops if isinstance(f, FuncOp)]:
            schedule = lower_function(function, accelerator)
            op.body.block.insert_op_before(schedule, function)
            function.detach()
            function.erase()


def lower_function(function: FuncOp, accelerator: Accelerator) -> ScheduleOp:
    """The schedule of one graph. Raises `FlatcError` at the first operator that has no schedule."""
    return _Lowering(function, accelerator).schedule()


class _Lowering:
    def __init__(self, function: FuncOp, accelerator: Accelerator):
        self.function, self.accelerator = function, accelerator
        self.block = Block(arg_types=[_reference(t) for t in function.function_type.inputs])
        self.tensors: dict[SSAValue, SSAValue] = {}
        for old, new in zip(function.body.block.args, self.block.args, strict=True):
            new.name_hint = old.name_hint
            self.tensors[old] = new

    def schedule(self) -> ScheduleOp:
        for op in self.function.body.block.ops:
            if isinstance(op, FusedOp):
                self._kernel(op)
            elif isinstance(op, ReturnOp):
                self.block.add_op(ScheduleReturnOp([self.tensors[value] for value in op.arguments]))
            else:
                raise FlatcError(
                    f"{op.name} cannot be compiled yet: it is outside of every fused kernel",
                    position=position_of(op),
                    help="compile the attention alone, with its inputs as graph inputs",
                )
        inputs = [self._input_name(i) for i in range(len(self.block.args))]
        return ScheduleOp(self.function.sym_name.data, inputs, self._output_names(), Region(self.block))

    def _input_name(self, index: int) -> str:
        arguments = self.function.arg_attrs
        name = None if arguments is None else arguments.data[index].data.get("flat.name")
        return name.data if isinstance(name, StringAttr) else f"in{index}"

    def _output_names(self) -> list[str]:
        names = self.function.attributes.get("flat.names")
        if isinstance(names, ArrayAttr):
            return [cast(StringAttr, name).data for name in cast("ArrayAttr[Attribute]", names)]
        return [f"out{i}" for i in range(len(self.function.function_type.outputs))]

    def _label(self, value: SSAValue) -> str:
        """The user's name of a result, or the kernel's name for what passes between kernels."""
        for use in value.uses:
            if isinstance(use.operation, ReturnOp):
                return self._output_names()[use.index]
        owner = value.owner
        assert isinstance(owner, FusedOp)
        return owner.kernel.data

    def _kernel(self, fused: FusedOp) -> None:
        if fused.mapping is None:
            raise FlatcError(
                f"kernel '{fused.kernel.data}' has no mapping",
                position=position_of(fused),
                help="run tile-attention before lower-to-spatial",
            )
        kernel = match_kernel(fused)
        mapping = fused.mapping.data
        check_mapping(kernel.problem, mapping, self.accelerator, fused.kernel.data)
        inputs: dict[SSAValue, SSAValue] = dict(zip(fused.body.block.args, fused.inputs, strict=True))
        result = self._offchip(fused.results[0])
        tensors = Tensors(
            q=self._heads(kernel.q, inputs, kernel),
            k=self.tensors[inputs[kernel.k]] if kernel.k is not None else None,
            v=self.tensors[inputs[kernel.v]] if kernel.v is not None else None,
            scores=self._heads(kernel.scores, inputs, kernel),
            result=self._split(result, kernel),
        )
        op = build_kernel(fused, mapping, kernel, tensors)
        op.strategy = fused.strategy
        self.block.add_op(op)

    def _offchip(self, value: SSAValue) -> SSAValue:
        op = OffchipOp(self._label(value), _reference(value.type))
        op.tensor.name_hint = value.name_hint or self._label(value)
        self.block.add_op(op)
        self.tensors[value] = op.tensor
        return op.tensor

    def _heads(self, value: SSAValue | None, inputs: dict[SSAValue, SSAValue], kernel: Kernel) -> SSAValue | None:
        if value is None:
            return None
        return self._split(self.tensors[inputs[value]], kernel)

    def _split(self, tensor: SSAValue, kernel: Kernel) -> SSAValue:
        """Splits the heads of [B, H, ...] into [B, kv head, group, ...]."""
        type = cast(TensorRefType, tensor.type)
        batch, _, *rest = type.dims
        problem = kernel.problem
        view = ViewOp(tensor, TensorRefType([batch, problem.kv_heads, problem.group, *rest], type.element_type))
        view.tensor.name_hint = tensor.name_hint
        self.block.add_op(view)
        return view.tensor


def build_kernel(fused: FusedOp, mapping: Mapping, kernel: Kernel, tensors: Tensors) -> KernelOp:
    """The schedule of one kernel on given tensors."""
    scale = kernel.logit.scale.value.data if kernel.logit is not None else None
    ops = KernelSchedule(kernel.problem, mapping, _element_types(kernel), tensors, scale).build()
    op = KernelOp(fused.kernel.data, Region(Block(ops)), None, MappingAttr(mapping))
    for inner in op.walk():
        inner.location = fused.location
    return op


def lower_kernel_alone(fused: FusedOp, mapping: Mapping, problem: AttentionProblem | None = None) -> KernelOp:
    """The schedule of this kernel only, all its tensors as inputs: for judging a mapping before choosing it.

    `problem` replaces the sizes and the mask of the kernel by others of the same kind.
    """
    kernel = match_kernel(fused)
    kernel = kernel if problem is None else replace(kernel, problem=problem)
    shapes = tensor_shapes(kernel.problem)
    values = {"q": kernel.q, "k": kernel.k, "v": kernel.v, "scores": kernel.scores, "result": kernel.result}
    present = {name: value for name, value in values.items() if value is not None}
    block = Block(arg_types=[TensorRefType(shapes[name], _element(value)) for name, value in present.items()])
    arguments: dict[str, SSAValue] = dict(zip(present, block.args, strict=True))
    tensors = Tensors(
        arguments.get("q"), arguments.get("k"), arguments.get("v"), arguments.get("scores"), arguments["result"]
    )
    op = build_kernel(fused, mapping, kernel, tensors)
    block.add_ops([op, ScheduleReturnOp([])])
    ScheduleOp("alone", list(present), [], Region(block))
    return op


def tensor_shapes(problem: AttentionProblem) -> dict[str, tuple[int, ...]]:
    """Shapes of a kernel's tensors off chip, heads split into (kv head, group)."""
    p = problem
    heads = (p.batch, p.kv_heads, p.group)
    result = (*heads, p.queries, p.d_v if p.has("attend") else p.keys)
    keyed = (p.batch, p.kv_heads, p.keys)
    scores = (*heads, p.queries, p.keys)
    return {
        "q": (*heads, p.queries, p.d_qk),
        "k": (*keyed, p.d_qk),
        "v": (*keyed, p.d_v),
        "scores": scores,
        "result": result,
    }


def _reference(type: Attribute) -> TensorRefType:
    tensor = cast("TensorType[Attribute]", type)
    return TensorRefType(tensor.get_shape(), tensor.element_type)


def _element(value: SSAValue) -> Attribute:
    return cast("TensorType[Attribute]", value.type).element_type


def _element_types(kernel: Kernel) -> ElementTypes:
    operators: list[Operation | None] = [kernel.logit, kernel.mask, kernel.softmax, kernel.attend]
    first = next(op for op in operators if op is not None)
    scores = kernel.logit.scores if kernel.logit is not None else first.operands[0]
    probabilities = kernel.softmax.probabilities if kernel.softmax is not None else scores
    output = _element(kernel.result)
    return ElementTypes(
        q=_element(kernel.q) if kernel.q is not None else None,
        k=_element(kernel.k) if kernel.k is not None else None,
        v=_element(kernel.v) if kernel.v is not None else None,
        scores=_element(scores),
        probabilities=_element(probabilities),
        accumulator=kernel.attend.accumulator if kernel.attend is not None else output,
        output=output,
    )
