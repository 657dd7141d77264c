"""The lark automaton of `flat.lark`, behind the few calls the parser makes.

grammar = load(Assembler(source))
automaton = grammar.parse_interactive()
for token in grammar.lex("output y"):
    automaton.feed_token(token)           # raises UnexpectedToken; automaton.accepts() lists what fits
statement = automaton.feed_eof(token)     # the node that the assembler returned

Building the automaton takes longer than reading most graphs, so lark keeps it in a file, in the user's cache folder
(`XDG_CACHE_HOME`, else `~/.cache`), under a digest of the grammar, of lark's version and of Python's. Without such a
folder it is built anew; the nodes are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from flatc.dialects.frozen import frozen
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


class _Actions(threading.local):
    """Lark's transformer: the rules' methods of whichever assembler a statement is being fed to.

    There is one automaton for all graphs; which nodes it builds, and with which positions, depends on the source.
    """

    assembler: Assembler | None = None

    def __getattr__(self, name: str) -> Callable[[list[Any]], object]:
        if not hasattr(Assembler, name):
            raise AttributeError(name)
        return lambda items: getattr(self.assembler, name)(items)


@frozen
class _BoundAutomaton:
    """A run of the automaton whose nodes one assembler builds."""

    automaton: Automaton
    actions: _Actions
    assembler: Assembler

    def feed_token(self, token: Token) -> object:
        self.actions.assembler = self.assembler
        return self.automaton.feed_token(token)

    def feed_eof(self, last_token: Token) -> object:
        self.actions.assembler = self.assembler
        return self.automaton.feed_eof(last_token)

    def accepts(self) -> set[str]:
        return self.automaton.accepts()


@frozen
class _BoundGrammar:
    """The grammar with one assembler."""

    grammar: Grammar
    actions: _Actions
    assembler: Assembler

    def lex(self, text: str) -> Iterator[Token]:
        return self.grammar.lex(text)

    def parse_interactive(self) -> Automaton:
        return _BoundAutomaton(self.grammar.parse_interactive(), self.actions, self.assembler)


def cache_file() -> str | None:
    """Where lark keeps the automaton, or None where no folder can be made for it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatc"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or none at all
        return None
    return str(folder / "flat.lark.automaton")


@cache
def _grammar() -> tuple[Grammar, _Actions]:
    from lark import Lark

    actions = _Actions()
    lark = Lark(
        resources.files("flatc.frontend").joinpath("flat.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        start="statement",
        transformer=actions,  # pyright: ignore[reportArgumentType]  (lark takes any object)
        postlex=_KeepTerminals(),  # pyright: ignore[reportArgumentType]
        cache=cache_file() or False,
    )
    return cast("Grammar", cast(object, lark)), actions


def load(assembler: Assembler) -> Grammar:
    """The grammar with `assembler` building its nodes."""
    return _BoundGrammar(*_grammar(), assembler)
