"""Counting parts once for many structures changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

from flatc.accelerators import load
from flatc.dialects.masks import Causal
from flatc.passes.cost.buffer_room import peak_buffer_bytes
from flatc.passes.cost.closed_form import evaluate, evaluate_mapping
from flatc.passes.cost.mapping_columns import Structure, mapping_at
from flatc.passes.cost.shared_counts import SharedCounts
from flatc.passes.mapping.map_space import columns, families, tiles
from tests.support import only, random_case


def test_shared_counts_are_those_of_each_mapping_alone():
    """A whole space priced from what its tiles share, against its mappings one by one."""
    stages = ("logit", "mask", "softmax", "attend")
    problem = replace(random_case(random.Random(7)).problem, stages=stages, queries=7, keys=10, mask=Causal(2))
    accelerator = load("edge")
    space = tiles(problem, accelerator, "auto")
    one = space.query * 0 + 1
    shared = SharedCounts(problem, accelerator, space, lambda product, structure: (one, one))
    for family in families(problem, "auto", load("fusemax")):
        for uses in (("output", "weight"), ("input", "output")):
            places = (family.k_level, family.v_level, *uses)
            structure = Structure(family.algorithm, family.divide, *places, **vars(family.placement))
            column = columns(space, family)
            peak = peak_buffer_bytes(problem, structure, column, shared.geometry.width)
            together = evaluate(problem, accelerator, structure, column, shared.counts(structure), peak)
            for i in random.Random(1).sample(range(space.size), 5):
                alone = evaluate_mapping(problem, accelerator, mapping_at(problem, structure, column, i))
                assert together.latency_cycles[i] == only(alone.latency_cycles)
                assert together.energy_pj[i] == only(alone.energy_pj)
                assert together.offchip_bytes[i] == only(alone.offchip_bytes)
                assert together.peak_buffer_bytes[i] == only(alone.peak_buffer_bytes)
