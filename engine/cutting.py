"""Parts of a graph: what some of its tensors need, in a file of its own.

A UNet's graph is cut in two: what no prompt changes, which a guided step does once for both prompts, and the rest. The
first part is everything that ``context`` does not reach: the embedding of the time step, the stem, the first block up
to its attention to the prompt, and as much of a control branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.core.components import Component, Tensor
from v2v.core.errors import BuildError

PROMPT = "context"
"""The input that differs from one prompt to the next."""


@dataclass(frozen=True)
class Part:
    """A graph and its interface; its weights lie in the file of the whole graph."""

    component: Component
    path: Path


def split(component: Component, path: Path) -> tuple[Part, Part]:
    """Cut the graph at ``path`` in two files beside it.

    Returns:
        What the prompt does not reach, whose outputs are what it hands over, and the rest, which takes those.

    Raises:
        BuildError: there is nothing that the prompt does not reach, or something unforeseen is handed over.
    """
    import onnx_ir as ir

    described = {tensor.name: tensor for tensor in component.inputs}
    model = ir.load(path)
    handed = tuple(sorted(map(_described, border(model)), key=lambda tensor: tensor.name))
    if PROMPT not in described or not handed:
        raise BuildError(
            f"{component.name} has no part that no prompt changes: leave out --option shared=yes"
        )
    names = [tensor.name for tensor in handed]
    shared, rest = (path.with_name(f"{path.stem}_{name}.onnx") for name in ("shared", "rest"))
    of_shared = save_part(model, names, shared)
    rest_model = ir.load(path)
    _take_over(rest_model, names)
    of_rest = save_part(rest_model, None, rest)
    return (
        Part(Component(component.name, _of(component.inputs, of_shared), handed), shared),
        Part(Component(component.name, (*_of(component.inputs, of_rest), *handed), component.outputs), rest),
    )


def reached(model: Any) -> set[Any]:
    """The prompt, and every value of ``model``, an :class:`onnx_ir.Model`, that it changes."""
    values: set[Any] = {value for value in model.graph.inputs if value.name == PROMPT}
    for node in model.graph:  # in an order in which values are made before they are used
        if not values.isdisjoint(node.inputs):
            values.update(node.outputs)
    return values


def border(model: Any) -> list[Any]:
    """Values that nodes out of the prompt's reach make and nodes within it use."""
    prompted = reached(model)
    # And what is made of other inputs, not of weights alone.
    other: set[Any] = {*model.graph.inputs} - prompted
    found: dict[Any, None] = {}
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if not prompted.isdisjoint(inputs):
            found |= dict.fromkeys(
                value for value in inputs if value in other and value.producer() is not None
            )
        elif not other.isdisjoint(inputs):
            other.update(node.outputs)
    return [*found]


def _take_over(model: Any, names: Sequence[str]) -> None:
    """Make inputs of values that nodes of the graph make."""
    import onnx_ir as ir

    made = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        value = made[name]
        given = ir.Value(name=name, shape=value.shape, type=value.type)
        value.name = f"{name}_made"
        ir.convenience.replace_all_uses_with(value, given)
        model.graph.inputs.append(given)


def _of(tensors: Sequence[Tensor], names: set[str]) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor.name in names)


def _described(value: Any) -> Tensor:
    import onnx_ir as ir

    kinds = {ir.DataType.FLOAT16: "float16", ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}
    if value.dtype not in kinds or value.shape is None:
        raise BuildError(f"'{value.name}' has no type or shape that an engine hands over")
    return Tensor(str(value.name), kinds[value.dtype], tuple(value.shape.numpy()))


def save_part(model: Any, outputs: Sequence[str] | None, target: Path) -> set[str]:
    """Write ``model``, an :class:`onnx_ir.Model`, with the tensors ``outputs`` for outputs, or its own where None.

    What those do not need is left out. Weights stay in their file, which the part refers to; ``model`` is changed.

    Returns:
        Names of the inputs that are left.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    if outputs is not None:
        made = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs.clear()
        model.graph.outputs.extend(made[name] for name in outputs)
    passes.RemoveUnusedNodesPass()(model)
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)
    ir.save(model, target)
    return {str(value.name) for value in model.graph.inputs}
