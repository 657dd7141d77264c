"""The accelerator: one record that holds every fact about a machine, and the attribute that carries it.

A module that is compiled for a machine has the machine in itself, so that every pass is a function of
the IR alone and a schedule file is complete:

    builtin.module attributes {spatial.accelerator = #spatial.accelerator<
      name = edge,
      description = "FLAT's edge accelerator",
      clock_hz = 940000000,
      offchip = {read_bytes_per_second = 53687091200, ..., channels = shared, ...},
      buffer = {capacity_bytes = 524288, ...},
      ...
      sources = {all = "FLAT, ASPLOS 2023"}>} {

Passes ask `accelerator_of(module)` and read fields; they never load files. Users write YAML
(`flatc.accelerators`). All numbers here are in base units: bytes, bytes per second, cycles, picojoules.

    accelerator = accelerator_of(module)
    cycles = accelerator.cycles_per_byte_read * 4096        # exact: a Fraction
    print(accelerator.seconds(cycles))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Data
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.dialects.frozen import frozen
from flatc.dialects.records import (
    Quantity,
    check_fields,
    field_types,
    parse_record,
    print_record,
)

MODULE_ATTRIBUTE = "spatial.accelerator"
"""The attribute of `builtin.module` that holds its accelerator."""

STATIONARITIES = ("output", "weight", "input")
FOLDINGS = ("rows", "columns", "contraction")
VECTOR_OPERATIONS = ("max", "exp", "add", "multiply", "divide", "select", "cast", "reduce")
PE_OPERATIONS = ("mac", *VECTOR_OPERATIONS)

_Bytes = Annotated[int, Quantity("B", 1)]
_BytesOrZero = Annotated[int, Quantity("B")]
_Bandwidth = Annotated[int, Quantity("B/s", 1)]
_Count = Annotated[int, Quantity("", 1)]
_Cycles = Annotated[int, Quantity("cycles")]
_Energy = Annotated[float, Quantity("pJ")]
_EnergyPerByte = Annotated[float, Quantity("pJ/B")]


@frozen
class OffchipMemory:
    """The memory outside the chip. On a shared channel reads and writes take turns at one bandwidth."""

    read_bytes_per_second: _Bandwidth
    write_bytes_per_second: _Bandwidth
    channels: Literal["shared", "separate"]
    latency_cycles: _Cycles
    """Until the data of a transfer are there; the channel may take the next one meanwhile."""
    energy_pj_per_byte: _EnergyPerByte
    overhead_cycles: _Cycles = 0
    """How long each transfer holds its channel beyond its bytes."""

    def __post_init__(self):
        check_fields(self)
        if self.channels == "shared" and self.read_bytes_per_second != self.write_bytes_per_second:
            raise FlatcError(
                "OffchipMemory.channels is shared, so reads and writes have one bandwidth; got "
                f"{self.read_bytes_per_second} B/s and {self.write_bytes_per_second} B/s",
                help="make them equal, or the channels separate",
            )


@frozen
class Buffer:
    """The on-chip memory that the schedule manages."""

    capacity_bytes: _Bytes
    bandwidth_bytes_per_second: _Bandwidth | None
    """Of one port; None when it never limits."""
    ports: _Count
    read_energy_pj_per_byte: _EnergyPerByte
    write_energy_pj_per_byte: _EnergyPerByte

    def __post_init__(self):
        check_fields(self)


@frozen
class Registers:
    """The storage inside a processing element (PE)."""

    bytes_per_pe: _BytesOrZero
    """0 when no source states it: then nothing is checked against it."""
    energy_pj_per_byte: _EnergyPerByte

    def __post_init__(self):
        check_fields(self)


@frozen
class Array:
    """The 2D array of processing elements, each doing one operation at a time."""

    rows: _Count
    columns: _Count
    stationarities: tuple[str, ...]
    """Which operand of a product may stay in the PEs: of `STATIONARITIES`."""
    pe_cycles: tuple[tuple[str, int], ...]
    """The operations a PE can do and the cycles each takes: of `PE_OPERATIONS`, always with mac."""
    skew: Literal["exposed", "overlapped", "none"]
    """Whether filling and draining the array is paid for each tile, hidden behind the next, or absent."""
    foldings: tuple[str, ...]
    """Where a dimension narrower than the array can leave room for another piece of work: of `FOLDINGS`."""
    mac_energy_pj: _Energy
    overhead_cycles: _Cycles = 0
    """How long each operation holds the array beyond its passes and their skew: to start it and to drain it."""
    chaining: Literal["direct", "copied"] = "direct"
    """How a result becomes the operand of the next product: read where it lies, or copied in the buffer first."""

    def __post_init__(self):
        check_fields(self)
        _check_names("Array.stationarities", self.stationarities, STATIONARITIES)
        _check_names("Array.foldings", self.foldings, FOLDINGS)
        _check_names("Array.pe_cycles", [name for name, _ in self.pe_cycles], PE_OPERATIONS)
        if not self.stationarities:
            raise FlatcError("Array.stationarities must name at least one of " + ", ".join(STATIONARITIES))
        if self.cycles_of("mac") is None:
            raise FlatcError("Array.pe_cycles must price 'mac': the array computes matrix products")
        for name, cycles in self.pe_cycles:
            if cycles < 1:
                raise FlatcError(f"Array.pe_cycles.{name} must be positive, got {cycles}")

    @property
    def pes(self) -> int:
        """How many processing elements there are."""
        return self.rows * self.columns

    def passes(self, batch: Any, p: Any, q: Any, fold: tuple[Any, Any]) -> Any:
        """How often the array is filled by `batch` pieces of p x q, cut to its size, `fold` of them at a time.

        For integers and arrays of integers.
        """
        pieces = batch * -(-p // self.rows) * -(-q // self.columns)
        return -(-pieces // (fold[0] * fold[1]))

    def cycles_of(self, operation: str) -> int | None:
        """The cycles a PE takes for `operation`, or None when it cannot do it."""
        return dict(self.pe_cycles).get(operation)


@frozen
class VectorPrices:
    """Lane-cycles for each element: 0 is free. `exp` is of scale * (x - m), fused; `reduce` sums."""

    max: _Cycles
    exp: _Cycles
    add: _Cycles
    multiply: _Cycles
    divide: _Cycles
    select: _Cycles
    cast: _Cycles
    reduce: _Cycles

    def __post_init__(self):
        check_fields(self)


@frozen
class VectorEnergies:
    """Picojoules for each element; the PEs of an array pay the same for these operations."""

    max: _Energy
    exp: _Energy
    add: _Energy
    multiply: _Energy
    divide: _Energy
    select: _Energy
    cast: _Energy
    reduce: _Energy

    def __post_init__(self):
        check_fields(self)


@frozen
class VectorUnit:
    """The 1D unit for everything that is no matrix product. A machine without one has no lanes."""

    lanes: Annotated[int, Quantity("")]
    prices: VectorPrices
    energies_pj: VectorEnergies

    def __post_init__(self):
        check_fields(self)
        if not self.lanes and any(vars(self.prices).values()):
            raise FlatcError(
                "VectorUnit.lanes must be positive where operations have a price",
                help="a machine without a vector unit has NO_VECTOR_UNIT; in YAML: 'vector: none'",
            )


NO_VECTOR_UNIT = VectorUnit(0, VectorPrices(*[0] * 8), VectorEnergies(*[0.0] * 8))
"""What a machine that only multiplies matrices has."""


@frozen
class Words:
    """Sizes of values where a graph is silent about its types."""

    storage_bytes: _Bytes
    accumulator_bytes: _Bytes

    def __post_init__(self):
        check_fields(self)


@frozen
class Accelerator:
    """One machine. `sources` says where the numbers are from: (field path, text), see `source_of`."""

    name: str
    description: str
    clock_hz: Annotated[int, Quantity("Hz", 1)]
    offchip: OffchipMemory
    buffer: Buffer
    registers: Registers
    array: Array
    vector: VectorUnit
    words: Words
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_fields(self)
        _check_names("Accelerator.sources", [path for path, _ in self.sources], ("all", *field_paths()))

    @cached_property
    def cycles_per_byte_read(self) -> Fraction:
        """Cycles that a byte read from off-chip memory holds its channel."""
        return Fraction(self.clock_hz, self.offchip.read_bytes_per_second)

    @cached_property
    def cycles_per_byte_written(self) -> Fraction:
        """Cycles that a byte written to off-chip memory holds its channel."""
        return Fraction(self.clock_hz, self.offchip.write_bytes_per_second)

    @cached_property
    def buffer_cycles_per_byte(self) -> Fraction:
        """Cycles that a byte holds one port of the buffer: 0 when the buffer never limits."""
        bandwidth = self.buffer.bandwidth_bytes_per_second
        return Fraction(self.clock_hz, bandwidth) if bandwidth else Fraction(0)

    @cached_property
    def cycles_per_byte_copied(self) -> Fraction:
        """Cycles of a byte that is copied within the buffer: read and written, at once where there are two ports."""
        return self.buffer_cycles_per_byte * (2 if self.buffer.ports == 1 else 1)

    @property
    def free_vector_operations(self) -> tuple[str, ...]:
        """The vector operations that this machine does not charge; a report must say so."""
        if not self.vector.lanes:
            return ()
        return tuple(name for name in VECTOR_OPERATIONS if getattr(self.vector.prices, name) == 0)

    def seconds(self, cycles: Fraction | int) -> float:
        """How long `cycles` take."""
        return float(Fraction(cycles) / self.clock_hz)

    def source_of(self, path: str) -> str | None:
        """Where the field at `path` ("buffer.ports") is from: its own source, else that of its group."""
        known = dict(self.sources)
        while path not in known and path:
            path = path.rpartition(".")[0]
        return known.get(path or "all")


def field_paths(record: type = Accelerator, prefix: str = "") -> tuple[str, ...]:
    """The path of every field that may have a source: "clock_hz", "buffer", "buffer.ports", ..."""
    paths: list[str] = []
    for name, hint in field_types(record).items():
        if prefix or name not in ("name", "description", "sources"):
            paths.append(prefix + name)
        if is_dataclass(hint):
            paths += field_paths(cast(type, hint), f"{prefix}{name}.")
    return tuple(paths)


def _check_names(what: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise unless every name is known and occurs once."""
    seen: set[str] = set()
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            choices = f"it may name {', '.join(known)}" if len(known) < 10 else None
            raise FlatcError(f"{what} has an unknown entry '{name}'", help=near or choices)
        if name in seen:
            raise FlatcError(f"{what} names '{name}' twice")
        seen.add(name)


