"""The RTL rows: exact traffic, cycles near, a reason for each miss, and the nest that makes them."""

from __future__ import annotations

from importlib import resources
from statistics import mean

import pytest

from flatc.validation.model import Table
from flatc.validation.records import Record, read
from flatc.validation.rtl import (
    COPY_TIME,
    MORE_TILES,
    SHARED_SLOT,
    Fused,
    Product,
    fused_mapping,
    fused_reasons,
    fused_tables,
    product_mapping,
    product_reasons,
    product_tables,
    simulate_fused,
    simulate_product,
)


def records(file: str) -> list[Record]:
    return read((resources.files("flatc.validation") / "reference" / file).read_text(encoding="utf-8"), file)


@pytest.fixture(scope="module")
def fused() -> dict[str, Table]:
    return {table.name: table for table in fused_tables(records("rtl_fused_gemm.csv"))}


@pytest.mark.parametrize("name", ["reads", "writes", "buffer-reads", "buffer-writes"])
def test_fused_traffic_is_exact(fused: dict[str, Table], name: str):
    table = fused[f"rtl-fused-{name}"]
    assert len(table.rows) == 95
    assert [row.label for row in table.rows if row.flatc != row.recorded] == []


def test_fused_cycles(fused: dict[str, Table]):
    table = fused["rtl-fused-cycles"]
    assert table.statistics is not None
    assert table.statistics.mean_error < 0.01
    assert table.unexplained == ()
    assert table.reasons == (COPY_TIME,)


def test_product_cycles():
    """Every eighth row; `flatc validate` has them all."""
    (table,) = product_tables(records("rtl_gemm.csv")[::8])
    assert table.statistics is not None
    assert table.statistics.mean_error < 0.002
    assert table.statistics.share_within > 0.9
    assert table.unexplained == ()
    assert set(table.reasons) <= {SHARED_SLOT}


def test_rows_without_reasons_are_predicted_to_the_cycle_or_nearly():
    (table,) = product_tables(records("rtl_gemm.csv")[1::16])
    errors = [abs(row.error) for row in table.rows if not row.reasons and row.error is not None]
    assert len(errors) > 30
    assert mean(errors) < 1e-5


def test_a_product_and_its_transpose_cost_the_same():
    product = Product(64, 256, 32, 16, 64, 16)
    assert product.oriented == product.transposed.oriented
    assert simulate_product(product).latency_cycles == simulate_product(product.oriented).latency_cycles


@pytest.mark.parametrize(
    ("product", "parts", "sets"),
    [
        (Product(64, 16, 32, 16, 16, 16), 4, 1),
        (Product(64, 64, 32, 16, 16, 16), 1, 1),
        (Product(32, 32, 32, 16, 16, 16), 2, 1),
        (Product(64, 16, 16, 16, 16, 16), 1, 2),
        (Product(16, 16, 64, 16, 16, 16), 1, 1),
    ],
)
def test_four_tiles_are_under_way(product: Product, parts: int, sets: int):
    mapping = product_mapping(product.oriented)
    assert (mapping.interleave, mapping.keep.score_slots) == (parts, sets)


def test_products_that_no_tile_divides():
    """Sizes that are not in the files: ragged everywhere, one tile, more tiles than four on both sides."""
    for product in (Product(50, 30, 70, 16, 16, 32), Product(7, 5, 3, 7, 5, 3), Product(96, 96, 32, 16, 16, 16)):
        words = simulate_product(product.oriented).work.offchip_write_bytes // 2
        assert words == product.m * product.n
    assert product_reasons(Product(96, 96, 32, 16, 16, 16)) == (MORE_TILES,)


def test_fused_products_that_no_tile_divides():
    ragged = Fused(50, 33, 20, 10, 16, 16, 16)
    assert fused_mapping(ragged).interleave == 4
    work = simulate_fused(ragged).work
    assert work.macs == 50 * 33 * (20 + 10)
    assert work.offchip_read_bytes == 2 * (50 * 20 + 4 * (20 * 33 + 33 * 10))
    assert fused_reasons(Fused(256, 256, 64, 64, 64, 16, 16)) == (COPY_TIME,)
    assert fused_reasons(Fused(256, 256, 64, 64, 16, 16, 64)) == ()
