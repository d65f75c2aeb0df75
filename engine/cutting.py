"""Parts of a graph: what some of its tensors need, in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
