"""The Inductor backend on an NVIDIA GPU: fused networks compiled ahead of time, captured, and as fast as promised."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from v2v.engine.backend import BuildOptions
from v2v.engine.components import Component, ComponentName, Window, components
from v2v.engine.inductor import InductorBackend, InductorEngine
from v2v.export.graphs import sample_inputs
from v2v.export.models.configs import MODELS, ModelConfig, UNetConfig
from v2v.export.weights import load_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "cuda" not in InductorBackend().devices, reason="needs a GPU, PyTorch with CUDA and Triton"
    ),
]

SMALL = ModelConfig("narrow", unet=UNetConfig(width=128, multipliers=(1, 2, 4), blocks=1, context_width=1024))
CUDA = BuildOptions(precision="fp16", device="cuda")


@dataclass
class Array:
    """A device array as the runtime's: the engine sees no tensor."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def pointer(self) -> int:
        return self.tensor.data_ptr()


def arrays(component: Component, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    made = sample_inputs(component, 100, seed)
    inputs = {name: Array(torch.from_numpy(value).cuda()) for name, value in made.items()}
    outputs = {
        t.name: Array(torch.full(t.shape, torch.nan, dtype=getattr(torch, t.dtype), device="cuda"))
        for t in component.outputs
    }
    return inputs, outputs


def build(model: ModelConfig, window: Window, name: ComponentName, folder: Path) -> tuple[Component, Any]:
    component = components(model, window, "fp16")[name]
    weights = load_weights("random:0", model)
    return component, InductorBackend().build_module(
        component, model, weights, folder, CUDA, lambda phase, share: None
    )


def milliseconds(work: Any, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def test_a_captured_evaluation_equals_an_eager_one(tmp_path: Path) -> None:
    component, compiled = build(SMALL, Window(8, 272, 256, levels=2), "unet", tmp_path)
    assert compiled.error < 5e-3
    engine = InductorBackend().load(component, compiled.files, "cuda")
    inputs, outputs = arrays(component)
    stream = torch.cuda.Stream()
    engine.run(inputs, outputs, stream.cuda_stream)
    stream.synchronize()
    expected = outputs["velocity"].tensor.clone()
    assert torch.isfinite(expected).all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        engine.run(inputs, outputs, stream.cuda_stream)
    outputs["velocity"].tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(outputs["velocity"].tensor, expected)


@pytest.mark.full_size
@pytest.mark.parametrize(("name", "limit"), [("unet", 440.0), ("vae_encoder", 30.0), ("vae_decoder", 35.0)])
def test_full_size_is_accurate_fast_and_loads_quickly(
    name: ComponentName, limit: float, tmp_path: Path
) -> None:
    model = MODELS["ms-vid2vid-xl"]
    component, compiled = build(model, Window(32, 720, 1280), name, tmp_path)
    assert compiled.error < 5e-3
    torch.cuda.empty_cache()
    started = time.monotonic()
    engine: InductorEngine = InductorBackend().load(component, compiled.files, "cuda")
    inputs, outputs = arrays(component)
    engine.run(inputs, outputs)
    torch.cuda.synchronize()
    assert time.monotonic() - started < 10
    if torch.cuda.get_device_name() == "NVIDIA H100 80GB HBM3":
        assert milliseconds(lambda: engine.run(inputs, outputs)) < limit