@irdl_attr_definition
class AcceleratorAttr(Data[Accelerator]):
    """An accelerator in the IR: `#spatial.accelerator<name = edge, ...>`, one group of fields a line."""

    name = "spatial.accelerator"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Accelerator:
        return parse_record(Accelerator, parser)

    def print_parameter(self, printer: Printer) -> None:
        with printer.delimited("<\n  ", ">"):
            print_record(self.data, printer, separator=",\n  ")


def attach_accelerator(module: ModuleOp, accelerator: Accelerator) -> None:
    """Make `accelerator` the machine that `module` is compiled for."""
    module.attributes[MODULE_ATTRIBUTE] = AcceleratorAttr(accelerator)


def accelerator_of(module: ModuleOp) -> Accelerator:
    """The machine that `module` is compiled for."""
    attribute: Any = module.attributes.get(MODULE_ATTRIBUTE)
    if isinstance(attribute, AcceleratorAttr):
        return attribute.data
    found = "no" if attribute is None else f"a wrong ({attribute})"
    raise FlatcError(
        f"the module has {found} '{MODULE_ATTRIBUTE}' attribute, so this pass does not know the machine",
        position=position_of(module),
        help="attach one: flatc-opt --accelerator NAME, or attach_accelerator(module, accelerator)",
    )
