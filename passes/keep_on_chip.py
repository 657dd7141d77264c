"""Let results stay on chip for the kernels that use them: `keep-on-chip`, after `tile-attention`.

    %h = flat.fused "up" (%a = %x, ...) strategy "auto" mapping #flat.mapping<...> {...}
    %y = flat.fused "down" (%a = %h, ...) strategy "auto" mapping #flat.mapping<...> {...}

    %h = flat.fused "up" (%a = %x, ...) on_chip [0] strategy "auto" mapping #flat.mapping<...> {...}

A result can stay if nothing but kernels reads it: outputs of the graph and what is appended to a cache go off chip. It
lies in the buffer as a whole, from the kernel that makes it to the last one that reads it, beside the tiles of every
kernel in between. What fits is taken in the order of bytes saved for each byte held, kernel by kernel. With the same
mappings nothing gets slower: a copy on chip takes no longer than the transfer that it stands for, or nothing is kept.

The pass leaves mappings as they are, so that what it decides follows from them, and a file of mappings brings back the
same schedule. `tile_again` asks whether other mappings, with less of the buffer and with tensors that cost little to
read again, are better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, IntAttr, ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, SSAValue
from xdsl.passes import ModulePass

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.frozen import frozen
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.spatial_types import TensorRefType
from flatc.passes.cost.bounds import AnyProblem
from flatc.passes.kernels.kept_results import heights, outside_values, source_of, users_of
from flatc.passes.kinds.registry import kind_of
from flatc.passes.mapping.ranking import Ranking, in_turn
from flatc.passes.mapping.search import Choice, NothingFits
from flatc.passes.tile_attention import KernelSearch


@dataclass(frozen=True)
class KeepOnChipPass(ModulePass):
    """See the module docstring."""

    name = "keep-on-chip"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        keep_what_fits(op)


@frozen
class Candidate:
    """A result that could stay: its bytes, the kernels by number that make it and read it last."""

    result: SSAValue
    bytes: int
    first: int
    last: int

    @property
    def held(self) -> int:
        """Bytes times kernels."""
        return self.bytes * (self.last - self.first + 1)

    @property
    def tensor(self) -> tuple[int, int, int]:
        """What `kept_results.places` wants to know."""
        return self.bytes, self.first, self.last


def keep_what_fits(module: ModuleOp) -> None:
    """Marks, in place, the results that stay on chip beside the tiles of the mappings that kernels have."""
    accelerator = accelerator_of(module)
    for function in module.ops:
        if isinstance(function, FuncOp):
            program = _Program(function, accelerator)
            program.keep(program.fitting())


def tile_again(module: ModuleOp, search: KernelSearch) -> dict[str, Choice[KernelMapping]]:
    """Keeps what fits; takes other mappings where further searches find that these and what they let stay are better.

    These searches take it that what fits into a share of the buffer stays, and leave kernels the rest. Gives the
    choices of the kernels if they have other mappings now.
    """
    found: dict[str, Choice[KernelMapping]] = {}
    for function in module.ops:
        if isinstance(function, FuncOp):
            found |= _Retiling(_Program(function, search.accelerator), search).better()
    return found


class _Program:
    """The kernels of a function that all have mappings, in order, and the results of theirs that could stay."""

    def __init__(self, function: FuncOp, accelerator: Accelerator):
        self.accelerator = accelerator
        self.kernels = [op for op in function.body.block.ops if isinstance(op, FusedOp)]
        self.candidates = list(self._candidates()) if _copies_cost_no_more(accelerator) else []

    def _candidates(self) -> list[Candidate]:
        number = {kernel: place for place, kernel in enumerate(self.kernels)}
        found: list[Candidate] = []
        for kernel in self.kernels:
            for result in kernel.results:
                users = users_of(result)
                if users:
                    last = max(number[user] for user in users)
                    found.append(Candidate(result, _bytes(result), number[kernel], last))
        return found

    def keep(self, chosen: Sequence[Candidate]) -> None:
        """Marks what stays, and nothing else."""
        results = [candidate.result for candidate in chosen]
        for kernel in self.kernels:
            kernel.keep(results)

    def heights(self, chosen: Sequence[Candidate]) -> list[int]:
        """What stays takes so many bytes while each kernel runs, gaps included."""
        return heights([candidate.tensor for candidate in chosen], len(self.kernels))

    # --- What fits ------------------------------------------------------------------------------------------

    def fitting(self) -> list[Candidate]:
        """What fits beside the tiles of the kernels' mappings."""
        if not self.candidates:
            return []
        capacity, saved = self.accelerator.buffer.capacity_bytes, dict[SSAValue, int]()
        room: list[int] = []
        for kernel in self.kernels:
            kind = kind_of(kernel)
            region = kind.match(kernel)
            form = kind.price(region.problem, self.accelerator, kind.mapping_of(kernel))
            room.append(capacity - int(form.peak_buffer_bytes[0]))
            for role, value in outside_values(kernel, region.values).items():
                source = source_of(value)
                saved[source] = saved.get(source, 0) + int(form.tensor_bytes[role][0])
        return self._packed([(saved[one.result] / one.held, one) for one in self.candidates], room)

    def fitting_into(self, share: float) -> list[Candidate]:
        """What fits into a share of the buffer, whatever the mappings, if each user reads all of it once."""
        room = [int(self.accelerator.buffer.capacity_bytes * share)] * len(self.kernels)
        moved = [(1 + len(users_of(one.result) or ())) * one.bytes for one in self.candidates]
        return self._packed([(size / one.held, one) for size, one in zip(moved, self.candidates, strict=True)], room)

    def _packed(self, worth: Sequence[tuple[float, Candidate]], room: Sequence[int]) -> list[Candidate]:
        """Candidates in the order of their worth as long as kernels have room for their bytes and gaps."""
        left, chosen = list(room), list[tuple[float, Candidate]]()
        for value, one in sorted(worth, key=lambda pair: -pair[0]):
            alive = range(one.first, one.last + 1)
            if all(one.bytes <= left[number] for number in alive):
                chosen.append((value, one))
                for number in alive:
                    left[number] -= one.bytes
        return self._without_gaps(chosen, room)

    def _without_gaps(self, chosen: list[tuple[float, Candidate]], room: Sequence[int]) -> list[Candidate]:
        """Candidates that have places within the room: where gaps between them take too much, the least is left out."""
        while True:
            kept = sorted((one for _, one in chosen), key=self.candidates.index)
            tops = self.heights(kept)
            over = next((number for number, top in enumerate(tops) if top > max(room[number], 0)), None)
            if over is None:
                return kept
            chosen.remove(min((pair for pair in chosen if pair[1].first <= over <= pair[1].last), key=lambda p: p[0]))


