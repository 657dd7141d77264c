"""One matrix product as a problem: y[m, n] = x[m, k] . w[k, n] + bias[n], read off a region or off a schedule.

The rows m are all dims of x but the last, taken together: a weight is the same for every batch and every token, so that
a tile of rows may hold tokens of several sequences. Where every head has a weight of its own, it is as many products
y[h, m, n] = x[h, m, k] . w[h, k, n], one after the other, whose rows are the tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import cast

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, SSAValue

from flatc.dialects.attn import LinearOp
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import (
    BufferType,
    KernelOp,
    LoadOp,
    MatmulOp,
    StoreOp,
    TensorRefType,
    TimedOp,
    VectorOp,
    timed_ops,
)
from flatc.passes.kernels.problem import type_bytes


@frozen
class ProductProblem:
    """Sizes of one product; bytes are per element. `bias_bytes` is None where there is no bias.

    `converts_output`: the result is stored in another type than it is summed up in. Of the `heads`, each has an x, a
    weight and a result of these sizes; more than one have no bias.
    """

    m: int
    n: int
    k: int
    x_bytes: int
    w_bytes: int
    bias_bytes: int | None
    accumulator_bytes: int
    output_bytes: int
    converts_output: bool = False
    heads: int = 1
    on_chip: frozenset[str] = frozenset()
    """Roles of its tensors that stay on chip between kernels."""

    @property
    def has_bias(self) -> bool:
        """Whether a bias is added."""
        return self.bias_bytes is not None

    @property
    def finishes(self) -> bool:
        """Whether the vector unit works on the sums before they are stored."""
        return self.has_bias or self.converts_output

    @property
    def own_result(self) -> bool:
        """Whether results have a buffer of their own: they are of another type than the sums."""
        return self.converts_output

    def least_macs(self) -> int:
        """All of them."""
        return self.heads * self.m * self.n * self.k

    def compulsory_bytes(self) -> dict[str, int]:
        """Each operand once, the result once."""
        heads = self.heads
        found = {"x": heads * self.m * self.k * self.x_bytes, "w": heads * self.k * self.n * self.w_bytes}
        if self.bias_bytes is not None:
            found["bias"] = self.n * self.bias_bytes
        return found | {"result": heads * self.m * self.n * self.output_bytes}

    def shape(self, role: str) -> tuple[int, ...]:
        """The shape of a tensor off chip as the kernel takes it; of several heads, one after the other."""
        shapes = {"x": (self.m, self.k), "w": (self.k, self.n), "bias": (1, self.n), "result": (self.m, self.n)}
        return shapes[role] if self.heads == 1 else (self.heads, *shapes[role])

    def least_vector_counts(self) -> dict[str, int]:
        """None: a machine may start its sums at the bias, and convert as it stores."""
        return {}

    def longest_sum(self) -> int:
        """Terms of one result."""
        return self.k + self.has_bias


def match_product(fused: FusedOp) -> tuple[ProductProblem, LinearOp]:
    """Recognises a region of one product. Raises `FlatcError` naming the operator that does not fit."""
    ops = fused.body_ops()
    linear = next(op for op in ops if isinstance(op, LinearOp))
    if len(ops) > 1:
        strange = next(op for op in ops if op is not linear)
        raise FlatcError(
            f"{strange.name} cannot be compiled yet: it shares kernel '{fused.kernel.data}' with a product",
            position=position_of(strange),
        )
    if list(fused.yield_op.values) != [linear.output]:
        raise FlatcError(
            f"{linear.name} cannot be compiled yet: kernel '{fused.kernel.data}' must give its result and nothing else",
            position=position_of(linear),
        )
    *rows, k = _shape(linear.x)
    heads = rows.pop(1) if linear.by_head else 1
    output, accumulator = _element(linear.output), linear.accumulator
    problem = ProductProblem(
        m=prod(rows),
        n=_shape(linear.w)[-1],
        k=k,
        x_bytes=type_bytes(_element(linear.x)),
        w_bytes=type_bytes(_element(linear.w)),
        bias_bytes=type_bytes(_element(linear.bias)) if linear.bias is not None else None,
        accumulator_bytes=type_bytes(accumulator),
        output_bytes=type_bytes(output),
        converts_output=accumulator != output,
        heads=heads,
    )
    return problem, linear


def _element(value: SSAValue) -> Attribute:
    return cast("TensorType[Attribute]", value.type).element_type


def _shape(value: SSAValue) -> Sequence[int]:
    return cast("TensorType[Attribute]", value.type).get_shape()


# --- Read back ----------------------------------------------------------------------------------------------


def read_product(kernel: KernelOp) -> tuple[ProductProblem, dict[str, SSAValue]] | None:
    """The problem and the tensors by role of a kernel that `product_nest` made; None if it is something else."""
    ops = list(timed_ops(kernel))
    loads = {op.writes[0]: op for op in ops if isinstance(op, LoadOp)}
    products = [op for op in ops if isinstance(op, MatmulOp)]
    vectors = [op for op in ops if isinstance(op, VectorOp)]
    stores = [op for op in ops if isinstance(op, StoreOp)]
    if len(products) != 1 or len(stores) != 1 or len(vectors) > 1 or len(ops) != len(loads) + 2 + len(vectors):
        return None
    (product,), (store,) = products, stores
    values = _tensors(product, vectors, store, loads)
    rank = product.batch_rank.data + 2
    if values is None or rank > 3 or any(len(_dims(value)) != rank for value in values.values()):
        return None
    (*heads, m, k), (*_, n) = _dims(values["x"]), _dims(values["w"])
    sums, result = cast(BufferType, product.writes[0].type), cast(TensorRefType, values["result"].type)
    problem = ProductProblem(
        m=m,
        n=n,
        k=k,
        x_bytes=_bytes(values["x"]),
        w_bytes=_bytes(values["w"]),
        bias_bytes=_bytes(values["bias"]) if "bias" in values else None,
        accumulator_bytes=sums.element_bytes,
        output_bytes=result.element_bytes,
        converts_output=sums.element_type != result.element_type,
        heads=prod(heads),
    )
    return (problem, values) if all(_dims(values[role]) == problem.shape(role) for role in values) else None


def _tensors(
    product: MatmulOp, vectors: Sequence[VectorOp], store: StoreOp, loads: dict[SSAValue, LoadOp]
) -> dict[str, SSAValue] | None:
    """The tensors by role, if the operations are connected as in a product's kernel."""
    if product.transposed is not None or product.scale is not None:
        return None
    buffers = {"x": product.reads[0], "w": product.reads[1]}
    before: TimedOp = product
    for vector in vectors:
        if vector.reads[0] is not product.writes[0] or vector.kind.data not in ("add", "cast"):
            return None
        if vector.kind.data == "add":
            buffers["bias"] = vector.reads[1]
        before = vector
    if store.reads[0] is not before.writes[0] or set(buffers.values()) != set(loads):
        return None
    found = {role: loads[buffer].tensor for role, buffer in buffers.items()} | {"result": store.tensor}
    return {role: tensor for role, tensor in found.items() if tensor is not None}


def _dims(tensor: SSAValue) -> tuple[int, ...]:
    return cast(TensorRefType, tensor.type).dims


def _bytes(tensor: SSAValue) -> int:
    return cast(TensorRefType, tensor.type).element_bytes
