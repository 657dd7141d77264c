"""What mappings of all kinds of kernels have in common: a text form, that says of which kind it is.

    #flat.mapping<tiles(batch 1, ...) keep(Q x2, ...) ...>         attention (`mapping`)
    #flat.mapping<product tiles(m 256, ...) order(m, n) ...>       a matrix product (`product_mapping`)
    #flat.mapping<vector tiles(4 x 768) order(0, 1) ...>           chains of vector operations (`vector_mapping`)

Every other kind begins with its own name; `_PARSERS` lists them. The records themselves know nothing of each other, and
what they mean is the business of their kind (`flatc.passes.kinds`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from flatc.dialects.append_mapping import parse_append_mapping
from flatc.dialects.mapping import MappingTokens, parse_mapping
from flatc.dialects.product_mapping import parse_product_mapping
from flatc.dialects.vector_mapping import parse_vector_mapping


@runtime_checkable
class KernelMapping(Protocol):
    """A mapping of any kind: a frozen record that prints itself."""

    def to_text(self, separator: str = " ") -> str:
        """The text form, without `#flat.mapping<>`; `parse_kernel_mapping` reads it back."""
        ...

    def __hash__(self) -> int: ...


_PARSERS: dict[str, Callable[[MappingTokens], KernelMapping]] = {
    "append": parse_append_mapping,
    "product": parse_product_mapping,
    "vector": parse_vector_mapping,
}
"""How the mapping of a kind is read, by the word that it begins with; an attention's begins with its tiles."""


def parse_kernel_mapping(tokens: MappingTokens) -> KernelMapping:
    """Parses what `to_text` of any kind prints. Errors are raised by the token stream, with its position."""
    for word, parse in _PARSERS.items():
        if tokens.parse_optional_keyword(word):
            return parse(tokens)
    return parse_mapping(tokens)
