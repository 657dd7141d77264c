"""Random loop nests, written as schedules: streams and plain loops inside of each other, stages, carried tokens,
conditions, ragged and triangular and empty trips. Whatever the verifier accepts.

    kernel = random_nest(random.Random(0), machine)
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.spatial import KernelOp
from flatc.passes.simulation.program_order import walk
from tests.support import kernels_of, schedule_of

TYPE = "!spatial.buffer<8x8xf32>"


def random_nest(rng: random.Random, machine: Accelerator) -> KernelOp:
    """A kernel that keeps the rules of schedules, after as many attempts as it takes."""
    while True:
        module = schedule_of(_Writer(rng).schedule())
        attach_accelerator(module, machine)
        if _is_legal(module):
            return kernels_of(module)[0]


def random_machine(rng: random.Random) -> Accelerator:
    """One or two channels, transfers and products that arrive late or not."""
    machine = load(rng.choice(["edge", "cloud"]))
    channels = rng.choice(["shared", "separate"])
    read = machine.offchip.read_bytes_per_second * rng.choice([1, 1, 3])
    offchip = replace(
        machine.offchip,
        channels=channels,
        latency_cycles=rng.choice([0, 13, 500]),
        read_bytes_per_second=read,
        write_bytes_per_second=read if channels == "shared" else read // 2,
    )
    array = replace(machine.array, skew=rng.choice(["exposed", "overlapped", "none"]))
    return replace(machine, offchip=offchip, array=array, buffer=replace(machine.buffer, capacity_bytes=1 << 40))


def _is_legal(module: ModuleOp) -> bool:
    try:
        module.verify()
        for event in walk(kernels_of(module)[0]):
            event.tokens()
            event.complete(0)
    except (VerifyException, AssertionError):
        # Program order asserts that no token is carried through more trips than the pipeline holds.
        return False
    return True


@dataclass
class _Scope:
    """What can be named at a place: loop indices, tokens, buffers; the largest stage so far."""

    indices: list[str] = field(default_factory=list[str])
    tokens: list[str] = field(default_factory=list[str])
    buffers: list[str] = field(default_factory=list[str])
    stage: int = 0

    def inside(self) -> _Scope:
        """The scope of a loop body to begin with."""
        return _Scope([*self.indices], [*self.tokens], [*self.buffers])


class _Writer:
    def __init__(self, rng: random.Random):
        self._rng = rng
        self._names = 0

    def schedule(self) -> str:
        """The text of a module with one kernel."""
        scope = _Scope()
        body = [self._buffer(scope), *self._operations(scope, self._rng.randint(0, 2))]
        for _ in range(self._rng.choice([1, 1, 1, 2])):
            body += self._loop(scope, 0, stream=False)
            body += self._operations(scope, self._rng.randint(0, 1))
        lines = "\n".join(body)
        return f"""
