"""The largest numbers inside networks are found on any CPU, where they arise and as large as they are; rehearsals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from v2v.core.components import COMPONENTS, window_for
from v2v.core.configs import MODELS, ModelConfig
from v2v.core.samples import relative_error
from v2v.export.graphs import plain_network
from v2v.export.ranges import LEFT, largest_numbers, rehearse
from v2v.export.weights import load_weights

MODEL: ModelConfig = replace(
    MODELS["small"], unet=replace(MODELS["small"].unet, width=32, head_size=16, groups=8)
)


def with_large_weights(name: str, factor: float) -> Any:
    weights = load_weights("random:0", MODEL)

    def read(network: Any) -> Any:
        tensors, origin = weights.read(network)
        return {key: value * factor if key == name else value for key, value in tensors.items()}, origin

    return replace(weights, read=read)


@pytest.fixture(scope="module")
def plain() -> dict[Any, dict[str, float]]:
    """Those of made-up weights."""
    return largest_numbers(MODEL, load_weights("random:0", MODEL), window_for(MODEL))


def test_every_component_is_looked_at(plain: dict[Any, dict[str, float]]) -> None:
    assert tuple(plain) == COMPONENTS
    assert all(len(numbers) > 20 and 1 < max(numbers.values()) < 1000 for numbers in plain.values())
    assert "middle_block.0.in_layers.2 conv2d" in plain["unet"]


def test_a_convolution_with_large_weights_is_named_with_its_number(
    plain: dict[Any, dict[str, float]],
) -> None:
    found = largest_numbers(MODEL, with_large_weights("decoder.conv_in.weight", 1e5), window_for(MODEL))[
        "vae_decoder"
    ]
    place = "decoder.conv_in conv2d"
    assert found[place] == pytest.approx(1e5 * plain["vae_decoder"][place], rel=0.2)


def test_what_norms_compute_inside_does_not_count(plain: dict[Any, dict[str, float]]) -> None:
    norms = [name for name in plain["unet"] if name.startswith("middle_block.0.in_layers.0 ")]
    assert norms == ["middle_block.0.in_layers.0 to"]


@pytest.mark.slow
def test_a_rehearsal_goes_through_a_run_and_notes_what_products_are_given(tmp_path: Path) -> None:
    weights = load_weights("random:0", MODEL)
    found = rehearse("unet_outer", MODEL, weights, window_for(MODEL), "fp16", tmp_path)
    network = plain_network("unet_outer", MODEL, weights)
    steps = [int(inputs["timestep"][0]) for inputs, _ in found.runs]
    assert steps == sorted(set(steps), reverse=True) and len(steps) == len(LEFT)
    for inputs, outputs in found.runs:
        assert list(inputs) == [tensor.name for tensor in found.component.inputs]
        made = network.outer(*(torch.from_numpy(inputs[name]).float() for name in inputs))
        assert relative_error(made.numpy(), outputs["velocity"]) < 1e-2  # its inputs were rounded
    products = {
        node.input[1]
        for node in onnx.load(found.graph, load_external_data=False).graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1].startswith("unet.")
    }
    assert len(products) >= 10 and products <= set(found.largest)
    first = max(float(abs(inputs["latents"]).max()) for inputs, _ in found.runs)
    assert found.largest["unet.input_blocks.0.0.weight"] == pytest.approx(first, rel=1e-3)
