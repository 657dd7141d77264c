"""Numbers with units, and columns that line up.

>>> from fractions import Fraction
>>> duration(0.0123), size(1_500_000), energy(2.5e9), cycles(Fraction(7, 2)), percent(0.978)
('12.30 ms', '1.43 MiB', '2.50 mJ', '3.5', '97.8 %')
>>> print("\\n".join(table([["name", "bytes"], ["q", "4,096"]], align="<>")))
name  bytes
q     4,096
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (float("inf"), 1, "s")):
        if seconds < limit:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds} s"


def size(count: int) -> str:
    """Bytes in binary units, exact below 1 KiB."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 5)
    return f"{count / 1024**power:.2f} {('KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power - 1]}"


def energy(picojoules: float) -> str:
    """Energy in the unit that suits it."""
    for limit, factor, unit in ((1e3, 1, "pJ"), (1e6, 1e3, "nJ"), (1e9, 1e6, "uJ"), (1e12, 1e9, "mJ")):
        if picojoules < limit:
            return f"{picojoules / factor:.2f} {unit}"
    return f"{picojoules / 1e12:,.2f} J"


def cycles(count: Fraction) -> str:
    """Cycles with separators, one decimal where they are few and not whole."""
    if count.denominator == 1 or count >= 1000:
        return f"{round(count):,}"
    return f"{float(count):,.1f}"


def percent(part: float) -> str:
    """A share of one."""
    return f"{100 * part:.1f} %"


def times(value: Fraction, of: Fraction) -> str:
    """How many times `of` a value is: `1.25x`."""
    return f"{float(value / of):.2f}x" if of else "-"


def table(rows: Sequence[Sequence[str]], align: str, indent: str = "") -> list[str]:
    """Rows as lines; `align` has `<` or `>` for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines: list[str] = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