spatial.schedule @nest inputs ["x"] (%x: !spatial.tensor<64x64xf32>) outputs ["y"] {{
  %y = spatial.offchip "y" : !spatial.tensor<64x64xf32>
  spatial.kernel "nest" {{
    {lines}
  }}
  spatial.return %y
}}"""

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"%{prefix}{self._names}"

    # --- Loops --------------------------------------------------------------------------------------------

    def _loop(self, scope: _Scope, depth: int, *, stream: bool) -> list[str]:
        rng, index, inner = self._rng, self._name("i"), scope.inside()
        lower, upper = self._bounds(scope)
        inits = [rng.choice(scope.tokens)] if scope.tokens and rng.random() < 0.5 else []
        carried, done = [self._name("c") for _ in inits], [self._name("d") for _ in inits]
        inner.indices.append(index)
        inner.tokens += carried
        body = self._body(inner, depth)
        own = [token for token in inner.tokens[len(scope.tokens) :] if token not in carried]
        carry = f" carry({', '.join(f'{c} = {t}' for c, t in zip(carried, inits, strict=True))})" if inits else ""
        head = f"spatial.for {index} = {lower} to {upper}{' stream' if stream else ''}{carry}"
        if depth and not stream:
            scope.stage = max(scope.stage, rng.choice([0, 0, 1]))
            head += f" stage {scope.stage}"
        scope.tokens += done
        result = f"{', '.join(done)} = " if done else ""
        last = [f"spatial.yield {rng.choice(own[-3:])}"] if inits else []
        return [f"{result}{head} {{", *body, *last, "}"]

    def _body(self, scope: _Scope, depth: int) -> list[str]:
        rng = self._rng
        lines = [self._buffer(scope) for _ in range(rng.randint(1, 2))]
        lines += self._operations(scope, rng.randint(1, 3))
        if depth < 2 and rng.random() < 0.8:
            for stream in rng.choice([[True], [True], [False], [False, False], [False, True]]):
                lines += self._loop(scope, depth + 1, stream=stream)
                lines += self._operations(scope, rng.randint(0, 2))
        return lines

    def _bounds(self, scope: _Scope) -> tuple[str, str]:
        rng = self._rng
        if not scope.indices:
            return "0", str(rng.choice([0, 1, 2, 5, 9, 14, 30, 100]))
        index = rng.choice(scope.indices)
        triangular = [("0", index), (index, f"min(2 * {index}, 9)"), (f"floordiv({index}, 2)", f"{index} + 2")]
        banded = [(f"max(0, {index} - 3)", f"min({index} + 1, 6)"), ("0", f"5 - {index}")]
        return rng.choice([*triangular, *banded, *[("0", str(rng.choice([0, 1, 3, 8, 20])))] * 4])

    # --- Operations -----------------------------------------------------------------------------------------

    def _buffer(self, scope: _Scope) -> str:
        name = self._name("b")
        scope.buffers.append(name)
        return f'{name} = spatial.buffer "{name[1:]}" slots {self._rng.choice([1, 2, 3, 4])} : {TYPE}'

    def _operations(self, scope: _Scope, count: int) -> list[str]:
        return [self._operation(scope) for _ in range(count)]

    def _operation(self, scope: _Scope) -> str:
        rng = self._rng
        a, b, c = (rng.choice(scope.buffers[-4:]) for _ in range(3))
        n, m, k = (self._extent(scope) for _ in range(3))
        what = rng.choice(
            [
                f"spatial.load %x[0, 0] into {a} extent [{n}, 8]",
                f"spatial.store {a} into %y[0, 0] extent [{n}, 8]",
                f"spatial.vector cast ({a}) into ({b}) extent [{m}, {n}]",
                f"spatial.vector cast ({a}) into ({a}) extent [4, {n}]",
                f"spatial.matmul output ({a}, {b}) into {c} extent [{m}, {n}, {k}]",
            ]
        )
        after = rng.sample(scope.tokens, min(len(scope.tokens), rng.choice([0, 1, 1, 2])))
        tail = f" after({', '.join(after)})" if after else ""
        if scope.indices and rng.random() < 0.3:
            tail += f" when {self._condition(scope)}"
        if scope.indices:
            scope.stage = max(scope.stage, rng.choice([0, 0, 0, 1, 2, 3]))
            tail += f" stage {scope.stage}"
        token = self._name("t")
        scope.tokens.append(token)
        return f"{token} = {what}{tail}"

    def _extent(self, scope: _Scope) -> str:
        if not scope.indices or self._rng.random() < 0.6:
            return str(self._rng.choice([1, 4, 8]))
        index = self._rng.choice(scope.indices)
        return self._rng.choice([f"max(0, min(4, 9 - {index} * 4))", f"min(8, {index} + 1)", f"min({index}, 3)"])

    def _condition(self, scope: _Scope) -> str:
        rng = self._rng
        one, other = rng.choice(scope.indices), rng.choice(scope.indices)
        return rng.choice(
            [one, f"3 - {one}", f"{one} - {other} + 1", f"min({one}, 4 - {one})", f"max(1 - {one}, {one} - 4)"]
        )
