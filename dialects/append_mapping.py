"""Mappings of a kernel that appends rows to a cache: how many heads and rows it carries at a time.

The text is what `#flat.mapping<...>` contains:

    append tiles(batch 1, head 8, row 1, slots 2)

A slot is one copy of the tile: with two, the next rows arrive while these are stored.
"""

from __future__ import annotations

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import MappingTokens, parse_named_integers

TILED = ("batch", "head", "row")


@frozen
class AppendMapping:
    """One point of the map space. See the module docstring for the text form."""

    batch: int
    head: int
    row: int
    slots: int

    @property
    def tiles(self) -> tuple[int, int, int]:
        """The tile of each of `TILED`."""
        return self.batch, self.head, self.row

    def to_text(self, separator: str = " ") -> str:
        """The text form; `parse_append_mapping` reads it back, after the word `append`."""
        tiles = ", ".join(f"{name} {size}" for name, size in zip(TILED, self.tiles, strict=True))
        return separator.join(["append", f"tiles({tiles}, slots {self.slots})"])


def parse_append_mapping(tokens: MappingTokens) -> AppendMapping:
    """Parses what follows the word `append`."""
    return AppendMapping(*parse_named_integers(tokens, "tiles", (*TILED, "slots"), least=1))
