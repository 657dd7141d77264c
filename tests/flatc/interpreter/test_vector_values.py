"""Vector operations on values in a schedule: their numbers against plain formulas, and what one of them costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.dialects.spatial import VectorOp
from flatc.interpreter import run_schedule
from flatc.passes.cost.cost_model import CostModel
from tests.support import schedule_of

X, OTHER = (np.random.default_rng(seed).standard_normal((5, 6)) for seed in (1, 2))
G, B = (np.random.default_rng(seed).standard_normal((1, 6)) for seed in (3, 4))


def one_operation(operation: str, element: str = "f64") -> ModuleOp:
    """A kernel that loads x, other, g and b whole, and stores the result of one operation on them."""
    shapes = {"x": "5x6", "other": "5x6", "g": "1x6", "b": "1x6"}
    arguments = ", ".join(f"%{name}: !spatial.tensor<{shape}x{element}>" for name, shape in shapes.items())
    loads = "".join(
        f'%{name}b = spatial.buffer "{name}" slots 1 : !spatial.buffer<{shape}x{element}>\n'
        f"%{name}t = spatial.load %{name}[0, 0] into %{name}b extent [{shape.replace('x', ', ')}]\n"
        for name, shape in shapes.items()
    )
    return schedule_of(f"""
        spatial.schedule @one inputs ["x", "other", "g", "b"] ({arguments}) outputs ["y"] {{
          %y = spatial.offchip "y" : !spatial.tensor<5x6x{element}>
          %table = spatial.rope_table "rope" start 3 base 100.0 : !spatial.tensor<5x6x{element}>
          spatial.kernel "one" {{
            {loads}
            %tb = spatial.buffer "table" slots 1 : !spatial.buffer<5x6x{element}>
            %tt = spatial.load %table[0, 0] into %tb extent [5, 6]
            %yb = spatial.buffer "y" slots 1 : !spatial.buffer<5x6x{element}>
            %done = spatial.vector {operation.replace(") #", ") into (%yb) extent [5, 6]")}
                after(%xt, %othert, %gt, %bt, %tt)
            %stored = spatial.store %yb into %y[0, 0] extent [5, 6] after(%done)
          }}
          spatial.return %y
        }}""")


def turned(interleaved: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Every pair of features as a complex number, turned by its angle."""
    angles = (3 + np.arange(5))[:, np.newaxis] * 100.0 ** (-2 * np.arange(3) / 6)
    pairs = X[:, 0::2] + 1j * X[:, 1::2] if interleaved else X[:, :3] + 1j * X[:, 3:]
    found = pairs * np.exp(1j * angles)
    return np.stack([found.real, found.imag], -1).reshape(5, 6) if interleaved else np.hstack([found.real, found.imag])


def centred() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return X - X.mean(1, keepdims=True)


PHI = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in X.ravel()]).reshape(X.shape)
OPERATIONS = {
    "add (%xb, %otherb) #": X + OTHER,
    "add (%gb, %xb) #": G + X,
    "multiply (%gb, %bb) #": np.repeat(G * B, 5, axis=0),
    "scale (%xb) # by -0.5": X * -0.5,
    "gelu (%xb) #": X * PHI,
    "gelu_tanh (%xb) #": X / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "silu (%xb) #": X / (1 + np.exp(-X)),
    "sigmoid (%xb) #": 1 / (1 + np.exp(-X)),
    "relu (%xb) #": np.where(X > 0, X, 0),
    "tanh (%xb) #": np.tanh(X),
    "rmsnorm (%xb) # epsilon 0.5": X / np.sqrt((X**2).mean(1, keepdims=True) + 0.5),
    "rmsnorm (%xb, %gb) # epsilon 0.5": X / np.sqrt((X**2).mean(1, keepdims=True) + 0.5) * G,
    "layernorm (%xb, %gb, %bb) # epsilon 0.25": centred() / np.sqrt(X.var(1, keepdims=True) + 0.25) * G + B,
    "rope (%xb, %tb) #": turned(interleaved=False),
    "rope_interleaved (%xb, %tb) #": turned(interleaved=True),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers(operation: str):
    module = one_operation(operation)
    module.verify()
    found = run_schedule(module, {"x": X, "other": OTHER, "g": G, "b": B}).outputs[0]
    np.testing.assert_allclose(found, OPERATIONS[operation], rtol=1e-12, atol=1e-12)


def test_results_are_rounded_once_to_the_type_of_the_buffer():
    inputs = {name: value.astype(np.float16) for name, value in {"x": X, "other": OTHER, "g": G, "b": B}.items()}
    found = run_schedule(one_operation("layernorm (%xb, %gb, %bb) # epsilon 0.25", "f16"), inputs).outputs[0]
    wide = {name: value.astype(np.float32) for name, value in inputs.items()}
    exact = run_schedule(one_operation("layernorm (%xb, %gb, %bb) # epsilon 0.25", "f32"), wide).outputs[0]
    np.testing.assert_array_equal(found, exact.astype(np.float16))


def test_the_price_of_a_layernorm_by_hand():
    """A unit of 4 lanes, 5 rows of 6 elements: ceil(30 / 4) = 8 and ceil(5 / 4) = 2 turns."""
    edge = load("edge")
    prices = replace(edge.vector.prices, add=1, multiply=10, max=100, exp=1000, divide=10000)
    machine = replace(edge, vector=replace(edge.vector, lanes=4, prices=prices))
    module = one_operation("layernorm (%xb, %gb, %bb) # epsilon 0.25", "f16")
    (op,) = (op for op in module.walk() if isinstance(op, VectorOp))
    model = CostModel(machine)
    price = model.price(op, (5, 6))
    per_element, per_row = 3 * 10 + 4, (9 + 1 + 2) * 10 + (3 + 2 + 1)
    assert price.busy == (8 * per_element + 2 * per_row) * model.ticks_per_cycle
    assert price.work.buffer_read_bytes == (3 * 30 + 6 + 6) * 2, "x three times, weight and bias once"
    assert price.work.buffer_write_bytes == 30 * 2
