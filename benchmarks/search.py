"""How long `auto` searches for one attention: processor and wall seconds, mappings covered, fitting, simulated.

    python benchmarks/search.py [bert] [llama] [--rounds 3]

A search is all that `flatc compile` does between the graph and the schedule: whether one kernel or several cost less,
the prices of the map space, and the simulations that rank the best of it again. Imports are not in it: a search of
another attention goes before. Each search begins with nothing remembered, in a process of its own; the best of
several rounds counts. The goal is half a second on two cores at any length.

    bert     64 sequences, 12 heads of 64, without a mask
    llama    32 query heads and 8 kv heads of 128, causal
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import Graph, causal
from flatc.dialects.accelerator import accelerator_of, attach_accelerator
from flatc.passes.choose_fusion import choose_fusion
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.tile_attention import KernelSearch, tile_module

GOAL_SECONDS = 0.5
MACHINES = ("edge", "cloud")
LENGTHS = sorted((64, 256, 777, 3000, *(1 << power for power in range(9, 21))))
"""Powers of two, short ones, and some that no tile divides, whose searches take longest."""
MODELS = {"bert": (64, 12, 12, 64, None), "llama": (1, 32, 8, 128, causal())}
"""Sequences, heads, kv heads, their depth, the mask."""


@dataclass(frozen=True)
class Question:
    """What is searched, and for which machine."""

    model: str
    tokens: int
    machine: str

    def __str__(self) -> str:
        return f"{self.model:5} {self.tokens:>7} tokens on {self.machine:5}"

    def module(self) -> ModuleOp:
        """The fused attention, with the machine."""
        batch, heads, kv_heads, depth, mask = MODELS[self.model]
        graph = Graph("attention", dtype="bf16", softmax="f32")
        q = graph.input("q", [batch, heads, self.tokens, depth])
        k, v = (graph.input(name, [batch, kv_heads, self.tokens, depth]) for name in "kv")
        graph.output(graph.attention(q, k, v, mask=mask), names=["a"])
        module = graph.module()
        attach_accelerator(module, load(self.machine))
        FuseAttentionPass().apply(Context(), module)
        return module


@dataclass(frozen=True)
class Answer:
    """What a search took and looked at."""

    processor_seconds: float
    wall_seconds: float
    covered: int
    legal: int
    simulated: int


def search(module: ModuleOp) -> Answer:
    """One search by `auto`, from the fused attention to its mapping."""
    processor, wall = time.process_time(), time.perf_counter()
    found = KernelSearch(accelerator_of(module), "auto", "latency")
    choose_fusion(module, found)
    choices = tile_module(module, "auto", "latency", search=found).choices.values()
    seconds = time.process_time() - processor, time.perf_counter() - wall
    numbers = ("covered", "legal", "simulated")
    return Answer(*seconds, *(sum(getattr(choice, name) for choice in choices) for name in numbers))


def answer(question: Question) -> Answer:
    """A search in a process that has imported everything and remembers nothing of this attention."""
    search(Question("bert" if question.model == "llama" else "llama", 96, "edge").module())
    return search(question.module())


def questions(models: list[str]) -> Iterator[Question]:
    """Every length of some models on every machine."""
    for model in models:
        for machine in MACHINES:
            yield from (Question(model, tokens, machine) for tokens in LENGTHS)


def main() -> None:
    """Prints a line for each question, and how many of them miss the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="bert, llama; both unless given")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for model in arguments.models:
        if model not in MODELS:
            parser.error(f"unknown model '{model}': choose from {', '.join(MODELS)}")
    asked, slow = list(questions(arguments.models or list(MODELS))), 0
    print(f"{'attention':35}   processor      wall     covered     legal simulated   mappings/s")
    context = multiprocessing.get_context("spawn")
    for question in asked:
        with context.Pool(1, maxtasksperchild=1) as pool:
            found = [pool.apply(answer, (question,)) for _ in range(arguments.rounds)]
        best = min(found, key=lambda one: one.processor_seconds)
        slow += best.wall_seconds > GOAL_SECONDS
        print(
            f"{question!s:35}   {best.processor_seconds:7.3f} s {best.wall_seconds:7.3f} s "
            f"{best.covered:11,} {best.legal:9,} {best.simulated:9} {best.covered / best.wall_seconds:12,.0f}",
            flush=True,
        )
    print(f"{len(asked) - slow} of {len(asked)} within {GOAL_SECONDS} s")


if __name__ == "__main__":
    main()
