"""How long the search of one attention takes, simulating the most promising mappings included.

    python benchmarks/search.py [rounds]

The goal is half a second at any length. `mappings` counts all uses of the array of all mappings of the space, `per
second` divides them by the processor time (the best of several rounds), `open` says how many mappings could still be
better than the one found.
"""

from __future__ import annotations

import sys
import time

from xdsl.context import Context

from flatc.accelerators import load
from flatc.builder import Graph, MaskExpr, causal
from flatc.dialects.accelerator import attach_accelerator
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.tile_attention import tile_module


def searched(tokens: int, machine: str, mask: MaskExpr | None) -> str:
    """One search of BERT-base attention, as a line of numbers."""
    graph = Graph("layer", dtype="bf16", softmax="f32")
    q, k, v = (graph.input(name, [64, 12, tokens, 64]) for name in "qkv")
    graph.output(graph.attention(q, k, v, mask=mask), names=["o"])
    module = graph.module()
    FuseAttentionPass().apply(Context(), module)
    accelerator = load(machine)
    attach_accelerator(module, accelerator)
    before = time.process_time()
    (choice,) = tile_module(module, "auto", "latency").choices.values()
    seconds = time.process_time() - before
    mappings = choice.covered * len(accelerator.array.stationarities) ** 2
    numbers = f"{seconds:8.2f} s{mappings:12,}{mappings / seconds:14,.0f}"
    return f"{numbers}{choice.priced:10,}{choice.simulated:11}{choice.open if choice.open is not None else '?':>8}"


def main(rounds: int = 3) -> None:
    """Prints a line for each length, machine and mask."""
    searched(512, "edge", None)
    titles = f"{'mappings':>12}{'per second':>14}{'priced':>10}{'simulated':>11}{'open':>8}"
    print(f"{'tokens':18}{'machine':8}{'time':>10}{titles}")
    for tokens in (512, 4096, 1 << 16, 1 << 20):
        for mask in (None, causal()):
            for machine in ("edge", "cloud"):
                best = min(searched(tokens, machine, mask) for _ in range(rounds))
                print(f"{f'{tokens}' + (', causal' if mask else ''):18}{machine:8}{best}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
