"""The closed form: bytes, cycles and energy of mappings, without walking their tiles.

It prices whole columns of mappings at once (NumPy arrays, one entry a mapping), which is what the search does,
and a single mapping as a column of one. What tiles add up to depends on few columns only and is shared by all mappings
that agree on these (`SharedCounts`). Everything it counts comes from the primitive costs that the
simulator uses too, multiplied by how often each kind of tile occurs:

    a dimension cut into tiles has full tiles and perhaps one ragged tile; a mask decides how many key tiles each
    query tile visits; so a kernel has at most 2 x 2 x 2 kinds of head tiles and 2 x 2 kinds of (query, key) tiles.

**Exact**: off-chip bytes by tensor, bytes on chip, counts behind the energy, array cycles. Vector cycles too, but
for row strips of masked kernels, whose lengths vary (there the last partly filled vector is not rounded up).

**Latency** is a lower bound that the simulator approaches, in two tiers. A search compares many mappings by the largest
of several times that each is no more than a sum (`least_times`). For one mapping `tight_form` also walks through a few
trips of its pipeline (`attention_trips`), which as a rule is as long as the simulator finds.

The counting is in files of its own: `product_tile_counts`, `vector_tile_counts`, `transfer_counts`, `buffer_room`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.arrays import largest
from flatc.passes.cost.attention_trips import walk
from flatc.passes.cost.buffer_room import peak_buffer_bytes
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.least_times import least_times
from flatc.passes.cost.mapping_columns import Columns, Structure, columns_of, numbers_of, structure_of
from flatc.passes.cost.pipeline_times import Case
from flatc.passes.cost.primitive_costs import Work, energy_pj
from flatc.passes.cost.shared_counts import count_all
from flatc.passes.cost.tile_counts import Counts
from flatc.passes.cost.transfer_prices import TransferPrices, split
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class ClosedForm:
    """Costs of a column of mappings; every field is an array, or a dictionary of arrays.

    `tensor_bytes` maps q, k, v, scores, result and the roles of operands to off-chip bytes; `busy_cycles` maps array,
    vector, and the off-chip channels to cycles; `latency_cycles` is the lower bound described above.
    """

    latency_cycles: Any
    busy_cycles: dict[str, Any]
    tensor_bytes: dict[str, Any]
    peak_buffer_bytes: Any
    work: Work
    energy_pj: Any
    least_times: tuple[Any, ...] = ()
    """All that the latency is the largest of, where it is known."""

    @property
    def offchip_bytes(self) -> Any:
        """All off-chip traffic."""
        return self.work.offchip_read_bytes + self.work.offchip_write_bytes


def evaluate(
    problem: AttentionProblem,
    accelerator: Accelerator,
    structure: Structure,
    columns: Columns,
    counts: Counts | None = None,
    peak_bytes: Any = None,
) -> ClosedForm:
    """Costs of a column of mappings; see the module docstring for what is exact.

    `counts` and `peak_bytes` may be given where they are known already.
    """
    if counts is None or peak_bytes is None:
        geometry = key_geometry(problem, columns.query, columns.key, columns.rescaled_every)
        counts = count_all(problem, accelerator, structure, columns, geometry)
        peak_bytes = peak_buffer_bytes(problem, structure, columns, geometry.width)
    prices = TransferPrices(accelerator, problem.on_chip)
    busy = busy_cycles(prices, counts)
    times = least_times(Case(problem, accelerator, structure, columns, counts), busy)
    latency = largest(times, columns.batch * 0.0)
    return replace(_form(prices, counts, busy, peak_bytes, latency), least_times=tuple(times))


def _form(prices: TransferPrices, counts: Counts, busy: dict[str, Any], peak_bytes: Any, latency: Any) -> ClosedForm:
    work = total_work(prices, counts)
    return ClosedForm(
        latency_cycles=latency,
        busy_cycles=busy,
        tensor_bytes=prices.offchip_bytes(counts.tensor_bytes),
        peak_buffer_bytes=peak_bytes,
        work=work,
        energy_pj=sum(energy_pj(prices.accelerator, work).values()),
    )


def total_work(prices: TransferPrices, counts: Counts) -> Work:
    """The work of the tiles, and of the transfers between buffer and memory."""
    return counts.work + prices.work(counts.tensor_bytes)


def busy_cycles(prices: TransferPrices, counts: Counts) -> dict[str, Any]:
    """How long each resource is busy: no schedule takes less than the longest."""
    return _offchip_busy(prices, counts) | {"array": counts.array, "vector": counts.vector}


def _offchip_busy(prices: TransferPrices, counts: Counts) -> dict[str, Any]:
    accelerator, (loaded, stored) = prices.accelerator, split(counts.tensor_bytes)
    loads, stores = (count * accelerator.offchip.overhead_cycles for count in counts.transfers)
    read_cycles, write_cycles = prices.cycles(loaded) + loads, prices.cycles(stored) + stores
    if accelerator.offchip.channels == "shared":
        return {"offchip": read_cycles + write_cycles}
    return {"read": read_cycles, "write": write_cycles}


def tight_form(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> ClosedForm:
    """Costs of one mapping, as arrays of one entry: the latency as near to the simulator's as the closed form comes."""
    structure, numbers = structure_of(mapping), numbers_of(mapping)
    geometry = key_geometry(problem, numbers.query, numbers.key, numbers.rescaled_every)
    counts = count_all(problem, accelerator, structure, numbers, geometry)
    peak_bytes = peak_buffer_bytes(problem, structure, numbers, geometry.width)
    walked = walk(problem, accelerator, mapping)
    if walked is not None and walked.evenly:
        # All that a search compares is in the walk as well, where it lost nothing.
        prices = TransferPrices(accelerator, problem.on_chip)
        form = _form(prices, counts, busy_cycles(prices, counts), peak_bytes, walked.cycles)
    else:
        form = evaluate(problem, accelerator, structure, numbers, counts, peak_bytes)
        if walked is not None:
            form = replace(form, latency_cycles=max(form.latency_cycles, walked.cycles))
    return _as_columns(form)


def _as_columns(form: ClosedForm) -> ClosedForm:
    """A closed form of numbers as one of columns of one."""
    import numpy as np

    def column(number: float) -> Any:
        return np.array([number])

    return ClosedForm(
        latency_cycles=column(form.latency_cycles),
        busy_cycles={name: column(cycles) for name, cycles in form.busy_cycles.items()},
        tensor_bytes={role: column(size) for role, size in form.tensor_bytes.items()},
        peak_buffer_bytes=column(form.peak_buffer_bytes),
        work=Work(*map(column, vars(form.work).values())),
        energy_pj=column(form.energy_pj),
    )


def evaluate_mapping(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> ClosedForm:
    """Costs of one mapping as a search sees it, a column of one."""
    return evaluate(problem, accelerator, structure_of(mapping), columns_of(mapping))
