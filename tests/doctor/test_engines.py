"""A pattern goes through a backend as a component does, and what is wrong with an engine is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from v2v.core.components import Component, Tensor, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import EngineError
from v2v.device.cpu import CpuDevice
from v2v.doctor.engines import Proof, Scale, examine, export
from v2v.doctor.patterns import Pattern, patterns
from v2v.engine.backend import Engine

SMALL = MODELS["small"]
LITTLE = Scale(work=1e7, elements=1e9)


def nothing(step: str) -> None:
    pass


def pattern(name: str) -> Pattern:
    return next(each for each in patterns(SMALL, window_for(SMALL)) if each.name == name)


def within(found: Pattern, facts: Mapping[str, Any]) -> Pattern:
    frames, height, width = facts["window"]
    return replace(found, window=replace(found.window, frames=frames, height=height, width=width))


def test_a_pattern_is_scaled_exported_compiled_run_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found, steps = pattern("VAE encoder"), []
    facts = export(found, "fp32", LITTLE, tmp_path, nothing)
    assert facts["window"] == [1, 40, 80]
    assert facts["work"] > LITTLE.work  # no smaller one is tried
    assert facts["weight_bytes"] > 1e5
    chosen = within(found, facts)
    result = examine("onnxruntime", "cpu", chosen, "fp32", tmp_path, tmp_path / "engine", steps.append)
    assert result["error"] == 0
    assert steps == [
        "compiling",
        "loading",
        "running",
        "comparing with ONNX Runtime on the CPU",
        "replaying two captured bindings",
        "loading again",
    ]
    assert not (tmp_path / "engine").exists()
    expected = dict(np.load(tmp_path / "outputs.npz"))
    np.savez(tmp_path / "outputs.npz", **{name: array * 1.01 for name, array in expected.items()})
    with pytest.raises(EngineError, match=r"differs from ONNX Runtime's by 9\.9e-03, allowed is 1e-03"):
        examine("onnxruntime", "cpu", chosen, "fp32", tmp_path, tmp_path / "engine", nothing)


@pytest.mark.parametrize("name", ["VAE decoder", pytest.param("UNet level 3", marks=pytest.mark.slow)])
def test_nvidias_compiler_takes_patterns_without_a_gpu(
    tensorrt_rtx: ModuleType, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("torch")
    found = pattern(name)
    chosen = within(found, export(found, "fp16", LITTLE, tmp_path, nothing))
    facts = examine("tensorrt", None, chosen, "fp16", tmp_path, tmp_path / "engine", nothing)
    assert facts["compile_seconds"] > 0
    assert facts["scratch_bytes"] > 0
    assert "error" not in facts


def test_where_an_engine_only_compiles_the_window_stays(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    facts = export(pattern("text encoder"), "fp16", None, tmp_path, nothing)
    assert facts["window"] == [16, 360, 640]
    assert not (tmp_path / "outputs.npz").exists()


# Engines with one fault each ---------------------------------------------------------------------------------------

DOUBLE = Component("unet", (Tensor("latents", "float32", (1, 4)),), (Tensor("velocity", "float32", (1, 4)),))
INPUTS = {"latents": np.arange(4, dtype=np.float32)[None]}
EXPECTED = {"velocity": 2 * INPUTS["latents"]}


class Doubling(Engine):
    component = DOUBLE
    loads = 0

    def __init__(self) -> None:
        Doubling.loads += 1
        self.drift = 0.0

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        np.multiply(inputs["latents"], 2, out=outputs["velocity"])

    def close(self) -> None:
        pass


class OtherWhenLoadedAgain(Doubling):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2 if Doubling.loads == 1 else 2.0001

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        np.multiply(inputs["latents"], np.float32(self.factor), out=outputs["velocity"])


class OtherEveryTime(Doubling):
    runs = 0

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        self.runs += 1
        np.multiply(inputs["latents"], np.float32(2 + 1e-5 * self.runs), out=outputs["velocity"])


class Overflowing(Doubling):
    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0) -> None:
        outputs["velocity"][...] = np.inf


class Backend:
    def __init__(self, engine: type[Doubling]) -> None:
        Doubling.loads = 0
        self.engine = engine

    def load(self, component: Component, files: list[Path], device: str) -> Engine:
        return self.engine()


@pytest.mark.parametrize(
    ("engine", "step", "message"),
    [
        (Overflowing, "comparing with ONNX Runtime on the CPU", "differs from ONNX Runtime's by inf"),
        (OtherEveryTime, "replaying two captured bindings", "gives another 'velocity' when a captured run"),
        (OtherWhenLoadedAgain, "loading again", "loaded again, it gives another 'velocity'"),
    ],
)
def test_a_faulty_engine_is_found_at_its_step(engine: type[Doubling], step: str, message: str) -> None:
    steps: list[str] = []
    proof = Proof(Backend(engine), DOUBLE, [], CpuDevice(), INPUTS)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=message):
        proof.run(EXPECTED, 1e-3, steps.append)
    assert steps[-1] == step


def test_a_faultless_engine_passes() -> None:
    proof = Proof(Backend(Doubling), DOUBLE, [], CpuDevice(), INPUTS)  # type: ignore[arg-type]
    assert proof.run(EXPECTED, 1e-3, nothing)["error"] == 0
    assert Doubling.loads == 2
