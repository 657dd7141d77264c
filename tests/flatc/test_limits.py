"""Limits on what schedules may use: they are those of a machine that has no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flatc.accelerators import load
from flatc.accelerators.limits import limited
from flatc.compiler import compile
from flatc.dialects.diagnostics import FlatcError

BERT = Path("examples/bert_base.flat")
SMALL = {"B": 1, "H": 2, "S": 64}


def test_a_limit_is_a_machine_with_less():
    edge = load("edge")
    less = limited(edge, "100 kB", "10 GB/s")
    assert less.buffer.capacity_bytes == 100_000
    assert (less.offchip.read_bytes_per_second, less.offchip.write_bytes_per_second) == (10**10, 10**10)
    assert replace(less, buffer=edge.buffer, offchip=edge.offchip) == edge
    assert limited(edge, "1 GiB", "900 GB/s") == edge


def test_schedules_keep_within_limits():
    free = compile(BERT, "edge", bindings=SMALL).report
    tight = compile(BERT, "edge", bindings=SMALL, buffer_limit="8 KiB", max_bandwidth="5 GB/s").report
    assert tight.peak_buffer_bytes <= 8192 < free.peak_buffer_bytes
    assert tight.latency_cycles > free.latency_cycles
    assert tight.offchip_bytes / tight.latency_seconds <= 5e9


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (("8", None), "--buffer-limit: "),
        (("0 B", None), "--buffer-limit: "),
        ((None, "5 GB"), "--max-bandwidth: "),
        ((None, "fast"), "--max-bandwidth: "),
    ],
)
def test_what_is_no_quantity_is_refused(limits: tuple[str | None, str | None], message: str):
    with pytest.raises(FlatcError) as caught:
        limited(load("edge"), *limits)
    assert caught.value.message.startswith(message)
