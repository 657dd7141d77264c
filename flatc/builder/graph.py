"""A graph under construction: each function of the `.flat` format is a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from xdsl.dialects.builtin import (
    AnyFloat,
    ArrayAttr,
    DictionaryAttr,
    FunctionType,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    TensorType,
    i64,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Region, SSAValue

from flatc.builder.element_types import COMPUTE_DTYPES, DTYPE_NAMES, DTYPES, element_type
from flatc.builder.scores import (
    BiasExpr,
    MaskExpr,
    alibi,
    as_bias,
    as_mask,
    causal,
    chunk,
    first,
    prefix,
    same,
    t5_relative,
    valid,
    window,
)
from flatc.builder.tensor import Tensor, guard
from flatc.dialects import attn
from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn import Activation, AddOp, AppendOp, AttnOp, LinearOp, NormKind
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean


def _join_biases(block: Block) -> None:
    """Let `x @ w + b` be one linear op: the bias vector joins the sum where nothing else reads the product."""
    for add in [op for op in block.ops if isinstance(op, AddOp)]:
        for product, bias in ((add.left, add.right), (add.right, add.left)):
            linear = product.owner
            if not isinstance(linear, LinearOp) or linear.by_head or linear.bias is not None:
                continue
            if not product.has_one_use():
                continue
            if attn.shape_of(bias) != attn.shape_of(product)[-1:]:
                continue
            joined = LinearOp(linear.x, linear.w, linear.accumulator, product.type, bias)
            joined.location = linear.location
            block.insert_op_before(joined, add)
            joined.output.name_hint = add.result.name_hint
            add.result.replace_all_uses_with(joined.output)
            block.erase_op(add)
            block.erase_op(linear)
            break


def _drop_unused(block: Block) -> None:
    """Drop what no output needs; a cache keeps what is appended to it."""
    for op in reversed(list(block.ops)):
        if op.results and not isinstance(op, AppendOp) and all(r.first_use is None for r in op.results):
            block.erase_op(op)


class Graph:
    """One attention graph under construction."""

    def __init__(
        self,
        name: str,
        *,
        dtype: str = "f32",
        softmax: str | None = None,
        accumulate: str | None = None,
        dims: Mapping[str, int] | None = None,
        phase: str | None = None,
        at: Position | None = None,
    ):
        self.name = name
        self.dtype = dtype
        self.softmax = softmax or ("f64" if dtype == "f64" else "f32")
        self.accumulate = accumulate or self.softmax
        self.dims, self.phase = dict(dims or {}), phase
        self.at = at
        self._block = Block()
        self._module: ModuleOp | None = None
        self._arguments: dict[str, dict[str, Attribute]] = {}
        self._outputs: dict[str, Tensor] = {}
        element_type(dtype, at)
        element_type(self.softmax, at)
        element_type(self.accumulate, at)
        for what, role, word in (
            ("scores cannot be computed", "softmax", self.softmax),
            ("products cannot accumulate", "accumulate", self.accumulate),
        ):
            if word not in COMPUTE_DTYPES:
                raise FlatcError(
                    f"{what} in {word}", position=at, help=f"the types for {role} are {', '.join(COMPUTE_DTYPES)}"
                )

    # Declarations

    def input(self, name: str, shape: Sequence[int], dtype: str | None = None, *, at: Position | None = None) -> Tensor:
        """Data that changes from call to call."""
        return self._declare("input", name, shape, dtype, at)

    def weight(
        self, name: str, shape: Sequence[int], dtype: str | None = None, *, at: Position | None = None
    ) -> Tensor:
        """A parameter of the model."""
        return self._declare("weight", name, shape, dtype, at)

    def cache(self, name: str, shape: Sequence[int], dtype: str | None = None, *, at: Position | None = None) -> Tensor:
        """Keys or values of earlier tokens, [B, KV, P, D]; P may be 0."""
        return self._declare("cache", name, shape, dtype, at)

    def output(self, *tensors: Tensor, names: Sequence[str] | None = None, at: Position | None = None) -> None:
        """The results of the graph, in order; a tensor without a name becomes `out0`, `out1`, ..."""
        for index, tensor in enumerate(tensors):
            name = names[index] if names else tensor.name or f"out{len(self._outputs)}"
            if name in self._outputs:
                raise FlatcError(f"'{name}' is already an output", position=at, help="name each output once")
            self._check_owner(tensor, at)
            self._outputs[name] = replace(tensor, name=name)

    def bind(self, name: str, tensor: Tensor) -> Tensor:
        """Give a value the name that reports and the IR show."""
        if not tensor.value.name_hint and SSAValue.is_valid_name(name):
            tensor.value.name_hint = name
        return replace(tensor, name=name)

    def module(self) -> ModuleOp:
        """The verified module: one function whose arguments carry name and kind. The graph is then closed."""
        if self._module is not None:
            return self._module
        if not self._outputs:
            raise FlatcError(f"graph '{self.name}' has no output", position=self.at, help="end it with output(y)")
        results = [tensor.value for tensor in self._outputs.values()]
        block = self._block
        types = [value.type for value in results]
        function = FuncOp(
            self.name,
            FunctionType.from_lists(block.arg_types, types),
            Region(block),
            arg_attrs=ArrayAttr([DictionaryAttr(attributes) for attributes in self._arguments.values()]),
        )
        block.add_op(ReturnOp(*results))
        _drop_unused(block)
        _join_biases(block)
        function.attributes["flat.names"] = ArrayAttr([StringAttr(name) for name in self._outputs])
        function.attributes["flat.dims"] = DictionaryAttr(
            {name: IntegerAttr(size, i64) for name, size in self.dims.items()}
        )
        if self.phase is not None:
            function.attributes["flat.phase"] = StringAttr(self.phase)
        if self.at:
            function.location = self.at.to_location()
        module = ModuleOp([function])
        module.verify()
        self._module = module
        return module

    # Attention

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: MaskExpr | Tensor | None = None,
        bias: BiasExpr | Tensor | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sink: Tensor | None = None,
        key_scale: Tensor | None = None,
        value_scale: Tensor | None = None,
        at: Position | None = None,
    ) -> Tensor:
        """softmax(mask(softcap(scale * q . k^T) + bias)) . v; the scale is 1 / sqrt(d_qk) unless given.

        Quantised keys have a scale each in `key_scale` [B, KV, T], values in `value_scale`; a dim of 1 is repeated.
        """
        guard(at, lambda: shapes.attention(q.shape, k.shape, v.shape))
        raw = self.logit(q, k, scale=scale, at=at)
        scores = self.adjust(raw, mask=mask, bias=bias, softcap=softcap, key_scale=key_scale, at=at)
        stored = self._wider(q, v)
        return self._attend(self._probabilities(scores, sink, stored, at), v, value_scale, stored, at)

    def logit(self, q: Tensor, k: Tensor, *, scale: float | None = None, at: Position | None = None) -> Tensor:
        """The scores alone: scale * q . k^T, in the softmax type."""
        shape = guard(at, lambda: shapes.logit(q.shape, k.shape))
        factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
        result = self._type(shape, self.softmax)
        whole = not (self._is_float(q) or self._is_float(k))
        accumulator = DTYPES["i32" if whole else self.accumulate]
        return self._emit(attn.LogitOp(q.value, k.value, factor, accumulator, result), at)

    def adjust(
        self,
        scores: Tensor,
        *,
        mask: MaskExpr | Tensor | None = None,
        bias: BiasExpr | Tensor | None = None,
        softcap: float | None = None,
        key_scale: Tensor | None = None,
        at: Position | None = None,
    ) -> Tensor:
        """mask(softcap(scores * key_scale) + bias): what attention does to scores [B, H, S, T] before the softmax."""
        guard(at, lambda: shapes.scores(scores.shape))
        found, offset = scores.value, scores.shape[3] - scores.shape[2]
        if key_scale is not None:
            found = self._emit(attn.ScaleColumnsOp(found, key_scale.value), at).value
        if softcap is not None:
            found = self._emit(attn.SoftcapOp(found, softcap), at).value
        for term in as_bias(bias).terms if bias is not None else ():
            found = self._emit(term(found, offset), at).value
        if mask is not None:
            found = self._mask(found, as_mask(mask), offset, at)
        return replace(scores, value=found, name=None) if found is not scores.value else scores

    def probabilities(self, scores: Tensor, *, sink: Tensor | None = None, at: Position | None = None) -> Tensor:
        """The probabilities of scores [B, H, S, T], row by row, in the storage type; rows that see nothing are zero."""
        guard(at, lambda: shapes.scores(scores.shape))
        return self._probabilities(scores, sink, self._storage(), at)

    def _probabilities(self, scores: Tensor, sink: Tensor | None, stored: str, at: Position | None) -> Tensor:
        result = self._type(scores.shape, stored)
        return self._emit(attn.SoftmaxOp(scores.value, result, sink.value if sink else None), at)

    def attend(self, p: Tensor, v: Tensor, *, value_scale: Tensor | None = None, at: Position | None = None) -> Tensor:
        """Probabilities times values, in the storage type; quantised values have a scale each in `value_scale`."""
        return self._attend(p, v, value_scale, v.dtype if self._is_float(v) else self._storage(), at)

    def _attend(self, p: Tensor, v: Tensor, scale: Tensor | None, stored: str, at: Position | None) -> Tensor:
        shape = guard(at, lambda: shapes.attend(p.shape, v.shape))
        if scale is not None:
            p = self._emit(attn.ScaleColumnsOp(p.value, scale.value), at)
        return self._emit(attn.AttendOp(p.value, v.value, DTYPES[self.accumulate], self._type(shape, stored)), at)

    def _mask(self, scores: SSAValue, mask: MaskExpr, offset: int, at: Position | None) -> SSAValue:
        symbolic = mask.resolve(offset) if mask.resolve else None
        rounds = max(len(mask.keep), len(mask.valid), len(mask.same), 1 if symbolic else 0)
        for index in range(rounds):
            keep, valid_, same_ = (
                terms[index].value if index < len(terms) else None for terms in (mask.keep, mask.valid, mask.same)
            )
            op = attn.MaskOp(scores, symbolic if index == 0 else None, keep=keep, valid=valid_, same=same_)
            scores = self._emit(op, mask.at or at).value
        return scores

    # The layer around attention

    def linear(self, x: Tensor, w: Tensor, bias: Tensor | None = None, *, at: Position | None = None) -> Tensor:
        """x [..., I] times w [I, O], plus a bias [O]; `x @ w` means the same.

        With a weight for each head, x [B, H, S, I] times w [H, I, O] gives [B, H, S, O], without a bias.
        """
        shape = guard(at, lambda: shapes.linear(x.shape, w.shape))
        stored = next((t.dtype for t in (x, w) if self._is_float(t)), self._storage())
        result = self._type(shape, stored)
        op = attn.LinearOp(x.value, w.value, DTYPES[self.accumulate], result, bias.value if bias else None)
        return self._emit(op, at)

    def add(self, left: Tensor, right: Tensor, *, at: Position | None = None) -> Tensor:
        """Element by element; dims of 1 are repeated."""
        shape = guard(at, lambda: shapes.broadcast(left.shape, right.shape))
        return self._emit(attn.AddOp(left.value, right.value, self._type(shape, left.dtype)), at)

    def multiply(self, left: Tensor, right: Tensor | float, *, at: Position | None = None) -> Tensor:
        """Element by element with a tensor (dims of 1 are repeated) or with a number."""
        if not isinstance(right, Tensor):
            return self._emit(attn.ScaleOp(left.value, right), at)
        shape = guard(at, lambda: shapes.broadcast(left.shape, right.shape))
        return self._emit(attn.MultiplyOp(left.value, right.value, self._type(shape, left.dtype)), at)

    def cast(self, x: Tensor, dtype: str, *, at: Position | None = None) -> Tensor:
        """Convert to another element type."""
        element_type(dtype, at)
        return self._emit(attn.CastOp(x.value, self._type(x.shape, dtype)), at)

    def heads(self, x: Tensor, heads: int, *, at: Position | None = None) -> Tensor:
        """[B, S, H * D] to [B, H, S, D]."""
        shape = guard(at, lambda: shapes.split_heads(x.shape, heads))
        return self._emit(attn.SplitHeadsOp(x.value, heads, self._type(shape, x.dtype)), at)

    def merge(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """[B, H, S, D] to [B, S, H * D]."""
        shape = guard(at, lambda: shapes.merge_heads(x.shape))
        return self._emit(attn.MergeHeadsOp(x.value, self._type(shape, x.dtype)), at)

    def features(self, x: Tensor, start: int, stop: int, *, at: Position | None = None) -> Tensor:
        """Features `start` up to, and without, `stop` of the last dim; nothing moves."""
        shape = guard(at, lambda: shapes.features(x.shape, start, stop))
        return self._emit(attn.FeaturesOp(x.value, start, self._type(shape, x.dtype)), at)

    def concat(self, *parts: Tensor, at: Position | None = None) -> Tensor:
        """[..., D] and [..., E] to [..., D + E]; a part [B, 1, S, D] is repeated for the heads of the others."""
        heads = max((part.shape[1] for part in parts if len(part.shape) == 4), default=1)
        parts = tuple(self._for_heads(part, heads, at) for part in parts)
        shape = guard(at, lambda: shapes.concat([part.shape for part in parts]))
        return self._emit(attn.ConcatOp([part.value for part in parts], self._type(shape, parts[0].dtype)), at)

    def _for_heads(self, x: Tensor, heads: int, at: Position | None) -> Tensor:
        """One head repeated for so many; others are left as they are."""
        if len(x.shape) != 4 or x.shape[1] != 1 or heads == 1:
            return x
        return self._emit(attn.CopyOp(x.value, self._type((x.shape[0], heads, *x.shape[2:]), x.dtype)), at)

    def paged(self, pool: Tensor, table: Tensor, *, keys: int | None = None, at: Position | None = None) -> Tensor:
        """Keys or values [B, KV, keys, D] that lie in blocks of a pool [blocks, KV, block, D], where an i32 table says.

        The table is [B, pages]; every page is full unless `keys` is given.
        """
        shape = guard(at, lambda: shapes.paged(pool.shape, table.shape, keys))
        return self._emit(attn.PagedOp(pool.value, table.value, self._type(shape, pool.dtype)), at)

    def append(self, cache: Tensor, new: Tensor, *, at: Position | None = None) -> Tensor:
        """Cached keys or values followed by new ones: [B, KV, P + S, D]."""
        shape = guard(at, lambda: shapes.append(cache.shape, new.shape))
        return self._emit(attn.AppendOp(cache.value, new.value, self._type(shape, cache.dtype)), at)

    def rope(
        self,
        x: Tensor,
        *,
        start: int = 0,
        base: float = 10000.0,
        dims: int | None = None,
        interleaved: bool = False,
        at: Position | None = None,
    ) -> Tensor:
        """Rotary position embedding; row s of x [B, H, S, D] has position start + s."""
        rotated = x.shape[-1] if dims is None and x.shape else dims or 0
        guard(at, lambda: shapes.rope(x.shape, rotated))
        return self._emit(attn.RopeOp(x.value, start, base, rotated, interleaved), at)

    def layernorm(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        epsilon: float = 1e-5,
        at: Position | None = None,
    ) -> Tensor:
        """Normalise over the last dim to mean 0 and deviation 1."""
        return self._norm(NormKind.LAYERNORM, x, weight, bias, epsilon, at)

    def rmsnorm(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        epsilon: float = 1e-6,
        at: Position | None = None,
    ) -> Tensor:
        """Divide by the root mean square over the last dim."""
        return self._norm(NormKind.RMSNORM, x, weight, bias, epsilon, at)

    def activation(self, kind: str, x: Tensor, *, at: Position | None = None) -> Tensor:
        """A pointwise function by name: gelu, gelu_tanh, silu, relu, sigmoid, tanh."""
        names = [str(member) for member in Activation]
        if kind not in names:
            suggestion = did_you_mean(kind, names) or f"the activations are {', '.join(names)}"
            raise FlatcError(f"unknown activation '{kind}'", position=at, help=suggestion)
        return self._emit(attn.ActivationOp(Activation(kind), x.value), at)

    def gelu(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """x * (1 + erf(x / sqrt 2)) / 2."""
        return self.activation("gelu", x, at=at)

    def gelu_tanh(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """The tanh approximation of gelu."""
        return self.activation("gelu_tanh", x, at=at)

    def silu(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """x * sigmoid(x)."""
        return self.activation("silu", x, at=at)

    def relu(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """max(x, 0)."""
        return self.activation("relu", x, at=at)

    def sigmoid(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """1 / (1 + exp(-x))."""
        return self.activation("sigmoid", x, at=at)

    def tanh(self, x: Tensor, *, at: Position | None = None) -> Tensor:
        """The hyperbolic tangent."""
        return self.activation("tanh", x, at=at)

    # Masks and biases, for those who hold a graph and nothing else

    causal = staticmethod(causal)
    window = staticmethod(window)
    prefix = staticmethod(prefix)
    first = staticmethod(first)
    chunk = staticmethod(chunk)
    valid = staticmethod(valid)
    same = staticmethod(same)
    alibi = staticmethod(alibi)
    t5_relative = staticmethod(t5_relative)

    # Inside

    def _norm(
        self,
        kind: NormKind,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        at: Position | None,
    ) -> Tensor:
        operands = (weight.value if weight else None, bias.value if bias else None)
        return self._emit(attn.NormOp(kind, x.value, epsilon, *operands), at)

    def _declare(self, kind: str, name: str, shape: Sequence[int], dtype: str | None, at: Position | None) -> Tensor:
        if name in self._arguments:
            raise FlatcError(f"'{name}' is declared twice", position=at, help="choose another name")
        sizes = tuple(shape)
        empty_cache = kind == "cache" and len(sizes) == 4 and sizes[2] == 0
        checked = (*sizes[:2], 1, sizes[3]) if empty_cache else sizes
        guard(at, lambda: shapes.check_sizes(checked))
        element = dtype or self.dtype
        element_type(element, at)
        argument = self._block.insert_arg(self._type(sizes, element), len(self._block.args))
        if at:
            argument.location = at.to_location()
        if SSAValue.is_valid_name(name):
            argument.name_hint = name
        self._arguments[name] = {"flat.name": StringAttr(name), "flat.kind": StringAttr(kind)}
        return Tensor(self, argument, sizes, element, name)

    def _emit(self, op: AttnOp, at: Position | None) -> Tensor:
        if self._module is not None:
            raise FlatcError(f"graph '{self.name}' is closed", help="call module() after the last operation")
        if at:
            op.location = at.to_location()
        try:
            guard(at, op.require)
        except FlatcError:
            op.erase()
            raise
        self._block.add_op(op)
        value = op.results[0]
        return Tensor(self, value, attn.shape_of(value), DTYPE_NAMES[attn.element_type_of(value)])

    def _check_owner(self, tensor: Tensor, at: Position | None) -> None:
        if tensor.graph is not self:
            raise FlatcError(
                f"a tensor of graph '{tensor.graph.name}' is used in graph '{self.name}'",
                position=at,
                help="declare it here as an input",
            )

    def _type(self, shape: Shape, dtype: str) -> TensorType[Attribute]:
        return TensorType(DTYPES[dtype], shape)

    def _is_float(self, tensor: Tensor) -> bool:
        return isinstance(DTYPES[tensor.dtype], AnyFloat)

    def _wider(self, q: Tensor, v: Tensor) -> str:
        """The wider of two storage types, the first of equals; integers hold no probabilities."""
        floats = [tensor.dtype for tensor in (q, v) if self._is_float(tensor)]
        return max(floats, key=lambda word: cast(AnyFloat, DTYPES[word]).bitwidth, default=self._storage())

    def _storage(self) -> str:
        return self.dtype if isinstance(DTYPES[self.dtype], AnyFloat) else self.softmax
