"""How much of a UNet no prompt changes, and what the two halves of its graph hand over, counted at full size.

    python -m v2v.benchmarks.studies.shared_part ms-vid2vid-xl star-light -o FILE

Graphs are traced without weights; a model takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import onnx_ir as ir

from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.engine.cutting import border, reached
from v2v.export.graphs import trace


def counted(model: ir.Model) -> dict[str, float]:
    """Operations of a UNet's graph, of what no prompt changes, and bytes that the latter hands over."""
    prompted = reached(model)
    whole = shared = 0
    for node in model.graph:
        flops = _flops(node)
        whole += flops
        if prompted.isdisjoint(node.inputs):
            shared += flops
    handed = sum(math.prod(_shape(value)) * value.dtype.itemsize for value in border(model))
    return {"tflop": whole / 1e12, "shared_tflop": shared / 1e12, "handed_mib": handed / 2**20}


def _shape(value: Any) -> list[int]:
    return [int(side) for side in value.shape]


def _flops(node: ir.Node) -> int:
    """Of a convolution, a product or an attention; the others are nothing beside them."""
    if node.op_type not in ("Conv", "MatMul", "Gemm", "Attention"):
        return 0
    first, second = _shape(node.inputs[0]), _shape(node.inputs[1])
    if node.op_type == "Attention":  # [B, heads, tokens, width]: scores, and values weighed by them
        return 4 * math.prod(first) * second[-2]
    taken = math.prod(second[1:]) if node.op_type == "Conv" else first[-1]
    return 2 * math.prod(_shape(node.outputs[0])) * taken


def main() -> None:
    """Count the models named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.models:
        model = MODELS[name]
        window = window_for(model)
        found[name] = {"window": str(window), **counted(trace("unet", model, window, "fp16"))}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
