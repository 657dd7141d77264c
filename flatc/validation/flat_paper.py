"""FLAT's own cost model (columns `flatcode_*` of fusemax_flat.csv) against flatc, mapping by mapping.

FLAT's code, as far as its figures show: both products use the array with one stationarity and without folding; a
tensor is either on chip for an iteration of so many query rows, or read from off chip again for every pass of the
array; softmax is free; transfers and both products overlap perfectly. A row says which tensors are on chip:

    QK+A   scores stay       flat_fused.txt     one kernel
    else   scores leave      flat_spilled.txt   logit, then one attend for each strip of V as wide as the array

Ideal latency, off-chip traffic and latency are compared; `overlapped` is flatc's busiest resource, which is what FLAT's
code calls latency.
"""

from __future__ import annotations

from collections.abc import Sequence

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.validation.experiment import Result, Sizes, attention, machine, mappings, products, run, sizes_of
from flatc.validation.model import Quantity, Table
from flatc.validation.records import Record

TENSORS = ("Q", "K", "V", "QK", "A", "AV")
TOLERANCE = 0.01

PARTIAL = (
    "partial residency: the mapping is larger than the buffer, and FLAT's code spills the share that does not fit; "
    "flatc keeps a tile whole or not at all"
)
STREAMED = (
    "streaming for each pass of the array: FLAT's code reads Q again for every strip of keys, K and V again for every "
    "strip of rows as wide as the array, while more rows of scores stay; flatc loads a tile once for all passes over it"
)
IN_SEQUENCE = (
    "spilling inside one pipeline: FLAT's code overlaps the logit of some rows with the attend of others although "
    "their scores go through off-chip memory; flatc makes kernels of them, which run one after the other"
)


@frozen
class Recorded:
    """The mapping that a row records."""

    sizes: Sizes
    platform: str
    rows: int
    stationarity: str
    onchip: tuple[str, ...]
    fraction: float

    @property
    def keeps_scores(self) -> bool:
        """Whether scores stay on chip."""
        return "QK" in self.onchip

    @property
    def partial(self) -> tuple[str, ...]:
        """The reason of every quantity where not everything fits."""
        return (PARTIAL,) if self.fraction < 1 else ()

    def mapping(self, accelerator: Accelerator, strip: int) -> dict[str, Mapping]:
        """The mapping as flatc has it, by kernel; `strip` columns of V go to one attend."""
        side, sizes = accelerator.array.columns, self.sizes
        return mappings(
            "flat_fused" if self.keeps_scores else "flat_spilled",
            rows=self.rows,
            side=side,
            key=min(side, sizes.length),
            depth=sizes.depth,
            strip=strip,
            stationarity=self.stationarity,
            k_level="kv_head" if "K" in self.onchip else "key",
            v_level="kv_head" if "V" in self.onchip else "key",
        )


def recorded(record: Record) -> Recorded:
    """The mapping of a row."""
    onchip = tuple(record.text("flatcode_onchip_tensors").split("+"))
    for name in onchip:
        if name not in TENSORS:
            record.fail("flatcode_onchip_tensors", f"expected tensors of {', '.join(TENSORS)}, got '{name}'")
    sizes, rows = sizes_of(record), record.integer("flatcode_query_rows_per_iteration")
    if rows > sizes.length:
        record.fail("flatcode_query_rows_per_iteration", f"there are only {sizes.length} rows")
    return Recorded(
        sizes,
        record.text("platform", ("edge", "cloud")),
        rows,
        record.text("flatcode_stationarity", ("output", "weight", "input")),
        onchip,
        record.number("flatcode_buffered_fraction"),
    )


def schedule(mapping: Recorded) -> Result:
    """What flatc makes of it."""
    accelerator = machine(f"flat_{mapping.platform}")
    sizes = mapping.sizes
    strip = min(accelerator.array.columns, sizes.depth)
    module = attention(sizes) if mapping.keeps_scores else products(sizes, strip)
    return run(module, accelerator, mapping.mapping(accelerator, strip))


# --- Tables ---------------------------------------------------------------------------------------------------


def streamed(mapping: Recorded) -> tuple[str, ...]:
    """The reason of a tensor that is read for every pass of the array, where an iteration takes several."""
    side = machine(f"flat_{mapping.platform}").array.columns
    q = "Q" not in mapping.onchip
    passes = mapping.stationarity == "output" and mapping.rows > side
    keyed = passes and not {"K", "V"} <= set(mapping.onchip)
    return (STREAMED,) if q or keyed else ()


def _in_sequence(mapping: Recorded) -> tuple[str, ...]:
    return () if mapping.keeps_scores else (IN_SEQUENCE,)


QUANTITIES: tuple[Quantity[Recorded, Result], ...] = (
    Quantity(
        "flat-ideal",
        "FLAT's own code: ideal latency",
        "s",
        "flatcode_ideal_latency_s",
        TOLERANCE,
        lambda r: r.ideal_s,
        lambda m: (),
    ),
    Quantity(
        "flat-traffic",
        "FLAT's own code: off-chip traffic",
        "B",
        "flatcode_dram_bytes",
        TOLERANCE,
        lambda r: r.offchip_bytes,
        lambda m: streamed(m) + m.partial,
    ),
    Quantity(
        "flat-latency",
        "FLAT's own code: latency of flatc's schedule",
        "s",
        "flatcode_latency_s",
        TOLERANCE,
        lambda r: r.latency_s,
        lambda m: m.partial + _in_sequence(m),
    ),
    Quantity(
        "flat-overlapped",
        "FLAT's own code: latency if everything overlaps: flatc's busiest resource",
        "s",
        "flatcode_latency_s",
        TOLERANCE,
        lambda r: r.overlapped_s,
        lambda m: m.partial,
    ),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """The tables of FLAT's own figures."""
    labels = [label(record) for record in records]
    found = [recorded(record) for record in records]
    figures = {q.column: [record.number(q.column) for record in records] for q in QUANTITIES}
    results = [schedule(mapping) for mapping in found]
    return [q.table("fusemax_flat.csv", labels, figures[q.column], found, results) for q in QUANTITIES]


def label(record: Record) -> str:
    """What a row is called."""
    return f"{record.text('platform')} {record.text('model')} {record.integer('seq_len_tokens')}"
