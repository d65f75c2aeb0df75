"""The Inductor backend: compiles networks ahead of time, loads without compiling, runs into the caller's arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import CopyBackend, build, install

pytest.importorskip("torch", reason="Inductor is PyTorch's compiler")

from v2v.engine.backend import (
    BuildError,
    BuildOptions,
    CompiledModule,
    EngineError,
    ModuleCompiler,
)
from v2v.engine.components import Window, components
from v2v.engine.inductor import InductorBackend, InductorEngine
from v2v.engine.verify import random_inputs
from v2v.export.models.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.export.weights import load_weights

MODEL = ModelConfig(
    "tiny",
    unet=UNetConfig(width=32, context_width=8),
    autoencoder=AutoencoderConfig(width=32),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=2, vocabulary=100),
)
COMPONENT = components(MODEL, Window(4, 80, 64), "fp32")["text_encoder"]
CPU = BuildOptions(precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledModule:
    """A text encoder: the smallest component there is, since a C++ compiler takes its time."""
    folder = tmp_path_factory.mktemp("inductor")
    weights = load_weights("random:0", MODEL)
    return InductorBackend().build_module(COMPONENT, MODEL, weights, folder, CPU, lambda phase, share: None)


@pytest.fixture
def engine(compiled: CompiledModule) -> InductorEngine:
    return InductorBackend().load(COMPONENT, compiled.files, "cpu")


def run(engine: InductorEngine, ids: np.ndarray) -> np.ndarray:
    (output,) = engine.component.outputs
    context = np.full(output.shape, np.nan, output.dtype)
    engine.run({"ids": ids}, {output.name: context})
    return context


def test_builds_ask_it_for_modules() -> None:
    assert isinstance(InductorBackend(), ModuleCompiler)


class NetworkBackend(CopyBackend):
    """Compiles networks, in name."""

    def build_module(
        self, component: Any, model: Any, weights: Any, folder: Path, *rest: Any
    ) -> CompiledModule:
        (folder / "scratch.tmp").touch()
        code = folder / "code"
        code.write_text(f"{component.name} {weights.source}")
        return CompiledModule([code], error=1e-3, export_seconds=0.0)


def test_a_build_gives_such_a_backend_the_weights_and_exports_no_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(NetworkBackend(name="networks"), monkeypatch)
    built = build(backend="networks").engine_set
    (file,) = built.manifest.components["unet"].files
    assert (built.path / file.name).read_text() == "unet random:0"
    assert built.manifest.components["unet"].error == 1e-3
    assert {path.name for path in (built.path / "unet").iterdir()} == {"code"}
    assert not (built.path / "graphs").exists()


def test_it_refuses_graphs(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"networks, not graphs such as unet\.onnx"):
        InductorBackend().build(COMPONENT, Path("unet.onnx"), tmp_path, CPU, lambda phase, share: None)


def test_what_it_compiles_is_checked_against_pytorch(compiled: CompiledModule) -> None:
    assert 0 < compiled.error < 1e-5
    assert all(file.exists() for file in compiled.files)


def test_it_computes_the_network_into_the_callers_arrays(engine: InductorEngine) -> None:
    import torch

    from v2v.export.weights import make_network

    network = make_network("text_encoder", MODEL)
    state = load_weights("random:0", MODEL).state_dict("text_encoder")
    network.load_state_dict(state, strict=True, assign=True)
    for seed in (1, 2):
        ids = random_inputs(COMPONENT, 100, seed)["ids"]
        with torch.no_grad():
            expected = network.float()(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(run(engine, ids), expected, atol=1e-5)


def test_loading_and_running_compile_nothing(
    compiled: CompiledModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    from torch._inductor import cpu_vec_isa

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no compiler is there")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", refuse)
    loaded = InductorBackend().load(COMPONENT, compiled.files, "cpu")
    assert np.isfinite(run(loaded, np.zeros((1, 77), np.int64))).all()


def test_weights_of_another_component_are_refused(compiled: CompiledModule) -> None:
    other = replace(COMPONENT, name="unet")
    with pytest.raises(EngineError, match="is not the unet expected"):
        InductorBackend().load(other, compiled.files, "cpu")


def test_damaged_weights_are_refused(compiled: CompiledModule, tmp_path: Path) -> None:
    code, weights = compiled.files
    damaged = tmp_path / weights.name
    damaged.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EngineError, match="does not load in PyTorch"):
        InductorBackend().load(COMPONENT, [code, damaged], "cpu")


def test_arrays_of_another_shape_are_refused(engine: InductorEngine) -> None:
    with pytest.raises(
        EngineError, match=r"'ids' of text_encoder must be int64 \[1, 77\], not int64 \[1, 76\]"
    ):
        run(engine, np.zeros((1, 76), np.int64))


def test_a_closed_engine_says_so(engine: InductorEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="text_encoder is closed"):
        run(engine, np.zeros((1, 77), np.int64))


def test_sets_fit_the_machine_they_were_compiled_on() -> None:
    backend = InductorBackend()
    facts = backend.facts(CPU)
    assert backend.fits(facts, "cpu").fits
    assert "PyTorch 1.0" in backend.fits({**facts, "torch": "1.0"}, "cpu").reason
    assert "instructions" in backend.fits({**facts, "cpu": "other"}, "cpu").reason
    assert "compiled for cuda" in backend.fits({**facts, "gpu": "H100"}, "cpu").reason
