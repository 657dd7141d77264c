"""RTL simulation of a 16 x 16 array (rtl_gemm.csv, rtl_fused_gemm.csv): cycles, and traffic at two levels.

The machine is `flatc/accelerators/rtl16.yaml`. Its two latencies are read off the 16 x 16 x 16-tile rows of
rtl_gemm.csv: a trip loads two tiles in 12 cycles more than their words, so a transfer holds its channel for 6 cycles
more; a run ends 62 cycles after the last product's words, 6 of them the store's, so an operation of the array takes 56
cycles more. How the machine orders its work is in the mappings, and was found by explaining the rows:

    product   four output tiles are under way in turn, the loop over tile_k outside of them; four sets of operands
    fused     four blocks of tile_m rows are under way in turn, each with its own loads; B comes whole, D by tile_l

A product C = A . B and its transpose cost the same, so the side with fewer tiles takes the place of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from xdsl.context import Context

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.dialects.spatial import KernelOp
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from flatc.passes.simulation.simulator import KernelSimulation, simulate_kernel
from flatc.validation.experiment import mappings
from flatc.validation.model import Row, Table
from flatc.validation.records import Record

PRODUCT_TOLERANCE = 0.002
FUSED_TOLERANCE = 0.02

MACHINE = "rtl16"
UNDER_WAY = 4
"""Output tiles, or blocks of rows, that the machine works on in turn."""
BITS = 8

SHARED_SLOT = (
    "a slot for each of four interleaved tiles: the machine starts a tile when the tile two before it is stored; flatc "
    "has one slot for the four, so the next four wait for the last store, which shows where loads leave no slack for it"
)
MORE_TILES = (
    "four of more tiles in turn: neither side has four tiles or fewer, and flatc interleaves a whole row of them"
)
COPY_TIME = (
    "the time of a copy between products: the machine copies a block of C in the buffer before D meets it, at 32 words "
    "a cycle; flatc counts the copy's traffic and not its time, which shows where loads do not hide it"
)


@frozen
class Product:
    """C[m, n] = A[m, k] . B[k, n]."""

    m: int
    n: int
    k: int
    tile_m: int
    tile_n: int
    tile_k: int

    @property
    def transposed(self) -> Product:
        """The same product of the transposed operands."""
        return Product(self.n, self.m, self.k, self.tile_n, self.tile_m, self.tile_k)

    @property
    def m_tiles(self) -> int:
        """Tiles along m."""
        return ceil_divide(self.m, self.tile_m)

    @property
    def n_tiles(self) -> int:
        """Tiles along n."""
        return ceil_divide(self.n, self.tile_n)

    @property
    def oriented(self) -> Product:
        """The one of the two transposes that has fewer tiles along n; of equals, the wider tile along m."""
        return min(self, self.transposed, key=lambda p: (p.n_tiles, -p.tile_m))

    @property
    def is_accumulated(self) -> bool:
        """Whether an output tile takes several trips over k."""
        return self.tile_k < self.k

    def waits(self, machine: Accelerator) -> bool:
        """Whether a trip's load is shorter than its product, or than the store of an output tile."""
        tile = self.tile_m * self.tile_n
        load = (self.tile_m + self.tile_n) * self.tile_k * _word_cycles(machine) + 2 * machine.offchip.overhead_cycles
        product = tile * self.tile_k // machine.array.pes + machine.array.overhead_cycles
        return max(product, tile * _word_cycles(machine) + machine.offchip.overhead_cycles) > load


@frozen
class Fused:
    """C[m, l] = A[m, k] . B[k, l], then E[m, n] = C[m, l] . D[l, n]."""

    m: int
    l: int  # noqa: E741 - the column's name
    k: int
    n: int
    tile_m: int
    tile_k: int
    tile_l: int


def _word_cycles(machine: Accelerator) -> Fraction:
    """Cycles of a word on an off-chip channel."""
    return machine.words.storage_bytes * machine.cycles_per_byte_read


# --- Mappings and schedules -----------------------------------------------------------------------------------


