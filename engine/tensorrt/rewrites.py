"""Convolutions in the form that TensorRT has the most kernels for.

A convolution over frames, ``[N, C, F, H, W]`` by a kernel of (k, 1, 1), is one over the rows of ``[N, C, F, H W]``: the
same products, for which every library has many more kernels in two dimensions than in three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def flatten_frames(source: Path, target: Path) -> int:
    """Write the graph at ``source`` to ``target``, in the same folder, with two-dimensional convolutions over frames.

    Weights stay in their file: only how their shape is read changes.

    Returns:
        How many convolutions there are of that kind.
    """
    import onnx_ir as ir

    model = ir.load(source)
    found = [node for node in model.graph if _is_over_frames(node)]
    for number, node in enumerate(found):
        _flatten(model.graph, node, number)
    ir.save(model, target)
    return len(found)


def add_weight(graph: Any, name: str, shape: Any, dtype: Any, make: Callable[[], Any]) -> Any:
    """A new initializer of ``graph``, whose array ``make`` gives when it is stored."""
    import onnx_ir as ir

    lazy = ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype=dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def store_beside(values: Sequence[Any], target: Path) -> None:
    """Write what the initializers ``values`` hold into ``<target>.data``, which they refer to from then on."""
    from onnx_ir import external_data

    tensors = [value.const_value for value in values]
    kept = external_data.convert_tensors_to_external(tensors, target.parent, f"{target.name}.data")
    for value, tensor in zip(values, kept, strict=True):
        value.const_value = tensor


def _is_over_frames(node: Any) -> bool:
    """Whether it is a convolution whose kernel is wider than one in the first of three dimensions alone."""
    kernel = node.attributes.get("kernel_shape")
    return bool(
        node.op_type == "Conv"
        and kernel is not None
        and len(kernel.value) == 3
        and tuple(kernel.value[1:]) == (1, 1)
        and tuple(node.attributes["strides"].value) == (1, 1, 1)
        and tuple(node.attributes["dilations"].value) == (1, 1, 1)
        and node.inputs[1].is_initializer()
        and node.inputs[0].shape is not None
        and node.outputs[0].shape is not None
    )


def _flatten(graph: Any, node: Any, number: int) -> None:
    import onnx_ir as ir

    video, weight, *bias = node.inputs
    result = node.outputs[0]
    batch, channels, frames, height, width = video.shape.numpy()
    taps = node.attributes["kernel_shape"].value[0]
    before, _, _, after, _, _ = node.attributes["pads"].value

    def constant(name: str, sizes: list[int]) -> Any:
        value = ir.Value(
            name=f"frames_{number}_{name}", const_value=ir.tensor(sizes, dtype=ir.DataType.INT64)
        )
        graph.register_initializer(value)
        return value

    flat = ir.Node("", "Reshape", [video, constant("in", [batch, channels, frames, height * width])])
    attributes = {
        "group": node.attributes["group"].value if "group" in node.attributes else 1,
        "kernel_shape": [taps, 1],
        "pads": [before, 0, after, 0],
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    convolved = ir.Node(
        "",
        "Conv",
        [flat.outputs[0], _as_rows(graph, weight), *bias],
        attributes=ir.convenience.convert_attributes(attributes),
        name=node.name,
    )
    back = ir.Node("", "Reshape", [convolved.outputs[0], constant("out", [*result.shape.numpy()])])
    names = (f"{result.name}_rows", f"{result.name}_convolved", result.name)
    shapes = (
        (batch, channels, frames, height * width),
        (batch, result.shape.numpy()[1], frames, height * width),
        result.shape.numpy(),
    )
    for made, name, shape in zip((flat, convolved, back), names, shapes, strict=True):
        made.outputs[0].name, made.outputs[0].type = name, result.type
        made.outputs[0].shape = ir.Shape(shape)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [flat, convolved, back], [result], [back.outputs[0]]
    )


def _as_rows(graph: Any, weight: Any) -> Any:
    """The weight ``[O, I, k, 1, 1]`` as ``[O, I, k, 1]``: the same bytes."""
    import onnx_ir as ir

    name = f"{weight.name}_rows"
    if name in graph.initializers:
        return graph.initializers[name]
    stored, shape = weight.const_value, ir.Shape(weight.shape.numpy()[:4])
    if isinstance(stored, ir.ExternalTensor):
        tensor: Any = ir.ExternalTensor(
            stored.location,
            stored.offset,
            stored.length,
            stored.dtype,
            shape=shape,
            name=name,
            base_dir=stored.base_dir,
        )
    else:
        tensor = ir.tensor(stored.numpy().reshape(shape.numpy()), name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(stored.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
