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

A result that `keep-on-chip` lets stay there is a `spatial.onchip` in the place of a `spatial.offchip`; kernels load and
store it in the same way.

The loop nests themselves are built by the kinds of kernels (`kinds`). Splitting and merging heads moves nothing: it
is a view of the tensor, which a kernel then stores and loads in pieces that lie apart.

    %h = attn.split_heads %x into 12                 %s = spatial.view %x : ... -> !spatial.tensor<BxSxHxD...>
                                                     %h = spatial.view %s order [0, 2, 1, 3] : ... <BxHxSxD...>

A cache grows in place: what is appended is stored behind the rows that it has, by the kernel that computes it where
that gives it in the cache's order, else by one that copies it there.

    %t = attn.append %ck, %k                         %t = spatial.extend %ck : <BxHxPxD...> -> <BxHx(P+S)xD...>
                                                     %w = spatial.slice %t at [0, 0, P, 0] : ... -> <BxHxSxD...>

So are the parts of `attn.concat` stored into windows of it (`kernels/placement.py`).

The module must hold the accelerator (for what its array permits); addresses are given later, by `allocate-buffers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.attn import AppendOp, ConcatOp, FeaturesOp, MergeHeadsOp, PagedOp, SplitHeadsOp
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.spatial import (
    INPUT_KINDS,
    ExtendOp,
    KernelOp,
    OffchipOp,
    OnchipOp,
    ScheduleOp,
    SliceOp,
    TensorRefType,
    ViewOp,
    stays_on_chip,
)
from flatc.dialects.spatial import PagedOp as SpatialPagedOp
from flatc.dialects.spatial import ReturnOp as ScheduleReturnOp
from flatc.dialects.spatial_views import can_be_viewed_as
from flatc.passes.cost.bounds import AnyProblem, is_written
from flatc.passes.kernels.fused_region import unused_name
from flatc.passes.kernels.keyed_storage import page_of
from flatc.passes.kernels.placement import in_order_of_rows, stored_in
from flatc.passes.kinds.registry import kind_of

_NUMBERS = re.compile(r"(_\d+)+$")


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
        # Of tensors [B, H, S, D] that lie in memory as [B, S, H * D]: that tensor.
        self.joined: dict[SSAValue, SSAValue] = {}
        # Of kernels that append to a cache: the window of it that they store into.
        self.windows: dict[SSAValue, SSAValue] = {}
        # Caches that rows were appended to.
        self.grown: set[SSAValue] = set()
        # Names that tensors have.
        self.labels: set[str] = set(self._output_names())
        self.labels |= {self._input_word(i, "name", "") for i in range(len(self.block.args))}
        for old, new in zip(function.body.block.args, self.block.args, strict=True):
            new.name_hint = old.name_hint
            self.tensors[old] = new

    def schedule(self) -> ScheduleOp:
        for op in self.function.body.block.ops:
            if isinstance(op, FusedOp):
                self._kernel(op)
            elif isinstance(op, SplitHeadsOp):
                self._with_heads(self.tensors[op.x], op.result)
            elif isinstance(op, MergeHeadsOp):
                self._join_heads(op)
            elif isinstance(op, FeaturesOp):
                self._features(op)
            elif isinstance(op, PagedOp):
                paged = SpatialPagedOp(self.tensors[op.pool], self.tensors[op.table], _reference(op.result.type))
                paged.tensor.name_hint = op.result.name_hint
                self.block.add_op(paged)
                self.tensors[op.result] = paged.tensor
            elif isinstance(op, AppendOp | ConcatOp) and op.result in self.tensors:
                continue  # what it puts there was stored by the kernels that computed it
            elif isinstance(op, ReturnOp):
                self.block.add_op(ScheduleReturnOp([self.tensors[value] for value in op.arguments]))
            else:
                raise FlatcError(
                    f"{op.name} cannot be compiled yet: it is outside of every fused kernel",
                    position=position_of(op),
                    help="run fuse-attention and fuse-layers before",
                )
        inputs = range(len(self.block.args))
        phase = self.function.attributes.get("flat.phase")
        return ScheduleOp(
            self.function.sym_name.data,
            [self._input_word(i, "name", f"in{i}") for i in inputs],
            self._output_names(),
            Region(self.block),
            phase.data if isinstance(phase, StringAttr) else None,
            [self._input_word(i, "kind", INPUT_KINDS[0]) for i in inputs],
        )

    def _input_word(self, index: int, key: str, default: str) -> str:
        arguments = self.function.arg_attrs
        word = None if arguments is None else arguments.data[index].data.get(f"flat.{key}")
        return word.data if isinstance(word, StringAttr) else default

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
        for use in value.uses:
            if isinstance(use.operation, SplitHeadsOp | MergeHeadsOp):
                for further in use.operation.result.uses:
                    if isinstance(further.operation, ReturnOp):
                        return self._output_names()[further.index]
        owner = value.owner
        if isinstance(owner, ConcatOp):
            return unused_name(f"concat_{value.name_hint}" if value.name_hint else "concat", self.labels)
        assert isinstance(owner, FusedOp)
        name, index = owner.kernel.data, cast("list[SSAValue]", list(owner.results)).index(value)
        return unused_name(f"{name}_{index}" if index else name, self.labels)

    def _kernel(self, fused: FusedOp) -> None:
        kind, name = kind_of(fused), fused.kernel.data
        mapping = kind.mapping_of(fused)
        region = kind.region(fused)
        kind.check(region.problem, mapping, self.accelerator, name)
        outside: dict[SSAValue, SSAValue] = dict(zip(fused.body.block.args, fused.inputs, strict=True))
        for value, result in zip(fused.yield_op.values, fused.results, strict=True):
            outside[value] = result
            self._declare(value, result, outside)
        shapes = kind.tensor_shapes(region.problem)
        tensors: dict[str, SSAValue] = {}
        for role, value in region.values.items():
            tensor = self._tensor(role, outside[value])
            if role in region.by_head:
                batch, heads, rows, width = cast(TensorRefType, tensor.type).dims
                tensor = self._viewed_as(tensor, (heads, batch, rows, width), order=(1, 0, 2, 3))
            if not can_be_viewed_as(tensor, shapes[role]):
                raise FlatcError(
                    f"kernel '{name}' cannot be compiled yet: it takes all rows of {list(_reference(value.type).dims)} "
                    "together, and they do not lie at even distances",
                    position=position_of(fused),
                    help="give the graph one sequence, or an input whose heads are merged, for heads(x, H)",
                )
            tensors[role] = self._viewed(tensor, shapes[role])
        op = build_kernel(fused, mapping, region.problem, tensors)
        op.strategy = fused.strategy
        self.block.add_op(op)

    # --- Tensors ------------------------------------------------------------------------------------------

    def _declare(self, value: SSAValue, result: SSAValue, outside: Mapping[SSAValue, SSAValue]) -> None:
        """Gives the result of a kernel its tensor; `value` is what the kernel's region yields for it."""
        if isinstance(value.owner, AppendOp):
            self.tensors[result], self.windows[result] = self._grown(value.owner, outside[value.owner.cache])
        else:
            self._place(result)
        kernel = result.owner
        if isinstance(kernel, FusedOp) and result in kernel.kept and not stays_on_chip(self.tensors[result]):
            raise FlatcError(
                f"a result of kernel '{kernel.kernel.data}' cannot stay on chip: it is a part of another tensor",
                position=position_of(kernel),
                help="leave it out of on_chip, as keep-on-chip does",
            )

    def _place(self, value: SSAValue) -> SSAValue:
        """The tensor that a value is stored into: its own, or a window of what it is put into."""
        if value in self.tensors:
            return self.tensors[value]
        match stored_in(value):
            case None:
                self._declared(value)
            case AppendOp() as append:
                self.tensors[append.result], self.tensors[value] = self._grown(append, append.cache)
            case ConcatOp() as concat:
                self._window(value, self._place(concat.result), concat.start_of(value))
        return self.tensors[value]

    def _grown(self, append: AppendOp, cache: SSAValue) -> tuple[SSAValue, SSAValue]:
        """The cache with room for what is appended, and the window of it that this goes to.

        Of a cache in pages, all of it is the window: where its rows lie, a table says. Raises `FlatcError` where the
        pages have no room, and for rows that two would write.
        """
        page, type = page_of(cache), _reference(append.result.type)
        room = None if page is None else _reference(page.table.type).dims[1] * _reference(page.pool.type).dims[2]
        if room is not None and type.dims[2] > room:
            raise FlatcError(
                f"{append.name} cannot be compiled: the pages of a sequence hold {room} rows, and these make it "
                f"{type.dims[2]}",
                position=position_of(append),
                help="give the table more pages",
            )
        if cache in self.grown:
            raise FlatcError(
                f"{append.name} cannot be compiled: a cache grows in place, and other rows were appended to this one",
                position=position_of(append),
                help="append to the result of the first append, or declare two caches",
            )
        self.grown.add(cache)
        extended = ExtendOp(self.tensors[cache], type)
        extended.tensor.name_hint = append.result.name_hint
        if page is not None:
            self.block.add_op(extended)
            return extended.tensor, extended.tensor
        rows = _reference(append.cache.type).dims[2]
        window = SliceOp(extended.tensor, (0, 0, rows, 0), _reference(append.new.type))
        self.block.add_ops([extended, window])
        return extended.tensor, window.tensor

    def _tensor(self, role: str, value: SSAValue) -> SSAValue:
        """The tensor that a kernel reads in a role, or writes."""
        return self.windows[value] if is_written(role) and value in self.windows else self.tensors[value]

    def _declared(self, value: SSAValue) -> None:
        """Declares the tensor of a kernel's result. Where heads are joined later, it lies in that order."""
        type, label = _reference(value.type), self._label(value)
        joined = any(isinstance(use.operation, MergeHeadsOp) for use in value.uses) or in_order_of_rows(value)
        if joined:
            batch, heads, rows, width = type.dims
            type = TensorRefType((batch, rows, heads * width), type.element_type)
        stays = isinstance(value.owner, FusedOp) and value in value.owner.kept
        op = (OnchipOp if stays else OffchipOp)(label, type)
        # A printer tells equal names apart by numbers, so a name must not end in one.
        op.tensor.name_hint = _NUMBERS.sub("", value.name_hint or label)
        self.block.add_op(op)
        self.tensors[value] = op.tensor
        if joined:
            self._with_heads(op.tensor, value)

    def _with_heads(self, joined: SSAValue, value: SSAValue) -> None:
        """Lets `value` [B, H, S, D] be a view of its elements [B, S, H * D]."""
        batch, heads, rows, width = _reference(value.type).dims
        split = self._viewed(joined, (batch, rows, heads, width))
        self.tensors[value] = self._viewed_as(split, (batch, heads, rows, width), order=(0, 2, 1, 3))
        self.joined[value] = joined

    def _join_heads(self, op: MergeHeadsOp) -> None:
        """Lets joined heads be a view of the tensor, where it lies so, as one head or one row does in any case."""
        merged = _reference(op.result.type).dims
        if op.x in self.joined:
            self.tensors[op.result] = self.joined[op.x]
            return
        batch, heads, rows, width = _reference(op.x.type).dims
        turned = self._viewed_as(self.tensors[op.x], (batch, rows, heads, width), order=(0, 2, 1, 3))
        if not can_be_viewed_as(turned, merged):
            raise FlatcError(
                f"{op.name} cannot be compiled yet: the elements of its input lie head by head, and would have to move",
                position=position_of(op),
                help="merge what a kernel computes, or give the graph its input with heads merged",
            )
        self.tensors[op.result] = self._viewed(turned, merged)

    def _features(self, op: FeaturesOp) -> None:
        """Lets some features of a tensor be a window of it."""
        self._window(op.result, self.tensors[op.x], op.start.value.data)

    def _window(self, value: SSAValue, source: SSAValue, start: int) -> None:
        """Lets a value be some features of a tensor, from `start` on."""
        type = _reference(value.type)
        window = SliceOp(source, (*[0] * (len(type.dims) - 1), start), type)
        window.tensor.name_hint = value.name_hint
        self.block.add_op(window)
        self.tensors[value] = window.tensor

    def _viewed(self, tensor: SSAValue, shape: Sequence[int]) -> SSAValue:
        return tensor if cast(TensorRefType, tensor.type).dims == tuple(shape) else self._viewed_as(tensor, shape)

    def _viewed_as(self, tensor: SSAValue, shape: Sequence[int], order: Sequence[int] | None = None) -> SSAValue:
        view = ViewOp(tensor, TensorRefType(shape, cast(TensorRefType, tensor.type).element_type), order)
        view.tensor.name_hint = tensor.name_hint
        self.block.add_op(view)
        return view.tensor


def build_kernel(
    fused: FusedOp, mapping: KernelMapping, problem: AnyProblem, tensors: Mapping[str, SSAValue]
) -> KernelOp:
    """The schedule of one kernel on given tensors, by role."""
    ops = kind_of(fused).build(fused, problem, mapping, tensors)
    op = KernelOp(fused.kernel.data, Region(Block(ops)), None, MappingAttr(mapping))
    for inner in op.walk():
        inner.location = fused.location
    return op


def lower_kernel_alone(fused: FusedOp, mapping: KernelMapping, problem: AnyProblem | None = None) -> KernelOp:
    """The schedule of this kernel only, all its tensors as inputs: for judging a mapping before choosing it.

    `problem` replaces the sizes and the mask of the kernel by others of the same kind.
    """
    kind = kind_of(fused)
    region = kind.region(fused)
    chosen: AnyProblem = region.problem if problem is None else problem
    shapes = kind.tensor_shapes(chosen)
    types = {
        role: TensorRefType(shapes[role], _reference(value.type).element_type) for role, value in region.values.items()
    }
    outside = [role for role in types if role not in chosen.on_chip]
    block = Block(arg_types=[types[role] for role in outside])
    kept = {role: OnchipOp(role, type) for role, type in types.items() if role in chosen.on_chip}
    block.add_ops(kept.values())
    tensors: dict[str, SSAValue] = dict(zip(outside, block.args, strict=True))
    op = build_kernel(fused, mapping, chosen, tensors | {role: one.tensor for role, one in kept.items()})
    block.add_ops([op, ScheduleReturnOp([])])
    ScheduleOp("alone", outside, [], Region(block))
    return op


def _reference(type: Attribute) -> TensorRefType:
    tensor = cast("TensorType[Attribute]", type)
    return TensorRefType(tensor.get_shape(), tensor.element_type)
