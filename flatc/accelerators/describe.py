"""An accelerator as the text of an accelerator file: complete, readable, and loadable.

    name: edge
    description: FLAT's edge accelerator
    clock: 940 MHz

    buffer:
      capacity: 512 KiB
      ...

This is what `flatc accelerators NAME` prints. `load` reads it back as an equal record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, cast

from flatc.accelerators.keys import KEYS, NO_UNIT, SHARED_BANDWIDTH, SOURCE, UNLIMITED
from flatc.accelerators.units import format_quantity
from flatc.dialects.accelerator import NO_VECTOR_UNIT, Accelerator
from flatc.dialects.records import defaults, quantities

_PLAIN = re.compile(r"[A-Za-z0-9][\w .'()/+-]*(, [\w .'()/+-]+)*")


def describe(accelerator: Accelerator) -> str:
    """The YAML text of `accelerator`."""
    return "\n".join(_group(accelerator, dict(accelerator.sources), "", "")) + "\n"


def _group(record: Any, sources: dict[str, str], path: str, indent: str) -> Iterator[str]:
    """The lines of one group: its plain fields, where they are from, then the groups inside it."""
    groups: list[tuple[str, str]] = []
    for key, field in KEYS[type(record)].items():
        value = getattr(record, field)
        if path + field not in sources and defaults(type(record)).get(field) == value:
            continue
        if _is_group(value):
            groups.append((key, field))
        elif field == "write_bytes_per_second" and record.channels == "shared":
            continue
        else:
            yield f"{indent}{_shared(record, key)}: {_value(record, field, value)}"
    yield from _sources(record, sources, path, indent)
    for key, field in groups:
        if not indent:
            yield ""
        yield f"{indent}{key}:"
        yield from _group(getattr(record, field), sources, f"{path}{field}.", indent + "  ")


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and value != NO_VECTOR_UNIT


def _shared(record: Any, key: str) -> str:
    """`bandwidth` where reads and writes share the channel."""
    if key == "read_bandwidth" and record.channels == "shared":
        return SHARED_BANDWIDTH
    return key


def _value(record: Any, field: str, value: Any) -> str:
    if value is None:
        return UNLIMITED
    if value == NO_VECTOR_UNIT:
        return NO_UNIT
    if isinstance(value, str):
        return _text(value)
    if field == "pe_cycles":
        return "{" + ", ".join(f"{name}: {format_quantity(cycles, 'cycles')}" for name, cycles in value) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(cast(tuple[str, ...], value)) + "]"
    return format_quantity(value, quantities(record.__class__)[field].unit)


def _sources(record: Any, sources: dict[str, str], path: str, indent: str) -> Iterator[str]:
    whole = sources.get(path.removesuffix(".") or "all")
    own = {
        _shared(record, key): sources[path + field]
        for key, field in KEYS[type(record)].items()
        if path + field in sources and not _is_group(getattr(record, field))
    }
    if SHARED_BANDWIDTH in own:
        own.pop("write_bandwidth", None)
    if whole and not own:
        yield f"{indent}{SOURCE}: {_text(whole)}"
    elif own:
        yield f"{indent}{SOURCE}:"
        for key, text in {**({"all": whole} if whole else {}), **own}.items():
            yield f"{indent}  {key}: {_text(text)}"


def _text(text: str) -> str:
    """`text` as a YAML scalar, in quotes only where YAML needs them."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
