"""The FuseMax study's model (columns `unfused_*`, `flat_*`, `fusemax_*` of fusemax_flat.csv) against flatc.

The study prices softmax: four lane-cycles a score on the 1D unit for unfused attention and for FLAT. It counts the 2D
array as fully used, overlaps everything inside a phase, and does not record tiles. The rules that replace them:

    unfused   K and V of a head stay where two copies fit half of the buffer, else 32768 rows stay while they stream
    flat      FLAT's recorded rows, halved until two sets of their scores fit the buffer, so that softmax overlaps
    fusemax   tiles of 256 rows and 256 keys, as the study says, while K and V of a head stay; where two copies do not
              fit half of the buffer, 32768 rows stay while they stream, 256 at a time

Latency and off-chip traffic are compared, on the lengths that the study covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.validation.experiment import Result, Sizes, attention, machine, mappings, run
from flatc.validation.flat_paper import Recorded, label, recorded, streamed
from flatc.validation.model import Row, Table
from flatc.validation.records import Record

LATENCY_TOLERANCE = 0.02
TRAFFIC_TOLERANCE = 0.01

STREAMED_ROWS = 32768
"""Rows of Q, or of the output, that stay while K, or V, streams past. FuseMax's traffic at 65536 tokens says so; longer
sequences, and unfused attention, are predictions."""

AHEAD = 3
"""How many tiles the loads of FuseMax run ahead: K and V of the next head, and its first Q, arrive during the last tile
of rows of 1024 keys."""

SPILLED = (
    "spilling inside one pipeline: the study overlaps logit, softmax and attend although scores go through off-chip "
    "memory, and takes the largest of the three totals; flatc makes kernels of them, which run one after the other"
)
HALVED = (
    "one set of scores in several stages: FLAT overlaps softmax and products on one slice of scores; flatc needs a "
    "second set, so its tile has fewer rows and K and V stream more often"
)


# --- Mappings -------------------------------------------------------------------------------------------------


def _level(sizes: Sizes, room: int) -> str:
    """`kv_head` where this much of a head fits."""
    return "kv_head" if sizes.head_bytes <= room else "key"


def unfused_mappings(sizes: Sizes, accelerator: Accelerator) -> dict[str, Mapping]:
    """Logit, softmax and attend, each moving its tensors as seldom as the buffer allows."""
    capacity, side, length = accelerator.buffer.capacity_bytes, accelerator.array.columns, sizes.length
    level = _level(sizes, capacity // 4)
    rows = min(length, accelerator.array.rows if level == "kv_head" else STREAMED_ROWS)
    key = min(length, side if level == "kv_head" else side // 4)
    return mappings(
        "study_unfused",
        rows=rows,
        key=key,
        keys=length,
        depth=sizes.depth,
        level=level,
        softmax_rows=max(1, min(length, capacity // 8 // (2 * length))),
        key_fold=max(1, side // key if level == "key" else 1),
        depth_fold=max(1, side // sizes.depth if level == "key" else 1),
    )


def flat_mappings(mapping: Recorded, accelerator: Accelerator) -> dict[str, Mapping]:
    """FLAT with scores on chip."""
    sizes, rows = mapping.sizes, _flat_rows(mapping, accelerator)
    key = min(accelerator.array.columns, sizes.length)
    return mappings("study_flat", rows=rows, recorded=mapping.rows, key=key, depth=sizes.depth)


def _flat_rows(mapping: Recorded, accelerator: Accelerator) -> int:
    """Rows of which two sets of scores fit."""
    rows, sizes = mapping.rows, mapping.sizes
    while rows > 1 and _flat_bytes(sizes, rows, accelerator.array.columns) > accelerator.buffer.capacity_bytes:
        rows = -(-rows // 2)
    return rows


def _flat_bytes(sizes: Sizes, rows: int, key: int) -> int:
    """Two slots of everything: Q, K, V, scores, output; and the rows' maxima and sums."""
    return 2 * (2 * rows * sizes.depth + 2 * key * sizes.depth + rows * sizes.length + 4 * rows) * 2


