"""The stand-in model's components as ONNX graphs of a few nodes, much like those of :mod:`tests.stand_ins.arrays`."""

from __future__ import annotations

from typing import Any

import numpy as np

from v2v.core.components import Component
from v2v.core.configs import ModelConfig


def onnx_model(component: Component, model: ModelConfig) -> Any:
    """Sines of a text, the mean colour of a picture, an autoencoder of block means, a UNet of everything."""
    from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
    constants: dict[str, np.ndarray] = {}
    real = component.outputs[0].dtype
    inputs = [tensor.name for tensor in component.inputs]
    source, result = component.inputs[0].name, component.outputs[0].name
    z, factor = model.unet.latent_channels, model.autoencoder.factor
    if component.name == "text_encoder":
        constants = {"table": np.linspace(-1, 1, model.text_encoder.width, dtype=real)[None, None]}
        constants["axes"] = np.array([2])
        nodes = [
            helper.make_node("Cast", [source], ["floats"], to=types[real]),
            helper.make_node("Sin", ["floats"], ["sines"]),
            helper.make_node("Unsqueeze", ["sines", "axes"], ["columns"]),
            helper.make_node("Mul", ["columns", "table"], [result]),
        ]
    elif component.name == "image_encoder":
        # Of the picture's mean colour; of no picture nothing.
        _, tokens, width = component.outputs[0].shape
        constants = {
            "sides": np.array([2, 3]),
            "table": np.linspace(-1, 1, 3 * tokens * width, dtype=real).reshape(3, -1),
            "nothing": np.zeros((1, tokens * width), real),
            "shape": np.array([2, tokens, width]),
        }
        nodes = [
            helper.make_node("ReduceMean", [source, "sides"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "table"], ["own"]),
            helper.make_node("Concat", ["own", "nothing"], ["both"], axis=0),
            helper.make_node("Reshape", ["both", "shape"], [result]),
        ]
    elif component.name == "vae_encoder":
        kernel = np.zeros((2 * z, 3, 1, 1), real)
        kernel[:3, :, 0, 0] = np.eye(3)
        bias = np.array([0.0] * z + [-30.0] * z, real)
        constants = {"kernel": kernel, "bias": bias}
        nodes = [
            helper.make_node(
                "AveragePool", [source], ["means"], kernel_shape=[factor] * 2, strides=[factor] * 2
            ),
            helper.make_node("Conv", ["means", "kernel", "bias"], [result]),
        ]
    elif component.name == "unet":
        # Of all that it is given: what a neighbouring frame, a prompt or a step changes can be seen in every picture.
        constants = {
            "share": np.full((1, z, 1, 1, component.inputs[0].shape[-1]), 0.1, real),
            "frames": np.array([2]),
            "part": np.array(0.05, real),
            "steps": np.array(0.0001, real),
        }
        nodes = [
            helper.make_node("Mul", [source, "share"], ["own"]),
            helper.make_node("ReduceMean", [source, "frames"], ["mean"]),
            helper.make_node("ReduceMean", ["context"], ["words"], keepdims=0),
            helper.make_node("Add", ["mean", "words"], ["others"]),
            helper.make_node("Mul", ["others", "part"], ["little"]),
            helper.make_node("Cast", ["timestep"], ["time"], to=types[real]),
            helper.make_node("Mul", ["time", "steps"], ["late"]),
            helper.make_node("Add", ["own", "little"], ["sum"]),
            helper.make_node("Add", ["sum", "late"], ["unled" if "hint" in inputs else result]),
        ]
        if "hint" in inputs:  # pulls the result towards the hint
            constants["pull"] = np.array(-0.3, real)
            nodes.append(helper.make_node("Mul", ["hint", "pull"], ["pulled"]))
        if "keys" in inputs:  # where there is one
            constants["by frame"] = np.array([component.inputs[0].shape[2], 1, 1])
            nodes += [
                helper.make_node("Reshape", ["keys", "by frame"], ["there"]),
                helper.make_node("Add", ["hint_timestep", "enlargement"], ["told"]),
                helper.make_node("Cast", ["told"], ["conditions"], to=types[real]),
                helper.make_node("Mul", ["conditions", "steps"], ["condition"]),
                helper.make_node("Add", ["pulled", "condition"], ["conditioned"]),
                helper.make_node("Mul", ["conditioned", "there"], ["led"]),
                helper.make_node("Add", ["unled", "led"], [result]),
            ]
        elif "hint" in inputs:
            nodes.append(helper.make_node("Add", ["unled", "pulled"], [result]))
    else:
        kernel = np.zeros((3, z, 1, 1), real)
        kernel[:, :3, 0, 0] = np.eye(3)
        constants = {"kernel": kernel, "scales": np.array([1, 1, factor, factor], np.float32)}
        nodes = [
            helper.make_node("Conv", [source, "kernel"], ["colours"]),
            helper.make_node("Resize", ["colours", "", "scales"], ["pixels"], mode="nearest"),
        ]
        if component.inputs[0].shape[0] == 1:
            nodes.append(helper.make_node("Identity", ["pixels"], [result]))
        else:  # each frame of a clip shows a little of the others
            constants["clip"], constants["little"] = np.array([0]), np.array(0.1, real)
            nodes += [
                helper.make_node("ReduceMean", ["pixels", "clip"], ["mean"]),
                helper.make_node("Sub", ["mean", "pixels"], ["others"]),
                helper.make_node("Mul", ["others", "little"], ["seen"]),
                helper.make_node("Add", ["pixels", "seen"], [result]),
            ]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            component.name,
            [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in component.inputs],
            [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in component.outputs],
            [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    checker.check_model(made)
    return shape_inference.infer_shapes(made)  # exported graphs too say what lies between their nodes