def product_mapping(product: Product) -> Mapping:
    """How the machine runs a product that is `oriented`."""
    p = product
    parts = min(max(1, UNDER_WAY // p.n_tiles), p.m_tiles) if p.is_accumulated else 1
    sets = 1 if p.is_accumulated else 2
    words = {"rows": p.tile_m, "columns": p.tile_n, "depth": p.tile_k, "parts": parts, "sets": sets}
    return mappings("rtl_product", **words)[""]


def fused_mapping(fused: Fused) -> Mapping:
    """How the machine runs two products."""
    f = fused
    parts = min(UNDER_WAY, ceil_divide(f.m, f.tile_m))
    return mappings("rtl_fused", rows=f.tile_m, columns=f.tile_l, depth=f.tile_k, width=f.n, parts=parts)[""]


@lru_cache(maxsize=4096)
def simulate_product(product: Product) -> KernelSimulation:
    """The schedule of an `oriented` product, simulated."""
    p = product
    graph = Graph("product", dtype="bf16", softmax="bf16")
    a, b = graph.input("a", [1, 1, p.m, p.k]), graph.input("b", [1, 1, p.n, p.k])
    graph.output(graph.logit(a, b, scale=1.0), names=["c"])
    return _simulate(graph, product_mapping(p))


def simulate_fused(fused: Fused) -> KernelSimulation:
    """The schedule of two products, simulated."""
    f = fused
    graph = Graph("fused", dtype="bf16", softmax="bf16")
    a, b, d = (
        graph.input(name, [1, 1, *shape]) for name, shape in (("a", (f.m, f.k)), ("b", (f.l, f.k)), ("d", (f.l, f.n)))
    )
    graph.output(graph.attend(graph.logit(a, b, scale=1.0), d), names=["e"])
    return _simulate(graph, fused_mapping(f))


def _simulate(graph: Graph, mapping: Mapping) -> KernelSimulation:
    module, machine = graph.module(), load(MACHINE)
    attach_accelerator(module, machine)
    FuseAttentionPass((WHOLE,)).apply(Context(), module)
    for op in module.walk():
        if isinstance(op, FusedOp):
            op.mapping = MappingAttr(mapping)
    for step in (LowerToSpatialPass(), AllocateBuffersPass()):
        step.apply(Context(), module)
    module.verify()
    (kernel,) = (op for op in module.walk() if isinstance(op, KernelOp))
    return simulate_kernel(kernel, machine)


# --- Tables ---------------------------------------------------------------------------------------------------


def product_tables(records: Sequence[Record]) -> list[Table]:
    """The table of rtl_gemm.csv."""
    rows = tuple(_product_row(record) for record in records)
    return [Table("rtl-product-cycles", "RTL, one product: cycles", "cycles", PRODUCT_TOLERANCE, "rtl_gemm.csv", rows)]


def _product_row(record: Record) -> Row:
    names = ("m", "n", "k", "tile_m", "tile_n", "tile_k")
    m, n, k, tile_m, tile_n, tile_k = (record.integer(name) for name in names)
    product = Product(m, n, k, min(tile_m, m), min(tile_n, n), min(tile_k, k))
    cycles = simulate_product(product.oriented).latency_cycles
    label = f"{m}x{n}x{k} by {tile_m}x{tile_n}x{tile_k}"
    return Row(label, record.integer("rtl_cycles"), float(cycles), product_reasons(product))


def product_reasons(product: Product) -> tuple[str, ...]:
    """What flatc lacks for this product."""
    if not product.is_accumulated:
        return ()
    many = product.oriented.n_tiles > UNDER_WAY
    return (MORE_TILES,) * many + (SHARED_SLOT,) * product.waits(load(MACHINE))


FUSED_COLUMNS = (
    ("rtl_cycles", "rtl-fused-cycles", "cycles", "cycles", FUSED_TOLERANCE),
    ("dram_to_buffer_bits", "rtl-fused-reads", "bits read off chip", "bits", 0.0),
    ("buffer_to_dram_bits", "rtl-fused-writes", "bits written off chip", "bits", 0.0),
    ("buffer_to_register_bits", "rtl-fused-buffer-reads", "bits from buffer to registers", "bits", 0.0),
    ("register_to_buffer_bits", "rtl-fused-buffer-writes", "bits from registers to buffer", "bits", 0.0),
)
"""Column, table, what it counts, its unit, and the tolerance."""


def fused_tables(records: Sequence[Record]) -> list[Table]:
    """The tables of rtl_fused_gemm.csv."""
    runs = [(record, _fused(record)) for record in records]
    figures = [(record, fused, figures_of(simulate_fused(fused))) for record, fused in runs]
    return [
        Table(
            name,
            f"RTL, two products fused: {title}",
            unit,
            tolerance,
            "rtl_fused_gemm.csv",
            tuple(_fused_row(*run, column) for run in figures),
        )
        for column, name, title, unit, tolerance in FUSED_COLUMNS
    ]


def _fused(record: Record) -> Fused:
    names = ("m", "l", "k", "n", "tile_m", "tile_k", "tile_l")
    sizes = {name: record.integer(name) for name in names}
    return Fused(*(min(sizes[name], sizes[name.removeprefix("tile_")]) for name in names))


def _fused_row(record: Record, fused: Fused, figures: dict[str, float], column: str) -> Row:
    f = fused
    label = f"{f.m}x{f.l}x{f.k}x{f.n} by {f.tile_m}x{f.tile_l}x{f.tile_k}"
    reasons = fused_reasons(fused) if column == "rtl_cycles" else ()
    return Row(label, record.integer(column), figures[column], reasons)


def figures_of(simulation: KernelSimulation) -> dict[str, float]:
    """The figures of a run, by column. Between buffer and registers is what transfers do not move."""
    work = simulation.work
    return {
        "rtl_cycles": float(simulation.latency_cycles),
        "dram_to_buffer_bits": BITS * work.offchip_read_bytes,
        "buffer_to_dram_bits": BITS * work.offchip_write_bytes,
        "buffer_to_register_bits": BITS * (work.buffer_read_bytes - work.offchip_write_bytes),
        "register_to_buffer_bits": BITS * (work.buffer_write_bytes - work.offchip_read_bytes),
    }


def fused_reasons(fused: Fused) -> tuple[str, ...]:
    """What flatc lacks for this run: where loads of D are too short to hide the copies of C."""
    machine = load(MACHINE)
    word = machine.words.storage_bytes
    copy = 2 * fused.tile_m * fused.l * word * machine.buffer_cycles_per_byte
    transfer = _word_cycles(machine)
    first = fused.tile_m * fused.l * fused.tile_k // machine.array.pes
    second = fused.tile_l * fused.n * transfer
    first_load = (fused.tile_m + fused.l) * fused.tile_k * transfer
    exposed = first + copy > 2 * second or first + copy > first_load
    return (COPY_TIME,) if exposed else ()
