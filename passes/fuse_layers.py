"""`fuse-layers`: put what stands around attention into regions that each run as one kernel.

It runs after `fuse-attention`. Every matrix product becomes a kernel, with its bias; every chain of vector operators
becomes one, so that what one of them computes goes to the next without leaving the chip:

    %y = attn.linear %x, %w ...                %y = flat.fused "linear_w" (%a = %x, %b = %w) { attn.linear ... }
    %s = attn.add %x, %y ...           -->     %n = flat.fused "add_norm" (%a = %x, %b = %y) {
    %n = attn.norm layernorm %s ...              %s = attn.add %a, %b ...
                                                 %t = attn.norm layernorm %s ...
                                                 flat.yield %t
                                               }

Appending to a cache is a kernel too, which copies, unless what is appended comes straight from another kernel: then
that one stores into the cache. So it is with the parts of `attn.concat`: each is stored in place by the kernel that
computes it, and what no kernel computes is copied there:

    %t = attn.concat %q, %r ...        -->     %c = flat.fused "copy_q" (%a = %q) { attn.copy %a ... }
                                               %t = attn.concat %c, %r ...

A chain goes on to the first operator that uses its result, and runs where its last operator stands; what others use
later, such as the sum that a residual connection takes around a norm and a feed-forward, is a result of the kernel too.
Of two chains that meet, the first goes on. Splitting and merging heads stays where it is: it moves nothing, and
`lower-to-spatial` makes views of it.

Kernels are named by what they do, products by their weight, appending by the cache; the second of a name is `name_1`.
The pass knows nothing of accelerators and changes no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass

from flatc.dialects.attn import ActivationOp, AppendOp, ConcatOp, CopyOp, LinearOp, NormOp
from flatc.dialects.attn_op import AttnOp
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.passes.kernels.fused_region import fuse_operators, unused_name
from flatc.passes.kernels.keyed_storage import page_of
from flatc.passes.kernels.placement import stored_in
from flatc.passes.kernels.vector_region import CHAIN_OPS


@frozen
class LayerKernel:
    """Operators that become one `flat.fused`, in program order."""

    name: str
    ops: tuple[AttnOp, ...]
    beside: tuple[SSAValue, ...] = ()
    """What the kernel needs and no operator reads: the table of pages that rows are appended to."""


# --- Find -----------------------------------------------------------------------------------------------


def find_kernels(block: Block) -> list[LayerKernel]:
    """The products and the chains of vector operators of a block."""
    found: list[LayerKernel] = []
    taken: set[Operation] = set()
    for op in block.ops:
        if isinstance(op, LinearOp):
            found.append(LayerKernel(_name("linear", op.w), (op,)))
        elif isinstance(op, AppendOp) and stored_in(op.new) is not op:
            page = page_of(op.cache)
            beside = () if page is None else (page.table,)
            found.append(LayerKernel(_name("append", op.cache if page is None else page.pool), (op,), beside))
        elif isinstance(op, CopyOp):
            found.append(LayerKernel(_name("copy", op.x), (op,)))
        elif isinstance(op, CHAIN_OPS) and op not in taken:
            chain = _chain(op, taken)
            taken.update(chain)
            found.append(LayerKernel("_".join(_short_name(link) for link in chain), tuple(chain)))
    return found


def _chain(first: AttnOp, taken: set[Operation]) -> list[AttnOp]:
    """The operators from `first` on, each the first to use the one before."""
    chain = [first]
    while isinstance(following := _first_user(chain[-1]), CHAIN_OPS):
        if following in taken or following.shape() != first.shape() or not _may_move(chain, following):
            break
        chain.append(following)
    return chain


def _first_user(op: AttnOp) -> Operation | None:
    """The operator that uses a result first, in program order."""
    users = [use.operation for use in op.results[0].uses]
    return next((user for user in users if all(user is o or user.is_before_in_block(o) for o in users)), None)


def _may_move(chain: Sequence[AttnOp], last: AttnOp) -> bool:
    """Whether a chain may run where `last` stands: whatever else uses its results comes later."""
    users = {use.operation for op in chain for use in op.results[0].uses} - {*chain, last}
    return all(last.is_before_in_block(user) for user in users)


def _name(kind: str, value: SSAValue) -> str:
    return f"{kind}_{value.name_hint}" if value.name_hint else kind


def _short_name(op: AttnOp) -> str:
    kind = op.kind.data.value if isinstance(op, NormOp | ActivationOp) else None
    return kind or op.name.removeprefix("attn.")


# --- Rewrite --------------------------------------------------------------------------------------------


def copy_parts(block: Block) -> None:
    """Puts a copy in front of what is joined and that no kernel can store in place."""
    for op in [op for op in block.ops if isinstance(op, ConcatOp)]:
        for index, part in enumerate(op.parts):
            if stored_in(part) is op and part not in op.parts[:index]:
                continue
            copy = CopyOp(part, part.type)
            copy.location, copy.result.name_hint = op.location, part.name_hint
            block.insert_op_before(copy, op)
            op.operands[index] = copy.result


@dataclass(frozen=True)
class FuseLayersPass(ModulePass):
    """Wrap the operators around attention into `flat.fused` regions; see the module docstring."""

    name = "fuse-layers"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        used = {fused.kernel.data for fused in op.walk() if isinstance(fused, FusedOp)}
        for function in [function for function in op.walk() if isinstance(function, FuncOp)]:
            for block in function.body.blocks:
                copy_parts(block)
                for kernel in find_kernels(block):
                    fuse_operators(unused_name(kernel.name, used), kernel.ops, kernel.beside)
