"""Run IR on NumPy arrays: one registered meaning for each class of operation.

A meaning takes the operation, its operands as arrays and the precision, and gives its results. A dialect
registers its meanings with `@meaning(Op)`; `evaluate` applies one, `run_block` applies all of a block, and
`run_module` runs the function of a graph on named inputs:

    results = run_module(module, random_inputs(module, seed=0))

A plain table is enough because graphs have no control flow, and it starts several times faster than
xDSL's interpreter with the meanings of all its dialects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.traits import IsTerminator
from xdsl.utils.hints import isa

from flatc.dialects.diagnostics import FlatcError, did_you_mean, position_of
from flatc.interpreter.dtypes import Array, Precision

Op = TypeVar("Op", bound=Operation)
Meaning = Callable[[Any, Sequence[Array], Precision], Sequence[Array]]

AS_STORED = Precision()

_MEANINGS: dict[type[Operation], Meaning] = {}


def meaning(
    kind: type[Op],
) -> Callable[
    [Callable[[Op, Sequence[Array], Precision], Sequence[Array]]],
    Callable[[Op, Sequence[Array], Precision], Sequence[Array]],
]:
    """Register the decorated function as the NumPy meaning of an operation."""

    def register(
        function: Callable[[Op, Sequence[Array], Precision], Sequence[Array]],
    ) -> Callable[[Op, Sequence[Array], Precision], Sequence[Array]]:
        _MEANINGS[kind] = function
        return function

    return register


def evaluate(op: Operation, operands: Sequence[Array], precision: Precision = AS_STORED) -> list[Array]:
    """The results of one operation."""
    function = _MEANINGS.get(type(op))
    if function is None:
        raise FlatcError(f"{op.name} has no NumPy meaning", position=position_of(op))
    return list(function(op, operands, precision))


def run_block(block: Block, arguments: Sequence[Array], precision: Precision = AS_STORED) -> list[Array]:
    """Run a block; gives the operands of its terminator."""
    values: dict[SSAValue, Array] = dict(zip(block.args, arguments, strict=True))
    for op in block.ops:
        operands = [values[operand] for operand in op.operands]
        if op.has_trait(IsTerminator):
            return operands
        values.update(zip(op.results, evaluate(op, operands, precision), strict=True))
    raise AssertionError("the block has no terminator")


def run_module(module: ModuleOp, inputs: Mapping[str, Array] | Sequence[Array], *, exact: bool = False) -> list[Array]:
    """Run the graph; inputs by name or in order. If `exact`, nothing is rounded below float64."""
    function = graph_function(module)
    arguments = _by_name(function, inputs) if isinstance(inputs, Mapping) else list(inputs)
    _check_arguments(function, arguments)
    precision = Precision(exact)
    if exact:
        arguments = [
            precision.store(value, _tensor(argument).get_element_type())
            for value, argument in zip(arguments, function.args, strict=True)
        ]
    return run_block(function.body.block, arguments, precision)


def graph_function(module: ModuleOp) -> FuncOp:
    """The one function of a graph."""
    functions = [op for op in module.ops if isinstance(op, FuncOp) and not op.is_declaration]
    if len(functions) != 1:
        raise FlatcError(f"the module has {len(functions)} functions", help="a graph is one func.func")
    return functions[0]


def argument_names(function: FuncOp) -> list[str]:
    """The names of the inputs: `flat.name`, or `arg0`, `arg1`, ... where a module has none."""
    attributes = function.arg_attrs.data if function.arg_attrs else ()
    names: list[str] = []
    for index in range(len(function.args)):
        name = attributes[index].data.get("flat.name") if attributes else None
        names.append(name.data if isinstance(name, StringAttr) else f"arg{index}")
    return names


def result_names(function: FuncOp) -> list[str]:
    """The names of the outputs: `flat.names`, or `out0`, `out1`, ... where a module has none."""
    names = function.attributes.get("flat.names")
    if isa(names, ArrayAttr[StringAttr]):
        return [name.data for name in names]
    return [f"out{index}" for index in range(len(function.function_type.outputs))]


def _tensor(value: SSAValue) -> TensorType[Attribute]:
    return cast(TensorType[Attribute], value.type)


def _by_name(function: FuncOp, inputs: Mapping[str, Array]) -> list[Array]:
    names = argument_names(function)
    for name in inputs:
        if name not in names:
            raise FlatcError(f"the graph has no input '{name}'", help=did_you_mean(name, names))
    missing = [name for name in names if name not in inputs]
    if missing:
        raise FlatcError(f"no value for input {', '.join(missing)}", help="give an array for each input")
    return [inputs[name] for name in names]


def _check_arguments(function: FuncOp, arguments: Sequence[Array]) -> None:
    names = argument_names(function)
    if len(arguments) != len(names):
        raise FlatcError(f"{len(arguments)} arrays for {len(names)} inputs", help=f"give {', '.join(names)}")
    for name, argument, value in zip(names, function.args, arguments, strict=True):
        tensor = _tensor(argument)
        expected = AS_STORED.stored(tensor.get_element_type())
        if value.shape != tensor.get_shape() or value.dtype != expected:
            raise FlatcError(
                f"input '{name}' is {value.dtype}{list(value.shape)}, the graph needs"
                f" {expected}{list(tensor.get_shape())}"
            )
