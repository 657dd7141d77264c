"""AccelForge's rows (accelforge_bert.csv) against flatc, on the two machines that they were made on.

AccelForge (accelforge 1.0.467) searched mappings of scores, softmax and outputs, each an Einsum or several. Its
rules, as its documentation states them and as the figures show:

- The time of an Einsum is that of its busiest component. Transfers hide behind the Einsum that they belong to and
  behind no other; Einsums add up, so the array and the vector unit never work at the same time. Nothing is loaded
  ahead.
- The array takes any dimension along its rows and columns, and an operand goes to all PEs that need it in one read.
- The softmax is one operation a score (`one`): nothing belongs to a row, which may be cut anywhere. Or it is four
  Einsums (`four`), whose maxima and sums of rows are in the buffer, where they are read and added to for every score.

For `one` flatc compiles logit, one elementwise function of each score, and attend; for `four` attention with its
softmax. The file has no mappings. The energy of its whole rows tells them, to the last read of the buffer, and
`accelforge.txt` has them: outputs stay in the PEs in both products, K and V of a head stay on chip, as many rows as
the array takes meet as many keys as fit. Where K and V of a head do not fit, AccelForge does what flatc cannot (see
`SPILLED`), and the row has the mapping that flatc finds best; so have rows without fusion, which are three kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xdsl.dialects.builtin import ModuleOp

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.validation.experiment import (
    Result,
    Sizes,
    attention,
    best,
    elementwise,
    elementwise_apart,
    machine,
    mappings,
    run,
    sizes_of,
)
from flatc.validation.model import Quantity, Table
from flatc.validation.records import Record

FILE = "accelforge_bert.csv"
LATENCY_TOLERANCE = 0.02
ENERGY_TOLERANCE = 0.001
TRAFFIC_TOLERANCE = 0.001
WORD_BYTES = 2

OWN_TRANSFERS = (
    "transfers behind their own Einsum: AccelForge hides those of Q and K behind the scores only, and those of V "
    "and the output behind the outputs, and both wait for them; in flatc they run behind any work"
)
SHARED_READS = (
    "one read for all PEs: AccelForge reads V once for strips of rows that lie side by side on the array; flatc "
    "reads the operands of each piece of a fold"
)
ZEROS = (
    "the zeros that sums begin with: flatc's array reads them where an output is summed up over several tiles of "
    "keys; AccelForge skips the first read"
)
STATISTICS = (
    "statistics of rows in the buffer: AccelForge reads maxima and sums for every score, reads and writes them "
    "while they are made, and reads the scores once more for the sum; flatc's vector unit keeps them while it "
    "works on a row"
)
SPILLED = (
    "partial outputs off chip: in AccelForge K and V of a part of the keys stay, and Q and 16-bit partial outputs"
    " come and go once for each part; flatc keeps outputs until they are finished. Here is the mapping that it "
    "finds best"
)
TOO_LARGE = (
    "a mapping that does not fit: by AccelForge's own model the recorded one needs more than the buffer. Here is "
    "the mapping that flatc finds best"
)
AT_ONCE = (
    "array and vector unit at once: AccelForge adds up the times of its Einsums; in the mapping that flatc finds "
    "best one works on a tile while the other has the next"
)
ONE_SLOT = (
    "one slot for what comes next: AccelForge's data arrive exactly when they are needed, so a tile may fill the "
    "buffer; in flatc the next tile arrives in a second slot, so tiles are smaller and K or V stream more often"
)


# --- What a row asks for ----------------------------------------------------------------------------------------


@frozen
class Point:
    """An attention on a machine; its softmax `one` or `four` Einsums; fused, or in three kernels."""

    sizes: Sizes
    platform: str
    softmax: str
    fused: bool

    @property
    def label(self) -> str:
        """What the row is called."""
        softmax = "" if self.softmax == "one" else ", four steps"
        return f"{self.platform} {self.sizes.length}{softmax}{'' if self.fused else ', unfused'}"

    @property
    def accelerator(self) -> Accelerator:
        """The machine with the prices of this softmax."""
        found = machine(f"accelforge_{self.platform}")
        return found if self.softmax == "one" else with_four_steps(found)

    def graph(self) -> ModuleOp:
        """What flatc compiles for it."""
        if self.softmax == "four":
            return attention(self.sizes)
        return elementwise(self.sizes) if self.fused else elementwise_apart(self.sizes)


def point(record: Record) -> Point:
    """The point of a row."""
    softmax = record.text("softmax", ("one", "four"))
    fused = record.text("fused", ("True", "False")) == "True"
    if softmax == "four" and not fused:
        record.fail("fused", "four steps are compared where they are fused")
    return Point(sizes_of(record), record.text("accelerator", ("edge", "cloud")), softmax, fused)


def with_four_steps(accelerator: Accelerator) -> Accelerator:
    """The machine with the prices of the rows of four steps: maximum, exponential, sum and division cost alike."""
    unit = accelerator.vector
    cycles, energy = unit.prices.exp, unit.energies_pj.exp
    prices = replace(unit.prices, max=cycles, add=cycles, divide=cycles)
    energies = replace(unit.energies_pj, max=energy, add=energy, divide=energy)
    return replace(accelerator, vector=replace(unit, prices=prices, energies_pj=energies))


# --- Mappings ---------------------------------------------------------------------------------------------------


def tile(point: Point) -> tuple[int, int] | None:
    """(rows, keys) of AccelForge's mapping with K and V of a head on chip; None where these do not fit.

    It has as many rows as the array takes where columns of the output leave room for more of them, and the most keys,
    halving the length, of which two sets of scores fit: before a step and after it. A softmax needs whole rows.
    """
    sizes, array = point.sizes, point.accelerator.array
    rows, keys = min(sizes.length, array.rows * max(1, array.columns // sizes.depth)), sizes.length
    kept = 2 * sizes.head_bytes + 2 * rows * sizes.depth * WORD_BYTES
    while kept + 2 * rows * keys * WORD_BYTES > point.accelerator.buffer.capacity_bytes:
        keys //= 2
        if point.softmax == "four" or keys < array.columns:
            return None
    return rows, keys


def given(point: Point) -> dict[str, Mapping] | None:
    """AccelForge's mapping, if flatc can express it."""
    found = tile(point) if point.fused else None
    if found is None:
        return None
    (rows, keys), sizes, machine = found, point.sizes, point.accelerator
    fold = max(1, machine.array.columns // sizes.depth)
    # Two slots of Q and of the output, one set of scores; the maximum, the sum and their slots are a few words a row.
    beside = (4 * rows * sizes.depth + rows * keys + 4 * rows) * WORD_BYTES
    return mappings(
        "accelforge",
        kernel="attention" if point.softmax == "four" else "logit_attend",
        heads=max(1, fold // -(-rows // machine.array.rows)),
        rows=rows,
        keys=keys,
        depth=sizes.depth,
        slots=2 if 4 * sizes.head_bytes + beside <= machine.buffer.capacity_bytes else 1,
        fold=fold,
        softmax="rows, divide early" if point.softmax == "four" else "none, divide late",
    )


def schedule(point: Point) -> Result:
    """What flatc makes of a point: of AccelForge's mapping, or of the best one."""
    mapping = given(point)
    return best(point.graph(), point.accelerator) if mapping is None else run(point.graph(), point.accelerator, mapping)


# --- Tables -----------------------------------------------------------------------------------------------------


def _replaced(point: Point) -> tuple[str, ...]:
    """Why a row has another mapping than the recorded one."""
    if not point.fused:
        fits = 2 * point.sizes.head_bytes <= point.accelerator.buffer.capacity_bytes
        return () if fits else (ONE_SLOT,)
    if tile(point) is not None:
        return ()
    return (SPILLED,) if point.softmax == "one" else (TOO_LARGE,)


def _energy(point: Point) -> tuple[str, ...]:
    found = _replaced(point)
    mapped = tile(point) if point.fused else None
    if mapped is not None and point.accelerator.array.columns > point.sizes.depth:
        found += (SHARED_READS,)
    if mapped is not None and mapped[1] < point.sizes.length:
        found += (ZEROS,)
    return found + ((STATISTICS,) if point.softmax == "four" else ())


def _latency(point: Point) -> tuple[str, ...]:
    replaced = _replaced(point)
    if point.fused and replaced:
        return (*replaced, AT_ONCE)
    sizes, machine = point.sizes, point.accelerator
    heads = sizes.batch * sizes.heads
    moved = 2 * heads * sizes.head_bytes / machine.offchip.read_bytes_per_second
    busy = heads * sizes.length**2 * sizes.depth / (machine.array.pes * machine.clock_hz)
    return (*replaced, OWN_TRANSFERS) if point.fused and moved > busy else replaced


QUANTITIES: tuple[Quantity[Point, Result], ...] = (
    Quantity(
        "accelforge-traffic",
        "AccelForge: off-chip traffic",
        "B",
        "offchip_bytes",
        TRAFFIC_TOLERANCE,
        lambda r: r.offchip_bytes,
        _replaced,
    ),
    Quantity(
        "accelforge-energy", "AccelForge: energy", "J", "energy_j", ENERGY_TOLERANCE, lambda r: r.energy_j, _energy
    ),
    Quantity(
        "accelforge-latency",
        "AccelForge: latency",
        "s",
        "latency_s",
        LATENCY_TOLERANCE,
        lambda r: r.latency_s,
        _latency,
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Traffic, energy and latency of each row."""
    points = [point(record) for record in records]
    figures = {q.column: [record.number(q.column) for record in records] for q in QUANTITIES}
    results = [schedule(point) for point in points]
    labels = [point.label for point in points]
    return [q.table(FILE, labels, figures[q.column], points, results) for q in QUANTITIES]
