"""How costs follow the attention: masks at 64K tokens, shared heads and latent rows in decode, against plain ones.

    python examples/scaling.py           # what `make scaling` runs

Every table begins with an attention that saves nothing; work, latency and bytes of the others are shares of its own. A
causal mask should cost half and the diagonal, a window of 4K at 64K a sixteenth and its edges, keys and values that a
group of heads shares the bytes of one head. `of bound` is how much longer the schedule takes than any could at best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import flatc
from flatc.report.tables import duration, percent, size, table, times

ACCELERATORS = ("edge", "cloud")
TOKENS = 65536

HEADS = """graph {name}
dim B = 1, H = 32, KV = {kv_heads}, S = {queries}, T = {keys}, D = 128
dtype bf16, softmax f32
input q : [B, H, S, D]
input k, v : [B, KV, T, D]
a = attention(q, k, v{mask})
output a
"""
"""Attention with the heads of Llama-3-8B, or with other ones."""

LATENT = """graph absorbed
dim B = 1, H = 128, T = {keys}, L = 512, R = 64
dtype bf16, softmax f32
input q : [B, H, 1, L + R]
input k : [B, 1, T, L + R]
a = attention(q, k, features(k, 0, L), scale = 1 / sqrt(192))
output a
"""
EXPANDED = """graph plain
dim B = 1, H = 128, T = {keys}
dtype bf16, softmax f32
input q : [B, H, 1, 192]
input k : [B, H, T, 192]
input v : [B, H, T, 128]
a = attention(q, k, v)
output a
"""
"""Decode of DeepSeek-V3, its keys and values as latent rows, and head by head."""


@dataclass(frozen=True)
class Row:
    """A compiled attention, and the one that it is compared with."""

    name: str
    report: flatc.Report
    plain: flatc.Report

    @property
    def key_bytes(self) -> int:
        """Bytes of K and V that must be read."""
        return sum(tensor.compulsory_bytes or 0 for tensor in self.report.tensors if tensor.name in ("k", "v"))

    @property
    def work_share(self) -> float:
        """Multiply-accumulates, as a share of the plain attention's."""
        return float(self.report.work.macs / self.plain.work.macs)

    @property
    def latency_share(self) -> float:
        """Time, as a share of the plain attention's."""
        return float(self.report.latency_cycles / self.plain.latency_cycles)

    def cells(self) -> list[str]:
        """The row of the table."""
        report = self.report
        assert report.bounds is not None
        return [
            self.name,
            percent(self.work_share),
            duration(report.latency_seconds),
            percent(self.latency_share),
            size(self.key_bytes),
            size(report.offchip_bytes),
            percent(report.offchip_bytes / self.plain.offchip_bytes),
            report.binding,
            times(report.latency_cycles, report.bounds.cycles),
        ]


HEADER = ["", "work", "latency", "", "K and V", "off chip", "", "binds", "of bound"]


def compiled(graphs: dict[str, str], accelerator: str) -> list[Row]:
    """Graphs by name as rows; the first is what the others are compared with."""
    reports = {name: flatc.compile(graph, accelerator).report for name, graph in graphs.items()}
    plain = next(iter(reports.values()))
    return [Row(name, report, plain) for name, report in reports.items()]


def masks(accelerator: str, tokens: int = TOKENS) -> list[Row]:
    """Prefill under masks that skip tiles."""
    named = {
        "no mask": None,
        "causal": "causal",
        "window of 4K": "causal & window(4096)",
        "chunks of 8K": "chunk(8192)",
    }
    options = {name: f", mask = {mask}" if mask else "" for name, mask in named.items()}
    graphs = {
        name: HEADS.format(name="masked", kv_heads=8, queries=tokens, keys=tokens, mask=mask)
        for name, mask in options.items()
    }
    return compiled(graphs, accelerator)


def groups(accelerator: str, tokens: int = TOKENS) -> list[Row]:
    """Decode of one token, 32 query heads on fewer and fewer heads of keys and values."""
    names = {32: "32 kv heads", 8: "8 kv heads", 1: "1 kv head"}
    graphs = {
        name: HEADS.format(name="grouped", kv_heads=kv_heads, queries=1, keys=tokens, mask="")
        for kv_heads, name in names.items()
    }
    return compiled(graphs, accelerator)


def latent(accelerator: str, tokens: int = TOKENS) -> list[Row]:
    """Decode of one token of multi-head latent attention, plain and absorbed."""
    return compiled(
        {"head by head": EXPANDED.format(keys=tokens), "latent rows": LATENT.format(keys=tokens)}, accelerator
    )


def tables() -> Iterator[str]:
    """All tables, line by line."""
    titles = {
        masks: f"prefill of {TOKENS:,} tokens, 32 heads on 8",
        groups: f"decode behind {TOKENS:,} tokens, 32 heads",
        latent: f"decode behind {TOKENS:,} tokens, latent attention of DeepSeek-V3",
    }
    for accelerator in ACCELERATORS:
        for rows, title in titles.items():
            yield f"\n{accelerator}: {title}\n"
            yield from table([HEADER, *(row.cells() for row in rows(accelerator))], "<>>>>>><>", "  ")


if __name__ == "__main__":
    for line in tables():
        print(line, flush=True)
