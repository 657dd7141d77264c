"""The published evaluations, made again: what FLAT's and FuseMax's papers show, with flatc's schedules and prices.

    from flatc.reproduce import STUDIES, reproduce
    for study in reproduce(["flat-speedup"]):
        print(render(study))

Both sides of every comparison are compiled here, on one machine with one price table; a paper's own figures stand
beside them, and every study says where its assumptions are not the paper's. A study is tables and plots (`model`);
`text` and `plots` write them down. `STUDIES` lists them; one more study is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.reproduce.model import Study

__all__ = ["STUDIES", "Study", "reproduce"]


def _flat_speedup(quick: bool) -> Study:
    from flatc.reproduce.flat import speedup

    return speedup(quick)


def _flat_buffer(quick: bool) -> Study:
    from flatc.reproduce.flat_sweeps import buffer

    return buffer(quick)


def _flat_bandwidth(quick: bool) -> Study:
    from flatc.reproduce.flat_sweeps import bandwidth

    return bandwidth(quick)


def _flat_footprint(quick: bool) -> Study:
    from flatc.reproduce.flat_sweeps import footprint

    return footprint(quick)


def _fusemax(quick: bool) -> Study:
    from flatc.reproduce.fusemax import study

    return study(quick)


STUDIES: Mapping[str, Callable[[bool], Study]] = {
    "flat-speedup": _flat_speedup,
    "flat-buffer": _flat_buffer,
    "flat-bandwidth": _flat_bandwidth,
    "flat-footprint": _flat_footprint,
    "fusemax": _fusemax,
}
"""Every study by name. Its argument asks for fewer points of the same study."""


def reproduce(names: Sequence[str] = (), *, quick: bool = False) -> Iterator[Study]:
    """The studies of these names, or all, one after the other. Raises `FlatcError` for a name that is not known."""
    for name in names:
        if name not in STUDIES:
            help = did_you_mean(name, STUDIES) or f"choose of {', '.join(STUDIES)}"
            raise FlatcError(f"unknown study '{name}'", help=help)
    return (STUDIES[name](quick) for name in dict.fromkeys(names or STUDIES))