SHARES = (0.5, 0.75)
"""Shares of the buffer that further searches leave to tensors which stay."""


class _Retiling:
    """One program: its mappings and what stays beside them, against those of further searches."""

    def __init__(self, program: _Program, search: KernelSearch):
        self.program, self.search = program, search

    def better(self) -> dict[str, Choice[KernelMapping]]:
        """Leaves the program with the best of all; the choices that are new."""
        program = self.program
        program.keep(program.fitting())
        found: dict[str, Choice[KernelMapping]] = {}
        best, cost, seen = self._state(), None, [list[Candidate]()]
        for assumed in map(program.fitting_into, SHARES):
            if assumed in seen:
                continue
            cost = cost or self._cost()
            seen.append(assumed)
            try:
                choices = self._search(assumed)
            except NothingFits:
                continue
            program.keep(program.fitting())
            if (new := self._cost()) < cost:
                best, cost, found = self._state(), new, choices
        for kernel, state in zip(program.kernels, best, strict=True):
            kernel.on_chip, kernel.mapping, kernel.strategy = state
        return found

    def _state(self) -> list[tuple[ArrayAttr[IntAttr] | None, MappingAttr | None, StringAttr | None]]:
        """What has been decided about each kernel."""
        return [(kernel.on_chip, kernel.mapping, kernel.strategy) for kernel in self.program.kernels]

    def _search(self, assumed: Sequence[Candidate]) -> dict[str, Choice[KernelMapping]]:
        """Gives kernels the best mappings beside these results, equal ones equal mappings. Raises `NothingFits`."""
        program, reserved = self.program, dict[AnyProblem, int]()
        program.keep(assumed)
        problems = [kind_of(kernel).region(kernel).problem for kernel in program.kernels]
        for problem, top in zip(problems, program.heights(assumed), strict=True):
            reserved[problem] = max(top, reserved.get(problem, 0))
        return {
            kernel.kernel.data: self.search.attach(kernel, reserved[problem])
            for kernel, problem in zip(program.kernels, problems, strict=True)
        }

    def _cost(self) -> Ranking:
        """The objectives, in order, of all kernels one after the other."""
        return in_turn([self.search.judged(kernel) for kernel in self.program.kernels], self.search.objective)


def _copies_cost_no_more(accelerator: Accelerator) -> bool:
    """Whether a copy on chip takes neither more time nor more energy than a transfer off chip."""
    copied, offchip, buffer = accelerator.cycles_per_byte_copied, accelerator.offchip, accelerator.buffer
    energy = max(buffer.read_energy_pj_per_byte, buffer.write_energy_pj_per_byte)
    faster = copied <= min(accelerator.cycles_per_byte_read, accelerator.cycles_per_byte_written)
    return faster and energy <= offchip.energy_pj_per_byte


def _bytes(value: SSAValue) -> int:
    tensor = cast("TensorType[Attribute]", value.type)
    return TensorRefType(tensor.get_shape(), tensor.element_type).bytes
