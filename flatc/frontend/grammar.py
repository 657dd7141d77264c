"""The lark automaton of `flat.lark`, behind the few calls the parser makes.

grammar = load(Assembler(source))
automaton = grammar.parse_interactive()
for token in grammar.lex("output y"):
    automaton.feed_token(token)           # raises UnexpectedToken; automaton.accepts() lists what fits
statement = automaton.feed_eof(token)     # the node that the assembler returned
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Protocol, cast

from flatc.frontend.assemble import Assembler

if TYPE_CHECKING:
    from lark import Token


class Automaton(Protocol):
    """One run of the parser, fed token by token."""

    def feed_token(self, token: Token) -> object:
        """Take one token, or raise lark's UnexpectedToken and stay as before."""
        ...

    def feed_eof(self, last_token: Token) -> object:
        """End the statement and return its node, or raise lark's UnexpectedToken."""
        ...

    def accepts(self) -> set[str]:
        """The terminals that would be taken next."""
        ...


class Grammar(Protocol):
    """The lexer and the parser of one statement."""

    def lex(self, text: str) -> Iterator[Token]:
        """The tokens of a whole file, lazily; no text fails to lex."""
        ...

    def parse_interactive(self) -> Automaton:
        """Begin a statement."""
        ...


class _KeepTerminals:
    """Tells lark to lex terminals that no rule uses: the parser looks at them itself."""

    always_accept = ("NEWLINE", "FOREIGN")

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Leave the tokens as they are."""
        return stream


@cache
def _text() -> str:
    return resources.files("flatc.frontend").joinpath("flat.lark").read_text(encoding="utf-8")


def load(assembler: Assembler) -> Grammar:
    """The grammar with `assembler` building its nodes."""
    from lark import Lark

    lark = Lark(
        _text(),
        parser="lalr",
        lexer="basic",
        start="statement",
        transformer=assembler,  # pyright: ignore[reportArgumentType]  (lark takes any object)
        postlex=_KeepTerminals(),  # pyright: ignore[reportArgumentType]
    )
    return cast("Grammar", cast(object, lark))
