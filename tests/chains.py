"""What tests of vector chains share: random chains, their mappings, and their way down to a schedule.

case = random_chain(random.Random(0))
case.module, case.problem, case.mapping          # a graph, what its only kernel does, and tiles that divide nothing
lowered = lower_chain(case, machine)             # a module; `case.module` stays as it is
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.builder import Graph, Tensor
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.vector_mapping import VectorMapping, VectorStages
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.kernels.vector_problem import VectorProblem
from flatc.passes.kernels.vector_region import match_chain
from flatc.passes.lower_to_spatial import LowerToSpatialPass

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Chain:
    """A graph of one chain, what its kernel does, and a mapping of it."""

    module: ModuleOp
    problem: VectorProblem
    mapping: VectorMapping


def fused_chains(module: ModuleOp) -> list[FusedOp]:
    """Fuses in place, and gives the kernels."""
    FuseLayersPass().apply(Context(), module)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def problem_of(module: ModuleOp) -> VectorProblem:
    """What the only kernel of a graph does."""
    (kernel,) = fused_chains(module.clone())
    return match_chain(kernel).problem


def lower_chain(module: ModuleOp, mapping: VectorMapping, machine: Accelerator) -> ModuleOp:
    """The schedule of a graph of one chain, verified."""
    copy = module.clone()
    (kernel,) = fused_chains(copy)
    kernel.mapping = MappingAttr(mapping)
    attach_accelerator(copy, machine)
    LowerToSpatialPass().apply(Context(), copy)
    AllocateBuffersPass().apply(Context(), copy)
    copy.verify()
    return copy


def random_chain(rng: random.Random, machine: Accelerator) -> Chain:
    """One chain and one legal mapping, tried until the verifier of schedules accepts it."""
    while True:
        module = random_chain_graph(rng)
        problem = problem_of(module)
        mapping = random_mapping(rng, problem)
        try:
            lower_chain(module, mapping, machine)
        except (VerifyException, FlatcError) as error:
            if " need" not in str(error):
                raise
            continue
        return Chain(module, problem, mapping)


def random_chain_graph(rng: random.Random) -> ModuleOp:
    """One to four operators on hostile sizes, in float64, or in narrow types for the sake of their bytes."""
    graph = Graph("chain", dtype=rng.choice(["f64", "f64", "bf16", "f32"]))
    shape = [rng.choice([1, 2, 3, 7]) for _ in range(rng.choice([0, 1, 2]))] + [
        rng.choice([1, 5, 13]),
        2 * rng.choice([1, 3, 17]),
    ]
    x = graph.input("x", shape)
    made: list[Tensor] = []
    for number in range(rng.randint(1, 4)):
        kind = rng.choice(["add", "add", "multiply", "scale", "activation", "norm", "norm", "rope"])
        if kind in ("add", "multiply"):
            x = getattr(graph, kind)(x, _operand(graph, rng, f"w{number}", shape, x))
        elif kind == "scale":
            x = graph.multiply(x, rng.choice([-0.5, 3.0]))
        elif kind == "activation":
            x = graph.activation(rng.choice(ACTIVATIONS), x)
        elif kind == "norm":
            x = _norm(graph, rng, x, shape[-1], number)
        elif len(shape) == 4:
            dims = rng.choice([shape[-1], 2])
            x = graph.rope(x, start=rng.choice([0, 9]), base=100.0, dims=dims, interleaved=rng.random() < 0.5)
        else:
            x = graph.relu(x)
        made.append(x)
    between = [tensor for tensor in made[:-1] if rng.random() < 0.2]
    graph.output(*between, x)
    return graph.module()


def _operand(graph: Graph, rng: random.Random, name: str, shape: list[int], x: Tensor) -> Tensor:
    """A tensor of the same shape, or one that is repeated: along leading dims, along some dim, or x itself."""
    if rng.random() < 0.1:
        return x
    dims = list(shape)
    if rng.random() < 0.5:
        dims[rng.randrange(len(dims))] = 1
    if rng.random() < 0.3:
        dims = dims[rng.randrange(len(dims)) :]
    return graph.input(name, dims)


def _norm(graph: Graph, rng: random.Random, x: Tensor, width: int, number: int) -> Tensor:
    weight = graph.weight(f"g{number}", [width]) if rng.random() < 0.6 else None
    bias = graph.weight(f"b{number}", [width]) if rng.random() < 0.5 else None
    if rng.random() < 0.5:
        return graph.rmsnorm(x, weight)
    return graph.layernorm(x, weight, bias)


def random_mapping(rng: random.Random, problem: VectorProblem) -> VectorMapping:
    """A mapping that may need more slots than it has."""
    tiles = [rng.randint(1, size) for size in problem.dims]
    if problem.needs_rows:
        tiles[-1] = problem.dims[-1]
    order = list(range(len(tiles)))
    rng.shuffle(order)
    stages = rng.choice([(0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 1, 2), (0, 1, 1)])
    slots = rng.randint(1, 3), rng.randint(1, 3)
    return VectorMapping(tuple(tiles), tuple(order), *slots, VectorStages(*stages))
