"""From a YAML file to an `Accelerator`, with every mistake reported at its line and column.

    name: chip
    clock: 940 MHz
    source: its data sheet             # of every number that has no source of its own
    offchip:
      bandwidth: 50 GiBps
      ...

is answered by

    chip.yaml:5:14: error: offchip.bandwidth: 'GiBps' is no unit of a bandwidth
     5 |   bandwidth: 50 GiBps
       |              ^~~~~~~~
       = help: did you mean 'GiB/s'?

`keys.KEYS` says which keys exist, the types of the record's fields say what each one holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from importlib import resources
from os.path import isfile
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml

from flatc.accelerators import units
from flatc.accelerators.document import Document, Entry
from flatc.accelerators.keys import KEYS, NO_UNIT, SHARED_BANDWIDTH, SOURCE, UNLIMITED, keys_of
from flatc.dialects.accelerator import (
    FOLDINGS,
    NO_VECTOR_UNIT,
    PE_OPERATIONS,
    STATIONARITIES,
    Accelerator,
    OffchipMemory,
    field_paths,
)
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.frozen import frozen
from flatc.dialects.records import Quantity, defaults, field_types, quantities

_Record = TypeVar("_Record")

_LISTS = {"stationarities": STATIONARITIES, "foldings": FOLDINGS}


def names() -> tuple[str, ...]:
    """The accelerators that flatc ships, in alphabetical order."""
    files = [file.name for file in resources.files("flatc.accelerators").iterdir()]
    return tuple(sorted(file.removesuffix(".yaml") for file in files if file.endswith(".yaml")))


def load(name_or_path: str | Path) -> Accelerator:
    """The shipped accelerator of that name, or the one in that YAML file."""
    name = str(name_or_path)
    if name in names():
        shipped = resources.files("flatc.accelerators") / f"{name}.yaml"
        return _Reader(Document(shipped.read_text(encoding="utf-8"), f"{name}.yaml", known=True)).accelerator()
    path = Path(name)
    if len(path.parts) < 2 and path.suffix not in (".yaml", ".yml") and not isfile(path):
        raise FlatcError(
            f"no accelerator is named '{name}'",
            notes=[f"flatc ships {', '.join(names())}"],
            help=did_you_mean(name, names()) or "give one of these names, or the path of a YAML file",
        )
    return parse(_read(path), name)


def parse(text: str, file: str) -> Accelerator:
    """The accelerator that `text` describes; `file` names it in errors."""
    return _Reader(Document(text, file)).accelerator()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlatcError(f"'{path}' is no accelerator file: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FlatcError(f"cannot read the accelerator file '{path}': {reason}") from error


@frozen
class _Place:
    """Where a value belongs: the dotted keys of the file, and the dotted fields of the record."""

    keys: str = ""
    fields: str = ""

    def down(self, key: str, field: str) -> _Place:
        return _Place(f"{self.keys}.{key}".lstrip("."), f"{self.fields}.{field}".lstrip("."))


class _Reader:
    """One walk over one document, guided by the types of the record."""

    def __init__(self, document: Document):
        self.document = document
        self.clock_hz: int | None = None
        self.sources: dict[str, str] = {}
        self.left_out: set[str] = set()

    def accelerator(self) -> Accelerator:
        root, place = self.document.root, _Place()
        values = self._fields(root, Accelerator, place)
        order = ("all", *field_paths())
        values["sources"] = tuple((path, self.sources[path]) for path in order if path in self.sources)
        accelerator = self._build(Accelerator, values, root, place)
        for path in field_paths():
            is_group = any(p.startswith(path + ".") for p in field_paths())
            if not is_group and path not in self.left_out and accelerator.source_of(path) is None:
                help = f"add '{SOURCE}: TEXT' to the file or the group; 'assumption' is an honest source"
                self.document.fail(root, f"no source is given for {path}", help=help)
        return accelerator

    def _group(self, node: yaml.Node, kind: type[_Record], place: _Place) -> _Record:
        return self._build(kind, self._fields(node, kind, place), node, place)

    def _build(self, kind: type[_Record], values: dict[str, Any], node: yaml.Node, place: _Place) -> _Record:
        """The record of these values; what only the record can judge is reported at the field it names."""
        try:
            return kind(**values)
        except FlatcError as error:
            field, _, rest = error.message.removeprefix(f"{kind.__name__}.").partition(" ")
            for key, known in KEYS[kind].items():
                if field == known:
                    found = self.document.entries(node, place.keys)[key].node
                    self.document.fail(found, f"{place.down(key, known).keys} {rest}", help=error.help)
            self.document.fail(node, error.message, help=error.help)

    def _fields(self, node: yaml.Node, kind: type, place: _Place) -> dict[str, Any]:
        """The value of each field of `kind`, by field name; sources are noted on the way."""
        entries = self.document.entries(node, place.keys or "an accelerator file")
        self._reject_unknown(entries, keys_of(kind), place)
        self._read_sources(entries.pop(SOURCE, None), kind, place)
        if kind is OffchipMemory:
            self._split_bandwidth(entries, place)
        values: dict[str, Any] = {}
        for key, field in KEYS[kind].items():
            if key not in entries and field in defaults(kind):
                self.left_out.add(place.down(key, field).fields)
                continue
            if key not in entries:
                shown = place.down(SHARED_BANDWIDTH if key == "read_bandwidth" else key, field).keys
                self.document.fail(node, f"missing field '{shown}'", help=_example(kind, key, field))
            here = place.down(entries[key].key.value, field)
            values[field] = self._value(entries[key].node, kind, field, here)
            if field == "clock_hz":
                self.clock_hz = values[field]
        return values

    def _reject_unknown(self, entries: dict[str, Entry], known: Iterable[str], place: _Place) -> None:
        for key, entry in entries.items():
            if key not in known:
                self.document.fail(
                    entry.key,
                    f"unknown field '{place.down(key, key).keys}'",
                    notes=[f"known here: {', '.join(known)}"],
                    help=did_you_mean(key, known),
                )

    def _split_bandwidth(self, entries: dict[str, Entry], place: _Place) -> None:
        """One bandwidth stands for that of reads and that of writes."""
        both = entries.pop(SHARED_BANDWIDTH, None)
        for key in ("read_bandwidth", "write_bandwidth"):
            if both and key in entries:
                self.document.fail(
                    entries[key].key, f"{place.keys} has '{SHARED_BANDWIDTH}' already: drop it or '{key}'"
                )
            if both:
                entries[key] = both

    def _read_sources(self, entry: Entry | None, kind: type, place: _Place) -> None:
        if entry is None:
            return
        whole = place.fields or "all"
        if not isinstance(entry.node, yaml.MappingNode):
            self.sources[whole] = self._source(entry.node, place)
            return
        entries = self.document.entries(entry.node, place.down(SOURCE, SOURCE).keys)
        fields = {key: key for key in keys_of(kind) if key not in ("name", "description", SOURCE)}
        self._reject_unknown(entries, ("all", *fields), place.down(SOURCE, SOURCE))
        for key, source in entries.items():
            text = self._source(source.node, place)
            keys = ("read_bandwidth", "write_bandwidth") if _is_shared(kind, key) else (key,)
            for each in keys:
                path = whole if each == "all" else place.down(each, KEYS[kind][each]).fields
                self.sources[path] = text

    def _source(self, node: yaml.Node, place: _Place) -> str:
        what = place.down(SOURCE, SOURCE).keys
        text = self.document.text(node, what)
        if not text:
            self.document.fail(node, f"{what} is empty", help="say where the number is from, or 'assumption'")
        return text

    def _value(self, node: yaml.Node, kind: type, field: str, place: _Place) -> Any:
        """What `node` says for one field, as the type that the record declares."""
        hint = field_types(kind)[field]
        if kind is Accelerator and field == "vector" and _says(node, NO_UNIT):
            return NO_VECTOR_UNIT
        if is_dataclass(hint):
            return self._group(node, cast(type[Any], hint), place)
        if field == "pe_cycles":
            return self._operations(node, place)
        if field in _LISTS:
            example = f"[{', '.join(_LISTS[field])}]"
            items = self.document.items(node, place.keys, example)
            return tuple(self._choice(item, _LISTS[field], place) for item in items)
        if get_origin(hint) is Literal:
            return self._choice(node, get_args(hint), place)
        if hint is str:
            return self._name(node, place)
        if type(None) in get_args(hint) and _says(node, UNLIMITED):
            return None
        return self._quantity(node, quantities(kind)[field], place, whole=hint is not float)

    def _name(self, node: yaml.Node, place: _Place) -> str:
        text = self.document.text(node, place.keys)
        if not text:
            self.document.fail(node, f"{place.keys} is empty")
        return text

    def _choice(self, node: yaml.Node, known: tuple[str, ...], place: _Place) -> str:
        text = self.document.text(node, place.keys)
        if text not in known:
            expected = f"{place.keys} must be one of {', '.join(known)}; got '{text}'"
            self.document.fail(node, expected, help=did_you_mean(text, known))
        return text

    def _operations(self, node: yaml.Node, place: _Place) -> tuple[tuple[str, int], ...]:
        """What the PEs of the array can do, and in how many cycles."""
        entries = self.document.entries(node, place.keys)
        self._reject_unknown(entries, PE_OPERATIONS, place)
        cycles = Quantity("cycles", 1)
        return tuple(
            (name, self._quantity(entries[name].node, cycles, place.down(name, name), whole=True))
            for name in PE_OPERATIONS
            if name in entries
        )

    def _quantity(self, node: yaml.Node, quantity: Quantity, place: _Place, *, whole: bool) -> Any:
        """A number with its unit, in base units: an int where `whole`, else a float."""
        text = self.document.text(node, place.keys)
        try:
            value = units.parse(text, quantity.unit, self.clock_hz)
        except FlatcError as error:
            self.document.fail(node, f"{place.keys}: {error.message}", help=error.help)
        if whole and value.denominator != 1:
            of = f" of {quantity.unit}" if quantity.unit else ""
            self.document.fail(node, f"{place.keys} must be a whole number{of}, got '{text}'")
        if value < quantity.minimum:
            self.document.fail(node, f"{place.keys} must be {quantity.expectation}, got '{text}'")
        return int(value) if whole else float(value)


def _says(node: yaml.Node, word: str) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == word


def _is_shared(kind: type, key: str) -> bool:
    return kind is OffchipMemory and key == SHARED_BANDWIDTH


def _example(kind: type, key: str, field: str) -> str:
    """How a missing field would look."""
    hint = field_types(kind)[field]
    key = SHARED_BANDWIDTH if key == "read_bandwidth" else key
    if is_dataclass(hint):
        also = f", or '{key}: {NO_UNIT}'" if kind is Accelerator and field == "vector" else ""
        return f"add the group '{key}:' with {', '.join(KEYS[cast(type, hint)])}{also}"
    if field == "pe_cycles":
        return f"for example '{key}: {{mac: 1 cycle}}'"
    if field in _LISTS:
        return f"for example '{key}: [{_LISTS[field][0]}]'"
    if get_origin(hint) is Literal:
        return f"'{key}:' with one of {', '.join(get_args(hint))}"
    if hint is str:
        return f"for example '{key}: chip'"
    return f"for example '{key}: {units.MEASURES[quantities(kind)[field].unit].example}'"
