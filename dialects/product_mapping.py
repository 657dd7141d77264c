"""Mappings of one matrix product: y[m, n] = x[m, k] . w[k, n], plus a bias of n.

The text is what `#flat.mapping<...>` contains:

    product
    tiles(m 256, n 512, k 768)
    order(m, n)
    keep(x x2 at m, w x2 at k, sums x2, y x3)
    array(weight stationary, fold 1 x 1)
    stages(load 0, multiply 0, store 2)

`order` names the loops over tiles of m and n, outermost first; k is innermost, so that partial sums stay on chip until
they are done. Slots (`x2`) are copies of a tile, so that the next can arrive while one is used.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, cast, get_args

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import (
    ArrayUse,
    MappingTokens,
    array_text,
    parse_array_use,
    parse_choice,
    parse_named_integers,
    parse_slots,
)

ProductDim = Literal["m", "n"]
XLevel = Literal["k", "m"]
WLevel = Literal["k", "n"]


@frozen
class ProductTiles:
    """Rows, columns and terms of the sum that are worked on at a time."""

    m: int
    n: int
    k: int


@frozen
class ProductKeep:
    """Slots of each tensor's buffer, and across which loop x and w stay on chip.

    At `k` a tile is loaded for every turn of the innermost loop. At `m` (x) or `n` (w) the whole strip, all of k, is
    loaded at every turn of that loop, and stays for the loops inside of it; where one tile covers the dimension, it
    is loaded once for the kernel. `sums` counts tiles of partial sums, `y` tiles of results; where results have the
    type of the sums they are the same buffer, and both numbers are equal.
    """

    x_slots: int
    w_slots: int
    sums_slots: int
    y_slots: int
    x_level: XLevel = "k"
    w_level: WLevel = "k"


@frozen
class ProductStages:
    """Pipeline stage of each kind of work; `multiply` covers the bias or conversion after it."""

    load: int
    multiply: int
    store: int


@frozen
class ProductMapping:
    """One point of the map space of a product. See the module docstring for the text form."""

    tiles: ProductTiles
    order: tuple[ProductDim, ProductDim]
    keep: ProductKeep
    array: ArrayUse
    stages: ProductStages

    def to_text(self, separator: str = " ") -> str:
        """The text form; `parse_product_mapping` reads it back, after the word `product`."""
        keep = self.keep
        return separator.join(
            [
                "product",
                f"tiles({_named(self.tiles)})",
                f"order({', '.join(self.order)})",
                f"keep(x x{keep.x_slots} at {keep.x_level}, w x{keep.w_slots} at {keep.w_level}, "
                f"sums x{keep.sums_slots}, y x{keep.y_slots})",
                f"array({array_text(self.array)})",
                f"stages({_named(self.stages)})",
            ]
        )


def _named(record: ProductTiles | ProductStages) -> str:
    return ", ".join(f"{f.name} {getattr(record, f.name)}" for f in fields(record))


def parse_product_mapping(tokens: MappingTokens) -> ProductMapping:
    """Parses what `ProductMapping.to_text` prints, after its first word."""
    tiles = ProductTiles(*parse_named_integers(tokens, "tiles", ("m", "n", "k"), least=1))
    order = _parse_order(tokens)
    keep = _parse_keep(tokens)
    array = parse_array_use(tokens, "array")
    stages = ProductStages(*parse_named_integers(tokens, "stages", ("load", "multiply", "store"), least=0))
    return ProductMapping(tiles, order, keep, array, stages)


def _parse_order(tokens: MappingTokens) -> tuple[ProductDim, ProductDim]:
    tokens.parse_keyword("order")
    tokens.parse_punctuation("(")
    first = cast(ProductDim, parse_choice(tokens, get_args(ProductDim), "loop"))
    tokens.parse_punctuation(",")
    second: ProductDim = "n" if first == "m" else "m"
    parse_choice(tokens, (second,), "second loop")
    tokens.parse_punctuation(")")
    return first, second


def _parse_keep(tokens: MappingTokens) -> ProductKeep:
    tokens.parse_keyword("keep")
    tokens.parse_punctuation("(")
    x_slots = parse_slots(tokens, "x")
    tokens.parse_keyword("at")
    x_level = cast(XLevel, parse_choice(tokens, get_args(XLevel), "level"))
    tokens.parse_punctuation(",")
    w_slots = parse_slots(tokens, "w")
    tokens.parse_keyword("at")
    w_level = cast(WLevel, parse_choice(tokens, get_args(WLevel), "level"))
    tokens.parse_punctuation(",")
    sums_slots = parse_slots(tokens, "sums")
    tokens.parse_punctuation(",")
    y_slots = parse_slots(tokens, "y")
    tokens.parse_punctuation(")")
    return ProductKeep(x_slots, w_slots, sums_slots, y_slots, x_level, w_level)
