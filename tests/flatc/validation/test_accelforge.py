"""AccelForge's rows: what flatc expresses is met, and the reasons of what it misses account for the whole of it."""

from __future__ import annotations

from importlib import resources

import pytest

import flatc
from flatc.dialects.diagnostics import FlatcError
from flatc.passes.mapping.ranking import Objective
from flatc.validation import accelforge
from flatc.validation.accelforge import (
    OWN_TRANSFERS,
    SHARED_READS,
    SPILLED,
    STATISTICS,
    TOO_LARGE,
    ZEROS,
    Point,
    given,
    point,
    schedule,
    tables,
    tile,
)
from flatc.validation.experiment import Sizes, best, machine
from flatc.validation.records import Record, read

PER_BYTE_J = 2e-12
"""Energy of a byte that the buffer reads or writes."""


def records() -> list[Record]:
    text = (resources.files("flatc.validation") / "reference" / accelforge.FILE).read_text(encoding="utf-8")
    return read(text, accelforge.FILE)


def record(label: str) -> Record:
    return next(record for record in records() if point(record).label == label)


def bert(platform: str, length: int, softmax: str = "one") -> Point:
    return Point(Sizes(64, 12, length, 64), platform, softmax, fused=True)


@pytest.mark.slow
def test_every_row_is_met_or_has_a_reason():
    traffic, energy, latency = tables(records())
    assert [table.unexplained for table in (traffic, energy, latency)] == [(), (), ()]
    expressed = [table.expressed for table in (traffic, energy, latency)]
    assert [found and (found.rows, found.within) for found in expressed] == [(12, 12), (6, 6), (11, 11)]
    assert [row.error for row in traffic.rows if not row.reasons] == [0.0] * 12


def test_a_whole_row_whose_reads_are_not_shared_is_met_to_the_last_byte():
    found, result = record("edge 512"), schedule(bert("edge", 512))
    assert result.offchip_bytes == found.number("offchip_bytes")
    assert result.energy_j == pytest.approx(found.number("energy_j"), rel=1e-7)
    assert result.latency_s == pytest.approx(found.number("latency_s"), rel=0.002)


@pytest.mark.parametrize(("length", "strips"), [(512, 2), (4096, 4), (16384, 4)])
def test_reading_v_once_for_each_strip_of_rows_is_all_that_cloud_takes_more_energy_for(length: int, strips: int):
    """Strips of 256 rows lie side by side. Where keys are cut, outputs also meet the zeros that they begin with."""
    at, found = bert("cloud", length), record(f"cloud {length}")
    reasons = accelforge.QUANTITIES[1].reasons(at)
    assert reasons == (SHARED_READS, *([ZEROS] if length == 16384 else []))
    tensor = 768 * at.sizes.head_bytes
    v_reads = length // 256 * (1 - 1 / strips) * tensor
    zeros = tensor * (ZEROS in reasons)
    missing = schedule(at).energy_j - found.number("energy_j")
    assert missing == pytest.approx((v_reads + zeros) * PER_BYTE_J, rel=1e-4)


def test_statistics_of_rows_are_all_that_four_steps_take_more_energy_for():
    """Maximum and sum are read for every score, and read and written while they are made; X is read for the sum."""
    at, found = bert("edge", 512, "four"), record("edge 512, four steps")
    assert accelforge.QUANTITIES[1].reasons(at) == (STATISTICS,)
    a_pass = 768 * 512 * 512 * 2
    missing = found.number("energy_j") - schedule(at).energy_j
    assert missing == pytest.approx((2 + 4 + 1) * a_pass * PER_BYTE_J, rel=0.01)


def test_its_tiles_are_as_large_as_the_buffer_takes():
    lengths = (512, 4096, 16384, 65536)
    assert [tile(bert("cloud", n)) for n in lengths] == [(512, 512), (1024, 4096), (1024, 4096), (1024, 2048)]
    assert [tile(bert("edge", n)) for n in lengths] == [(32, 512), None, None, None]
    assert [tile(bert("cloud", n, "four")) is None for n in lengths] == [False, False, True, True]
    assert given(bert("edge", 4096)) is None


def test_rows_that_flatc_has_no_mapping_for_say_why():
    """These come from the sizes alone."""

    def reasons(label: str, quantity: int) -> tuple[str, ...]:
        at = point(record(label))
        return accelforge.QUANTITIES[quantity].reasons(at)

    assert reasons("edge 4096", 0) == (SPILLED,)
    assert reasons("cloud 65536, four steps", 0) == (TOO_LARGE,)
    assert reasons("cloud 512", 2) == (OWN_TRANSFERS,)
    assert reasons("cloud 4096", 2) == ()


@pytest.mark.parametrize("name", ["edge", "cloud"])
def test_its_machines_charge_one_operation_a_score_and_fold_freely(name: str):
    found = machine(f"accelforge_{name}")
    prices = found.vector.prices
    assert (prices.exp, prices.max, prices.add, prices.divide) == (1, 0, 0, 0)
    assert set(found.array.foldings) == {"rows", "columns", "contraction"}
    steps = accelforge.with_four_steps(found).vector
    assert [getattr(steps.prices, step) for step in ("max", "exp", "add", "divide")] == [1] * 4
    assert [getattr(steps.energies_pj, step) for step in ("max", "exp", "add", "divide")] == [0.5] * 4


def test_a_row_of_an_unknown_machine_is_refused():
    (first, *_) = records()
    cells = dict(first.cells) | {"accelerator": ("laptop", 1)}
    with pytest.raises(FlatcError, match="accelerator: expected one of edge, cloud, got 'laptop'"):
        point(Record(first.file, first.line, first.source, first.header_line, cells))


# --- What flatc finds itself ------------------------------------------------------------------------------------


def no_worse(at: Point) -> bool:
    """Whether flatc's mapping, one for both, takes no more than 0.1 % above AccelForge's latency and energy."""
    found, result = record(at.label), best(at.graph(), at.accelerator)
    pairs = ((result.latency_s, found.number("latency_s")), (result.energy_j, found.number("energy_j")))
    return all(ours <= theirs * 1.001 for ours, theirs in pairs)


def test_flatc_finds_a_mapping_as_good_where_keys_and_values_of_a_head_fit_once():
    assert no_worse(bert("cloud", 65536))


@pytest.mark.parametrize("objective", ["latency", "edp"])
def test_among_products_that_cost_the_same_one_is_found_that_waits_for_no_bursts(objective: Objective):
    """Off-chip memory and the array are busy all the time. Small tiles wait at each new head, 5 % in all."""
    at = Point(Sizes(64, 12, 512, 64), "edge", "one", fused=False)
    found = flatc.compile(at.graph(), at.accelerator, objective=objective).report
    assert found.latency_seconds == pytest.approx(record("edge 512, unfused").number("latency_s"), rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "length", "softmax"),
    [
        *(("cloud", length, "one") for length in (512, 4096, 16384)),
        *(("edge", 512, softmax) for softmax in ("one", "four")),
        ("cloud", 4096, "four"),
    ],
)
def test_flatc_finds_a_mapping_as_good_at_every_whole_row(platform: str, length: int, softmax: str):
    assert no_worse(bert(platform, length, softmax))
