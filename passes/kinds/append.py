"""Appending rows to a cache and other copies as a kind of kernel, where no kernel could store the rows there itself."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import replace
from math import prod

from typing_extensions import override
from xdsl.ir import Operation, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.append_mapping import TILED, AppendMapping
from flatc.dialects.attn import AppendOp, CopyOp
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.primitive_costs import Work, ceil_divide, energy_pj
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.kernels.append_rows import (
    AppendProblem,
    build_append,
    match_append,
    read_append,
    rows_of,
)
from flatc.passes.kernels.keyed_storage import PAGE_BYTES, pages_of
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.kinds.kind import KernelKind, Region
from flatc.passes.mapping.map_space import tile_sizes
from flatc.passes.mapping.search import OBJECTIVES, Choice, NothingFits, Objective


class AppendKind(KernelKind[AppendProblem, AppendMapping]):
    """See `kind` for what the methods do, and `append_rows` for the loop nest."""

    name = "append"
    problem_type = AppendProblem
    mapping_type = AppendMapping

    @override
    def computes(self, ops: Sequence[Operation]) -> bool:
        return any(isinstance(op, AppendOp | CopyOp) for op in ops)

    @override
    def match(self, fused: FusedOp) -> Region[AppendProblem]:
        problem, op = match_append(fused)
        values = {"new": rows_of(op), "result": op.result}
        pages = pages_of(fused, op.cache, None) if isinstance(op, AppendOp) else None
        return Region(problem, values if pages is None else values | {"pages": pages.table})

    @override
    def check(self, problem: AppendProblem, mapping: AppendMapping, accelerator: Accelerator, kernel: str) -> None:
        for name, tile, size in zip(TILED, mapping.tiles, problem.shape, strict=False):
            if tile > size:
                raise FlatcError(f"{kernel}: the tile of {name} is {tile}, and there are only {size}")
        if not problem.keeps_to_pages(mapping.row):
            raise FlatcError(
                f"{kernel}: tiles of {mapping.row} rows behind {problem.old} cut through pages of {problem.block}",
                help="use tiles that begin with a page or lie within one, as one row does",
            )
        if problem.repeated and mapping.head > 1:
            raise FlatcError(f"{kernel}: one head is loaded, and the tile of head is {mapping.head}", help="make it 1")

    @override
    def find(
        self, problem: AppendProblem, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
    ) -> list[Choice[AppendMapping]]:
        capacity = accelerator.buffer.capacity_bytes
        space = _space(problem, accelerator)
        fitting = [mapping for mapping in space if _peak_bytes(problem, mapping) <= capacity]
        if not fitting:
            least = min(_peak_bytes(problem, mapping) for mapping in space)
            raise NothingFits(
                f"{kernel}: no tile of the rows fits the {capacity} bytes of {accelerator.name}'s buffer; "
                f"the smallest needs {least}",
                help="give the accelerator a larger buffer",
            )
        ranked = [(self._ranking(problem, accelerator, mapping, objective), mapping) for mapping in fitting]
        ranked.sort(key=lambda pair: pair[0])
        return [Choice(mapping, strategy, len(space), len(fitting), ranking) for ranking, mapping in ranked]

    def _ranking(
        self, problem: AppendProblem, accelerator: Accelerator, mapping: AppendMapping, objective: Objective
    ) -> tuple[float, ...]:
        cost = self.price(problem, accelerator, mapping)
        latency, energy = float(cost.latency_cycles[0]), float(cost.energy_pj[0])
        found = {"latency": latency, "energy": energy, "edp": latency * energy}
        found["offchip"] = float(cost.offchip_bytes[0])
        order = [objective, *(other for other in OBJECTIVES if other != objective)]
        return (*(found[name] for name in order), sum(_transfers(problem, mapping)), _peak_bytes(problem, mapping))

    @override
    def shortened(self, problem: AppendProblem, mapping: AppendMapping) -> AppendProblem:
        return replace(
            problem,
            batch=min(problem.batch, 2 * mapping.batch),
            heads=min(problem.heads, 2 * mapping.head),
            rows=min(problem.rows, 8 * mapping.row),
        )

    @override
    def tensor_shapes(self, problem: AppendProblem) -> dict[str, tuple[int, ...]]:
        batch, heads, rows, width = problem.shape
        found = {"new": problem.loaded_shape, "result": (batch, heads, problem.old + rows, width)}
        return found if problem.block is None else found | {"pages": (batch, problem.pages)}

    @override
    def build(
        self, fused: FusedOp, problem: AppendProblem, mapping: AppendMapping, tensors: Dictionary[str, SSAValue]
    ) -> list[Operation]:
        return build_append(problem, mapping, tensors["new"], tensors["result"], tensors.get("pages"))

    @override
    def price(self, problem: AppendProblem, accelerator: Accelerator, mapping: AppendMapping) -> ClosedForm:
        """Bytes and busy time are exact; latency is a lower bound: the longer direction, and what cannot overlap it."""
        import numpy as np

        def column(number: float) -> np.ndarray[tuple[int], np.dtype[np.float64 | np.int64]]:
            return np.array([number])

        prices, (loads, stores) = TransferPrices(accelerator, problem.on_chip), _transfers(problem, mapping)
        overhead = accelerator.offchip.overhead_cycles
        moved, paged = {"new": column(problem.loaded_bytes), "result": column(problem.bytes)}, problem.block is not None
        read = problem.loaded_bytes * prices.rate("new") + loads * overhead
        written = problem.bytes * prices.rate("result") + stores * overhead
        if paged:
            moved["pages"] = column(problem.table_bytes)
            read = read + problem.table_bytes * prices.rate("pages") + overhead
        work = prices.work(moved) + Work(buffer_read_bytes=column(stores * PAGE_BYTES * paged))
        shared = accelerator.offchip.channels == "shared"
        # A copy on chip has no latency: only the store's is left.
        alone = accelerator.offchip.latency_cycles * (1 + (loads == 1 and not problem.on_chip))
        longest = read + written if shared or loads == 1 else max(read, written)
        return ClosedForm(
            latency_cycles=column(longest + alone),
            busy_cycles={"offchip": column(read + written)}
            if shared
            else {"read": column(read), "write": column(written)},
            tensor_bytes=prices.offchip_bytes(moved),
            peak_buffer_bytes=column(_peak_bytes(problem, mapping)),
            work=work,
            energy_pj=sum(energy_pj(accelerator, work).values()),
        )

    @override
    def read_back(self, kernel: KernelOp) -> Part | None:
        found = read_append(kernel)
        return None if found is None else Part(*found)

    @override
    def corner(self, problem: AppendProblem, mapping: AppendMapping) -> str:
        return "append"


def _space(problem: AppendProblem, accelerator: Accelerator) -> list[AppendMapping]:
    """All rows at once, or by batch, by head, or by rows of a head, with one slot or two; tiles that keep to pages."""
    tiles = [(problem.batch, problem.loaded_heads, problem.rows), (1, problem.loaded_heads, problem.rows)]
    tiles += [(1, 1, rows) for rows in tile_sizes(problem.rows, accelerator.array.rows)]
    tiles += [(problem.batch, problem.loaded_heads, 1)] * (problem.block is not None)
    kept = [tile for tile in dict.fromkeys(tiles) if problem.keeps_to_pages(tile[2])]
    return [AppendMapping(*tile, slots) for tile in kept for slots in (1, 2)]


def _peak_bytes(problem: AppendProblem, mapping: AppendMapping) -> int:
    return mapping.slots * prod(mapping.tiles) * problem.width * problem.element_bytes + problem.table_bytes


def _transfers(problem: AppendProblem, mapping: AppendMapping) -> tuple[int, int]:
    """How many loads of rows, and how many stores: in pages, one for each page of each sequence."""
    loads, stores = (
        prod(ceil_divide(size, tile) for size, tile in zip(shape, mapping.tiles, strict=False))
        for shape in (problem.loaded_shape, problem.shape)
    )
    if problem.block is None:
        return loads, stores
    full, ragged = divmod(problem.rows, mapping.row)
    pages = full * ceil_divide(mapping.row, problem.block) + ceil_divide(ragged, problem.block)
    return loads, problem.batch * ceil_divide(problem.heads, mapping.head) * pages


APPEND = AppendKind()