def fusemax_mappings(sizes: Sizes, accelerator: Accelerator) -> dict[str, Mapping]:
    """FuseMax's tiles, and, where K and V of a head do not fit, the blocks that they stream past.

    Where there is room for them, loads run ahead by as many tiles as hide the loads of the next head.
    """
    side, length, room = accelerator.array.columns, sizes.length, accelerator.buffer.capacity_bytes // 2
    tile = min(side, length)
    if _level(sizes, room // 2) == "key":
        parts = -(-min(STREAMED_ROWS, length) // tile)
        return mappings("study_fusemax_blocks", rows=tile, parts=parts, key=tile, depth=sizes.depth)
    ahead = AHEAD if 2 * (AHEAD + 2) * sizes.head_bytes <= room else 0
    return mappings(
        "study_fusemax",
        rows=tile,
        key=tile,
        depth=sizes.depth,
        slots=ahead + 2,
        logit=ahead,
        attend=ahead + 1,
        store=ahead + 2,
    )


# --- Schedules ------------------------------------------------------------------------------------------------


def _unfused(mapping: Recorded) -> Result:
    accelerator = machine("study_cloud")
    return run(attention(mapping.sizes), accelerator, unfused_mappings(mapping.sizes, accelerator))


def _flat(mapping: Recorded) -> Result:
    accelerator = machine("study_cloud")
    if mapping.keeps_scores:
        return run(attention(mapping.sizes), accelerator, flat_mappings(mapping, accelerator))
    given = unfused_mappings(mapping.sizes, accelerator)
    given |= _spilled(mapping, accelerator)
    return run(attention(mapping.sizes), accelerator, given)


def _spilled(mapping: Recorded, accelerator: Accelerator) -> dict[str, Mapping]:
    """Logit and attend of FLAT's recorded mapping, scores off chip."""
    found = mapping.mapping(accelerator, mapping.sizes.depth)
    return {name: found[name] for name in ("logit", "attend")}


def _fusemax(mapping: Recorded) -> Result:
    accelerator = machine("study_fusemax")
    return run(attention(mapping.sizes), accelerator, fusemax_mappings(mapping.sizes, accelerator))


# --- Tables ---------------------------------------------------------------------------------------------------


@frozen
class _Design:
    """One of the study's designs: how flatc schedules it, and what is missing for its latency and its traffic."""

    name: str
    title: str
    schedule: Callable[[Recorded], Result]
    latency_reasons: Callable[[Recorded], tuple[str, ...]]
    traffic_reasons: Callable[[Recorded], tuple[str, ...]]


def _flat_latency(mapping: Recorded) -> tuple[str, ...]:
    return () if mapping.keeps_scores else (SPILLED,)


def _flat_traffic(mapping: Recorded) -> tuple[str, ...]:
    if not mapping.keeps_scores:
        return (*streamed(mapping), *mapping.partial)
    halved = _flat_rows(mapping, machine("study_cloud")) < mapping.rows
    return (*streamed(mapping), *mapping.partial, *((HALVED,) if halved else ()))


DESIGNS = (
    _Design("unfused", "unfused attention", _unfused, lambda m: (), lambda m: ()),
    _Design("flat", "FLAT with softmax", _flat, _flat_latency, _flat_traffic),
    _Design("fusemax", "FuseMax", _fusemax, lambda m: (), lambda m: ()),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Latency and traffic of each design."""
    made: list[Table] = []
    for design in DESIGNS:
        latency: list[Row] = []
        traffic: list[Row] = []
        for record in records:
            seconds = record.measured(f"{design.name}_latency_s")
            moved = record.measured(f"{design.name}_dram_bytes")
            if seconds is None and moved is None:
                continue
            record.text("platform", ("cloud",))
            mapping, name = recorded(record), label(record)
            result = design.schedule(mapping)
            if seconds is not None:
                latency.append(Row(name, seconds, result.latency_s, design.latency_reasons(mapping)))
            if moved is not None:
                traffic.append(Row(name, moved, result.offchip_bytes, design.traffic_reasons(mapping)))
        made += [
            _table(design, "latency", "s", LATENCY_TOLERANCE, latency),
            _table(design, "traffic", "B", TRAFFIC_TOLERANCE, traffic),
        ]
    return made


def _table(design: _Design, quantity: str, unit: str, tolerance: float, rows: Sequence[Row]) -> Table:
    what = "off-chip traffic" if quantity == "traffic" else quantity
    title = f"FuseMax study, {design.title}: {what}"
    return Table(f"study-{design.name}-{quantity}", title, unit, tolerance, "fusemax_flat.csv", tuple(rows))
