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
operators whose part no group names stay where they are. Softcap, biases and scales of keys go with what they follow:
the logit, or the mask part where there is no logit or a mask stands before them. Scales of values go with attend.

Keys and values in pages come with the table that says where these lie: the region takes it as one more argument.

A result that something else needs too has to go off chip, so a kernel ends there: where a graph returns its scores, or
two attentions share them, the operators behind read them again. No kernel has more than one result, and nothing is
computed twice. An operator that is no part of an attention (`gelu` on scores) ends a kernel likewise.

The pass knows nothing of accelerators and changes no numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import ClassVar

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, SSAValue
from xdsl.passes import ModulePass

from flatc.dialects.attn import AttendOp, AttnOp, LogitOp, MaskOp, ScaleColumnsOp, ScoreOp, SoftcapOp, SoftmaxOp
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.passes.kernels.fused_region import fuse_operators, unused_name
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


@frozen
class Link:
    """One operator of an attention and the part that it belongs to."""

    op: AttnOp
    part: str

    @property
    def result(self) -> SSAValue:
        """What the next operator of the chain reads."""
        return self.op.results[0]


@frozen
class AttentionChain:
    """The operators of one attention, in order; each reads the result of the one before."""

    links: tuple[Link, ...]


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
        if not isinstance(op, AttendOp):
            open_at[op.results[0]] = chain
    return [AttentionChain(tuple(chain)) for chain in chains]


def _part(op: AttnOp, before: str | None) -> str:
    """The part of an operator that follows one of part `before` in its chain."""
    match op:
        case LogitOp():
            return "logit"
        case SoftmaxOp():
            return "softmax"
        case AttendOp():
            return "attend"
        case ScaleColumnsOp() if before in ("softmax", "attend"):
            return "attend"
        case _:
            return "logit" if before == "logit" and not isinstance(op, MaskOp) else "mask"


def _goes_on(before: str, part: str) -> bool:
    """Whether a part may follow in the same chain; all but the softmax hold several operators."""
    if part != "softmax":
        return PARTS.index(before) <= PARTS.index(part)
    return PARTS.index(before) < PARTS.index(part)


# --- Plan -----------------------------------------------------------------------------------------------


@frozen
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
                suffix = f"_{number}" if len(chains) > 1 else ""
                for piece in split_where_used(tuple(run)):
                    kernels.append(Kernel(kernel_name(_part(link.op, None) for link in piece) + suffix, piece))
    return kernels


def split_where_used(links: Sequence[Link]) -> Iterator[tuple[Link, ...]]:
    """Runs of links in which every result is read by the next link, as its scores, and by nothing else.

    A softcap or scales behind a mask begin a run: they make what is hidden visible again, at minus the cap.
    """
    start, hides = 0, False
    for place, (link, following) in enumerate(pairwise(links), start=1):
        (first, *others) = link.result.uses
        hides = (hides or isinstance(link.op, MaskOp)) and not isinstance(link.op, SoftmaxOp)
        stays = not others and (first.operation, first.index) == (following.op, 0)
        if not stays or (hides and isinstance(following.op, SoftcapOp | ScaleColumnsOp)):
            yield tuple(links[start:place])
            start, hides = place, False
    yield tuple(links[start:])


def kernel_name(parts: Iterable[str]) -> str:
    """`attention` for the whole chain, otherwise its parts; a mask is not worth a mention."""
    there = set(parts)
    named = [part for part in PARTS if part in there and part != "mask"]
    return "attention" if named == ["logit", "softmax", "attend"] else "_".join(named) or "mask"


# --- Rewrite --------------------------------------------------------------------------------------------


def fuse(kernel: Kernel, name: str) -> FusedOp:
    """Move the operators of a kernel into a `flat.fused` where the last of them stands; tables of pages come along."""
    pages = [page for value in kernel.inputs() if (page := page_of(value)) is not None]
    return fuse_operators(name, [link.op for link in kernel.links], [page.table for page in pages])


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
        used = {fused.kernel.data for fused in op.walk() if isinstance(fused, FusedOp)}
        functions = [function for function in op.walk() if isinstance(function, FuncOp)]
        for function in functions:
            chains = [chain for block in function.body.blocks for chain in find_chains(block)]
            for kernel in plan_kernels(chains, groups):
                fuse(kernel, unused_name(kernel.name, used))
