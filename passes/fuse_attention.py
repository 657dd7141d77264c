"""`fuse-attention`: put the operators of an attention into regions that each run as one kernel.

The whole of an attention is one kernel by default, so that scores and probabilities stay on chip:

    %s = attn.logit %q, %k ...                 %o = flat.fused "attention" (%a = %q, %b = %k, %c = %v) {
    %m = attn.mask %s by <causal> ...    -->     %s = attn.logit %a, %b ...
    %p = attn.softmax %m ...                     %m = attn.mask %s by <causal> ...
    %o = attn.attend %p, %v ...                  %p = attn.softmax %m ...
                                                 %y = attn.attend %p, %c ...
                                                 flat.yield %y
                                               }

An attention is a chain `logit -> mask -> softmax -> attend`, or a part of one: a softmax on its own is a
chain too. The option `groups` says which parts share a kernel; `groups="logit","mask+softmax","attend"`
makes the three kernels of an unfused attention. A part that a chain lacks is left out of its group, and
operators whose part no group names stay where they are. Softcap and biases go with what they follow: the
logit, or the mask part where there is no logit or a mask stands before them.

Keys and values in pages come with the table that says where these lie: the region takes it as one more argument.

The pass knows nothing of accelerators and changes no numbers. It refuses, with a `FlatcError`, to fuse what
cannot stay on chip: a result inside of a group that something outside of it uses as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import ClassVar

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.utils.hints import isa

from flatc.dialects.attn import SCORE_OPS, AttendOp, AttnOp, LogitOp, MaskOp, ScoreOp, SoftmaxOp, shape_of
from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.flat import FusedOp
from flatc.passes.kernels.fused_region import fuse_operators
from flatc.passes.kernels.keyed_storage import page_of

PARTS = ("logit", "mask", "softmax", "attend")
"""The parts of an attention, in the order of the chain."""

Group = tuple[str, ...]
"""Parts that share a kernel: a run of `PARTS`."""

WHOLE = "+".join(PARTS)


# --- Options --------------------------------------------------------------------------------------------


def parse_groups(texts: Sequence[str]) -> tuple[Group, ...]:
    """Groups from their text, such as `mask+softmax`; raises `FlatcError` for what is not a grouping."""
    if not texts:
        raise FlatcError("fuse-attention: no groups are given", help=f'the default is groups="{WHOLE}"')
    groups = tuple(_parse_group(text) for text in texts)
    owner: dict[str, str] = {}
    for text, group in zip(texts, groups, strict=True):
        for part in group:
            if part in owner:
                raise FlatcError(
                    f"fuse-attention: '{part}' is in two groups, '{owner[part]}' and '{text}'",
                    help="name each part once",
                )
            owner[part] = text
    return groups


def _parse_group(text: str) -> Group:
    parts = tuple(part.strip() for part in text.split("+"))
    for part in parts:
        if part not in PARTS:
            help = did_you_mean(part, PARTS) or f"the parts are {', '.join(PARTS)}"
            raise FlatcError(f"fuse-attention: unknown part '{part}' in group '{text}'", help=help)
    places = sorted(PARTS.index(part) for part in set(parts))
    run = PARTS[places[0] : places[-1] + 1]
    if parts != run:
        raise FlatcError(
            f"fuse-attention: group '{text}' is not a run of the chain {' -> '.join(PARTS)}",
            help=f"write '{'+'.join(run)}', or several groups",
        )
    return parts


# --- Match ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One operator of an attention and the part that it belongs to."""

    op: AttnOp
    part: str

    @property
    def result(self) -> SSAValue:
        """What the next operator of the chain reads."""
        return self.op.results[0]


@dataclass(frozen=True)
class AttentionChain:
    """The operators of one attention, in order; each reads the result of the one before."""

    links: tuple[Link, ...]

    @property
    def anchor(self) -> Link | None:
        """The first link that is not a change to scores; without one, this is no attention."""
        return next((link for link in self.links if not isinstance(link.op, ScoreOp)), None)


def find_chains(block: Block) -> list[AttentionChain]:
    """The attentions of a block, in program order. Where a result has several users, the first goes on."""
    chains: list[list[Link]] = []
    open_at: dict[SSAValue, list[Link]] = {}
    for op in block.ops:
        if not isinstance(op, LogitOp | ScoreOp | SoftmaxOp | AttendOp):
            continue
        chain = None if isinstance(op, LogitOp) else open_at.get(op.operands[0])
        part = _part(op, chain[-1].part if chain else None)
        if chain is not None and _goes_on(chain[-1].part, part):
            del open_at[op.operands[0]]
        else:
            chain = list[Link]()
            chains.append(chain)
        chain.append(Link(op, part))
        if part != "attend":
            open_at[op.results[0]] = chain
    found = [AttentionChain(tuple(chain)) for chain in chains]
    return [chain for chain in found if chain.anchor is not None]


def _part(op: AttnOp, before: str | None) -> str:
    """The part of an operator that follows one of part `before` in its chain."""
    match op:
        case LogitOp():
            return "logit"
        case SoftmaxOp():
            return "softmax"
        case AttendOp():
            return "attend"
        case _:
            return "logit" if before == "logit" and not isinstance(op, MaskOp) else "mask"


def _goes_on(before: str, part: str) -> bool:
    """Whether a part may follow in the same chain; logit and mask hold several operators."""
    if part in ("logit", "mask"):
        return PARTS.index(before) <= PARTS.index(part)
    return PARTS.index(before) < PARTS.index(part)


