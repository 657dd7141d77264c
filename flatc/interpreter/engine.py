"""Run IR on NumPy arrays: one registered meaning for each class of operation.

A meaning takes the operation, its operands as arrays and the precision, and gives its results. A dialect
registers its meanings with `@meaning(Op)`; `evaluate` applies one, `run_block` applies all of a block, and
`run_module` runs the program of a module, a graph or a schedule, on named inputs:

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
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import ScheduleOp, TensorRefType
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
    """Run a graph, fused or not, or a schedule; inputs by name or in order.

    If `exact`, nothing is rounded below float64.
    """
    program, arguments = prepare(module, inputs, exact=exact)
    if isinstance(program, ScheduleOp):
        return evaluate(program, arguments, Precision(exact))
    return run_block(program.body.block, arguments, Precision(exact))


@frozen
class Parameter:
    """One input of a program. `kind` is input, weight or cache."""

    name: str
    kind: str
    shape: tuple[int, ...]
    element: Attribute


def program_of(module: ModuleOp) -> FuncOp | ScheduleOp:
    """The one program of a module: a graph or, once lowered, a schedule."""
    programs = [op for op in module.ops if isinstance(op, ScheduleOp | FuncOp) and op.body.blocks]
    if len(programs) != 1:
        raise FlatcError(f"the module has {len(programs)} programs", help="a module holds one graph or one schedule")
    return programs[0]


def parameters(program: FuncOp | ScheduleOp) -> list[Parameter]:
    """The inputs of a program; those without a name are called `arg0`, `arg1`, ..."""
    if isinstance(program, ScheduleOp):
        references = [cast(TensorRefType, argument.type) for argument in program.body.block.args]
        return [
            Parameter(name.data, kind.data, reference.dims, reference.element_type)
            for name, kind, reference in zip(program.input_names, program.input_kinds, references, strict=True)
        ]
    found: list[Parameter] = []
    attributes = program.arg_attrs.data if program.arg_attrs else ()
    for index, argument in enumerate(program.args):
        words: Mapping[str, Attribute] = attributes[index].data if attributes else {}
        name, kind = _word(words, "name", f"arg{index}"), _word(words, "kind", "input")
        tensor = cast("TensorType[Attribute]", argument.type)
        found.append(Parameter(name, kind, tensor.get_shape(), tensor.get_element_type()))
    return found


def _word(attributes: Mapping[str, Attribute], key: str, default: str) -> str:
    word = attributes.get(f"flat.{key}")
    return word.data if isinstance(word, StringAttr) else default


def result_names(program: FuncOp | ScheduleOp) -> list[str]:
    """The names of the outputs: `flat.names`, or `out0`, `out1`, ... where a graph has none."""
    if isinstance(program, ScheduleOp):
        return [name.data for name in program.output_names]
    names = program.attributes.get("flat.names")
    if isa(names, ArrayAttr[StringAttr]):
        return [name.data for name in names]
    return [f"out{index}" for index in range(len(program.function_type.outputs))]


def prepare(
    module: ModuleOp, inputs: Mapping[str, Array] | Sequence[Array], *, exact: bool
) -> tuple[FuncOp | ScheduleOp, list[Array]]:
    """The program of a module and its arguments: checked, in order, in the types that it computes with."""
    program = program_of(module)
    expected = parameters(program)
    arguments = _by_name(expected, inputs) if isinstance(inputs, Mapping) else list(inputs)
    _check_arguments(expected, arguments)
    precision = Precision(exact)
    return program, [precision.store(value, p.element) for value, p in zip(arguments, expected, strict=True)]


def _by_name(expected: Sequence[Parameter], inputs: Mapping[str, Array]) -> list[Array]:
    names = [parameter.name for parameter in expected]
    for name in inputs:
        if name not in names:
            raise FlatcError(f"the graph has no input '{name}'", help=did_you_mean(name, names))
    missing = [name for name in names if name not in inputs]
    if missing:
        raise FlatcError(f"no value for input {', '.join(missing)}", help="give an array for each input")
    return [inputs[name] for name in names]


def _check_arguments(expected: Sequence[Parameter], arguments: Sequence[Array]) -> None:
    if len(arguments) != len(expected):
        names = ", ".join(parameter.name for parameter in expected)
        raise FlatcError(f"{len(arguments)} arrays for {len(expected)} inputs", help=f"give {names}")
    for parameter, value in zip(expected, arguments, strict=True):
        dtype = AS_STORED.stored(parameter.element)
        if value.shape != parameter.shape or value.dtype != dtype:
            raise FlatcError(
                f"input '{parameter.name}' is {value.dtype}{list(value.shape)}, the graph needs"
                f" {dtype}{list(parameter.shape)}"
            )
