"""Python looks for garbage in cycles as seldom in the tests as in the command: at its usual pace, and with thousands of
tests in memory, that takes a tenth of the time of the suite."""

from __future__ import annotations

import gc

from flatc.cli import collect_seldom


def pytest_configure() -> None:
    """Before tests are collected, which makes much and drops little."""
    collect_seldom()


def pytest_collection_finish() -> None:
    """The tests themselves are no garbage."""
    gc.freeze()
