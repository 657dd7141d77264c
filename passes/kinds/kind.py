"""What a kind of kernel has to bring, so that every pass and report can treat all kernels alike.

A kind recognises its regions, and knows their problem, their mappings, their loop nest and their price:

    flat.fused  --match-->  Region(problem, values by role)         fuse
    problem     --find--->  Choices of mappings, best first         tile
    mapping     --build-->  operations on tensors by role           lower
    mapping     --price-->  ClosedForm                              cost
    spatial.kernel  --read_back-->  Part(problem, values by role)   report, explain

`registry` lists the kinds. Tensors are named by role: what is written has a role that begins with `result`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, cast

from typing_extensions import TypeVar
from xdsl.ir import Operation, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.bounds import AnyProblem
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.kernels.kept_results import roles_on_chip
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.mapping.search import Choice, Objective

P = TypeVar("P", bound=AnyProblem, default=AnyProblem)
M = TypeVar("M", bound=KernelMapping, default=KernelMapping)


@frozen
class Region(Generic[P]):
    """A region of `flat.fused`, read by its kind: the problem, and by role the values it takes and yields.

    Tensors [B, H, S, D] whose role is in `by_head` are taken as [H, B * S, D].
    """

    problem: P
    values: dict[str, SSAValue]
    by_head: frozenset[str] = frozenset()


class KernelKind(ABC, Generic[P, M]):
    """One kind of kernel; the module docstring shows where each method is used."""

    name: ClassVar[str]
    problem_type: type[P]
    mapping_type: type[M]

    # --- Regions ------------------------------------------------------------------------------------------

    @abstractmethod
    def computes(self, ops: Sequence[Operation]) -> bool:
        """Whether a region of these operators is of this kind; a region that is and has a fault is refused later."""

    @abstractmethod
    def match(self, fused: FusedOp) -> Region[P]:
        """Reads a region. Raises `FlatcError` naming the operator that cannot be compiled."""

    def region(self, fused: FusedOp) -> Region[P]:
        """`match`, with what of its tensors stays on chip between kernels."""
        found = self.match(fused)
        kept = roles_on_chip(fused, found.values)
        return replace(found, problem=replace(cast(Any, found.problem), on_chip=kept)) if kept else found

    # --- Mappings -----------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, problem: P, mapping: M, accelerator: Accelerator, kernel: str) -> None:
        """Raises `FlatcError` with the first rule that a mapping breaks, apart from memory and timing."""

    @abstractmethod
    def find(
        self, problem: P, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
    ) -> list[Choice[M]]:
        """The mappings worth simulating, best by closed form first. Raises `FlatcError` if none fits the machine."""

    @abstractmethod
    def shortened(self, problem: P, mapping: M) -> P:
        """A problem of the same kind with few tiles of each dimension, to judge a mapping by."""

    # --- Schedules ----------------------------------------------------------------------------------------

    @abstractmethod
    def tensor_shapes(self, problem: P) -> dict[str, tuple[int, ...]]:
        """The shape that `build` wants each tensor off chip in, by role: a view of the shape it has."""

    @abstractmethod
    def build(self, fused: FusedOp, problem: P, mapping: M, tensors: Mapping[str, SSAValue]) -> list[Operation]:
        """The operations of the kernel's body. `problem` may be another of the same kind than the region's own."""

    # --- Costs --------------------------------------------------------------------------------------------

    @abstractmethod
    def price(self, problem: P, accelerator: Accelerator, mapping: M) -> ClosedForm:
        """The closed form of one mapping: columns of one entry."""

    def least_cycles(self, problem: P, accelerator: Accelerator, mapping: M) -> float:
        """A latency below which no simulation of a mapping comes, but most come near; 0 where none is known."""
        return 0.0

    @abstractmethod
    def read_back(self, kernel: KernelOp) -> Part | None:
        """What a kernel of a schedule computes; None if it is not of this kind."""

    # --- Words --------------------------------------------------------------------------------------------

    @abstractmethod
    def corner(self, problem: P, mapping: M) -> str:
        """The name of the corner of the map space that a mapping lies in, for the report."""

    def beyond(self, problem: P, mapping: M) -> tuple[str, ...]:
        """What a mapping does that the strategies of its corner do not, in words."""
        return ()

    def live_elements(self, problem: P, mapping: M) -> int | None:
        """FLAT's live footprint, where there is one."""
        return None

    def mapping_of(self, kernel: FusedOp | KernelOp) -> M:
        """The mapping of a kernel. Raises `FlatcError` if it has none, or one of another kind."""
        name = (kernel.kernel if isinstance(kernel, FusedOp) else kernel.label).data
        if kernel.mapping is None:
            raise FlatcError(
                f"kernel '{name}' has no mapping",
                position=position_of(kernel),
                help="run tile-attention before lower-to-spatial",
            )
        return self.own(kernel.mapping.data, name)

    def own(self, mapping: KernelMapping, kernel: str) -> M:
        """A mapping, if it is one of this kind. Raises `FlatcError` otherwise."""
        if not isinstance(mapping, self.mapping_type):
            raise FlatcError(
                f"kernel '{kernel}' is of the kind {self.name}, and its mapping is of another: {mapping.to_text()}",
                help="compile without --mapping and edit what the report prints",
            )
        return mapping