# --- Plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A run of a chain that becomes one `flat.fused`."""

    name: str
    links: tuple[Link, ...]

    def inputs(self) -> list[SSAValue]:
        """What the operators read from outside, in the order of first use."""
        inside = {link.result for link in self.links}
        operands = (operand for link in self.links for operand in link.op.operands)
        return list(dict.fromkeys(operand for operand in operands if operand not in inside))


def plan_kernels(chains: Sequence[AttentionChain], groups: Sequence[Group]) -> list[Kernel]:
    """The kernels to make. They are numbered by attention where a function has several."""
    group_of = {part: group for group in groups for part in group}
    kernels: list[Kernel] = []
    for number, chain in enumerate(chains):
        for group, run in groupby(chain.links, key=lambda link: group_of.get(link.part)):
            if group is not None:
                links = tuple(run)
                suffix = f"_{number}" if len(chains) > 1 else ""
                kernels.append(Kernel(kernel_name({link.part for link in links}) + suffix, links))
    return kernels


def kernel_name(parts: Iterable[str]) -> str:
    """`attention` for the whole chain, otherwise its parts; a mask is not worth a mention."""
    named = [part for part in PARTS if part in parts and part != "mask"]
    return "attention" if named == ["logit", "softmax", "attend"] else "_".join(named) or "mask"


# --- Refuse ---------------------------------------------------------------------------------------------


def check_kernel(kernel: Kernel, groups: Sequence[Group]) -> None:
    """Raise `FlatcError` if a result inside the kernel is needed outside of it."""
    inside = [link.op for link in kernel.links]
    for link, following in pairwise(kernel.links):
        users = [use.operation for use in link.result.uses if use.operation not in inside]
        if users:
            help = "drop the other use"
            if link.part != following.part:
                help += f", or end the kernel there with groups={_split_after(link.part, groups)}"
            raise _used_outside(link, following, _first(users), help)


def _split_after(part: str, groups: Sequence[Group]) -> str:
    """The option `groups` with the group of a part cut in two behind it."""
    texts: list[str] = []
    for group in groups:
        cut = group.index(part) + 1 if part in group else len(group)
        texts += ["+".join(piece) for piece in (group[:cut], group[cut:]) if piece]
    return ",".join(f'"{text}"' for text in texts)


def _first(users: Sequence[Operation]) -> Operation:
    """The user that stands first in the program."""
    return next((user for user in users if all(user is o or user.is_before_in_block(o) for o in users)), users[0])


def _used_outside(link: Link, following: Link, user: Operation, help: str) -> FlatcError:
    place = position_of(user)
    return FlatcError(
        f"{link.op.name} cannot be fused with {following.op.name}: its result would have to stay on chip, "
        f"and {_described(user, link.result)}",
        position=position_of(link.op),
        notes=[f"the other use is at {place}"] if place else [],
        help=help,
    )


def _described(user: Operation, value: SSAValue) -> str:
    if not isinstance(user, ReturnOp):
        return f"{user.name} uses it as well"
    function = user.parent_op()
    names = function.attributes.get("flat.names") if function else None
    if not isa(names, ArrayAttr[StringAttr]):
        return "the function returns it"
    return f"the graph returns it as '{names.data[list(user.operands).index(value)].data}'"


def check_chain(chain: AttentionChain, groups: Sequence[Group]) -> None:
    """Raise `FlatcError` if unknown operators keep a chain from what it would share a kernel with."""
    anchor = chain.anchor
    if anchor is None or isinstance(anchor.op, LogitOp):
        return
    for between, source in _unknown_producers(anchor.op.operands[0]):
        part = _part(source, None)
        if any({part, anchor.part} <= set(group) for group in groups) and part != anchor.part:
            known = "between them may stand " + ", ".join(op.name for op in SCORE_OPS)
            raise FlatcError(
                f"{between.name} stands between {source.name} and {anchor.op.name}, which cannot be fused over it",
                position=position_of(between),
                notes=[known] if isinstance(source, LogitOp) else [],
                help=f"leave {part} and {anchor.part} in separate groups, or drop {between.name}",
            )


def _unknown_producers(value: SSAValue) -> Iterator[tuple[AttnOp, LogitOp | SoftmaxOp]]:
    """The operators that made a value out of scores or probabilities of the same shape, with their source."""
    seen: set[SSAValue] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        producer = current.owner
        if current in seen or not isinstance(producer, AttnOp) or isinstance(producer, LogitOp | SoftmaxOp | AttendOp):
            continue
        seen.add(current)
        for operand in producer.operands:
            if shape_of(operand) == shape_of(value):
                if isinstance(operand.owner, LogitOp | SoftmaxOp):
                    yield producer, operand.owner
                pending.append(operand)


# --- Rewrite --------------------------------------------------------------------------------------------


def fuse(kernel: Kernel) -> FusedOp:
    """Move the operators of a kernel into a `flat.fused` where the last of them stands; tables of pages come along."""
    pages = [page for value in kernel.inputs() if (page := page_of(value)) is not None]
    return fuse_operators(kernel.name, [link.op for link in kernel.links], [page.table for page in pages])


@dataclass(frozen=True)
class FuseAttentionPass(ModulePass):
    """Wrap the attentions of every function into `flat.fused` regions; see the module docstring."""

    name: ClassVar[str] = "fuse-attention"

    groups: tuple[str, ...] = (WHOLE,)

    def __post_init__(self) -> None:
        parse_groups(self.groups)

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        groups = parse_groups(self.groups)
        functions = [function for function in op.walk() if isinstance(function, FuncOp)]
        for function in functions:
            chains = [chain for block in function.body.blocks for chain in find_chains(block)]
            kernels = plan_kernels(chains, groups)
            for kernel in kernels:
                check_kernel(kernel, groups)
            for chain in chains:
                check_chain(chain, groups)
            for kernel in kernels:
                fuse(kernel)
