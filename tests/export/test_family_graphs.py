"""STAR's and VEnhancer's networks as ONNX Runtime runs them give the authors' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.export import golden
from tests.export.test_control import SVD, cases, hints
from tests.stand_ins.sets import source_of
from v2v.core.components import ComponentName, Window, component
from v2v.core.configs import ModelConfig, UNetConfig
from v2v.engine.backend import BuildOptions
from v2v.engine.onnxruntime.backend import OnnxRuntimeBackend
from v2v.export.graphs import export_component
from v2v.export.models.diffusers_names import from_diffusers
from v2v.export.weights import load_weights

pytestmark = pytest.mark.slow  # a golden UNet takes a minute to export

ERROR = 1e-5
FOLDER = "star-venhancer"


def run(
    name: ComponentName, model: ModelConfig, window: Window, weights: Path, inputs: dict[str, Any]
) -> Any:
    """A component's first output, exported and run as in an engine set."""
    folder = weights.parent
    graph = export_component(name, model, load_weights(str(weights), model), window, "fp32", folder)
    described = component(name, model, window, "fp32")
    backend = OnnxRuntimeBackend()
    (folder / "built").mkdir()
    source = source_of(described, graph, model, window)
    compiled = backend.build(source, folder / "built", BuildOptions(), lambda *_: None)
    engine = backend.load(described, compiled.files, "cpu")
    output = np.empty(described.outputs[0].shape, np.float32)
    arrays = {each.name: np.ascontiguousarray(inputs[each.name], each.dtype) for each in described.inputs}
    engine.run(arrays, {described.outputs[0].name: output})
    engine.close()
    return output


def save(folder: Path, **networks: dict[str, torch.Tensor]) -> Path:
    path = folder / "golden.safetensors"
    named = {f"{net}.{name}": v.contiguous() for net, state in networks.items() for name, v in state.items()}
    save_file(named, path)
    return path


@pytest.mark.parametrize(
    ("config", "name"),
    [(golden.STAR_UNET, "star_unet_small"), (golden.VENHANCER_UNET, "venhancer_unet_small")],
)
def test_unets_give_the_authors_numbers(config: UNetConfig, name: str, tmp_path: Path) -> None:
    case = next(cases(f"{FOLDER}/{name}"))
    model = ModelConfig(name, unet=config, autoencoder=golden.CLIP_AUTOENCODER)
    _, _, frames, rows, columns = case["x"].shape
    weights = save(tmp_path, unet=golden.weights(f"{FOLDER}/{name}"))
    given = dict(
        zip(("hint", "keys", "hint_timestep", "enlargement"), hints(case), strict=False),
        latents=case["x"], timestep=case["t"], context=case["y"],
    )  # fmt: skip
    found = run("unet", model, Window(frames, 8 * rows, 8 * columns), weights, given)
    assert golden.relative_error(found, case["out"]) < ERROR


def test_the_temporal_decoder_gives_the_authors_numbers(tmp_path: Path) -> None:
    case = next(cases(SVD))
    frames, _, rows, columns = case["z"].shape
    model = ModelConfig(
        "decoder",
        unet=UNetConfig(
            width=32, multipliers=(1,), blocks=1, attention=(False,), head_size=16, context_width=64
        ),
        autoencoder=golden.CLIP_AUTOENCODER,
        text_encoder=golden.TEXT_ENCODER,
    )
    assert frames == model.autoencoder.decoder_frames
    weights = save(tmp_path, autoencoder=from_diffusers(golden.weights(SVD)))
    window = Window(frames, 8 * rows, 8 * columns, levels=0)
    found = run("vae_decoder", model, window, weights, {"latents": case["z"]})
    assert golden.relative_error(found, case["decoded"]) < ERROR
