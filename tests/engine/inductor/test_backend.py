"""The Inductor backend: compiles networks ahead of time, loads without compiling, runs into the caller's arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stand_ins.sets import BYTES, CopyBackend, build, install

pytest.importorskip("torch", reason="Inductor is PyTorch's compiler")

from v2v.core.components import Window, components
from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.errors import EngineError
from v2v.core.samples import sample_inputs
from v2v.engine.backend import BuildOptions, Compiled, Source
from v2v.engine.inductor import backend as inductor
from v2v.engine.inductor import runner
from v2v.engine.inductor.backend import InductorBackend
from v2v.engine.inductor.runner import InductorEngine
from v2v.export.graphs import plain_network
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
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A text encoder: the smallest component there is, since a C++ compiler takes its time."""
    folder = tmp_path_factory.mktemp("inductor")
    return InductorBackend().build(network_source(), folder, CPU, lambda phase, share: None)


def network_source() -> Source:
    """The component's network with random weights, and no graph."""
    weights = load_weights("random:0", MODEL)

    def no_graph() -> Any:
        raise AssertionError("no graph is needed")

    network = partial(plain_network, COMPONENT.name, MODEL, weights)
    return Source(COMPONENT, MODEL, Window(4, 80, 64), "fp32", no_graph, network)


@pytest.fixture
def engine(compiled: Compiled) -> InductorEngine:
    return InductorBackend().load(COMPONENT, compiled.files, "cpu")


def run(engine: InductorEngine, ids: np.ndarray) -> np.ndarray:
    (output,) = engine.component.outputs
    context = np.full(output.shape, np.nan, output.dtype)
    engine.run({"ids": ids}, {output.name: context})
    return context


class NetworkBackend(CopyBackend):
    """Compiles networks, in name."""

    def build(self, source: Source, folder: Path, options: BuildOptions, progress: Any) -> Compiled:
        (folder / "scratch.tmp").touch()
        code = folder / "code"
        code.write_text(f"{source.component.name} {source.network()}")
        return Compiled([code], error=1e-3)


def test_a_backend_that_asks_for_networks_gets_them_and_no_graph_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_graph(*arguments: Any) -> Any:
        raise AssertionError("no graph is needed")

    install(NetworkBackend(name="networks"), monkeypatch)
    exporter = replace(
        BYTES, export_component=no_graph, plain_network=lambda name, model, weights: weights.source
    )
    built = build(backend="networks", exporter=exporter).engine_set
    (file,) = built.manifest.components["unet"].files
    assert (built.path / file.name).read_text() == "unet random:0"
    assert built.manifest.components["unet"].error == 1e-3
    assert {path.name for path in (built.path / "unet").iterdir()} == {"code"}
    assert not (built.path / "graphs").exists()


def test_what_it_compiles_is_checked_against_pytorch(compiled: Compiled) -> None:
    assert 0 < compiled.error < 1e-5
    assert all(file.exists() for file in compiled.files)


def test_it_computes_the_network_into_the_callers_arrays(engine: InductorEngine) -> None:
    import torch

    from v2v.export.weights import make_network

    network = make_network("text_encoder", MODEL)
    state = load_weights("random:0", MODEL).state_dict("text_encoder")
    network.load_state_dict(state, strict=True, assign=True)
    for seed in (1, 2):
        ids = sample_inputs(COMPONENT, 100, seed)["ids"]
        with torch.no_grad():
            expected = network.float()(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(run(engine, ids), expected, atol=1e-5)


def test_loading_and_running_compile_nothing(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpu_vec_isa

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no compiler is there")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", refuse)
    loaded = InductorBackend().load(COMPONENT, compiled.files, "cpu")
    assert np.isfinite(run(loaded, np.zeros((1, 77), np.int64))).all()


def in_own_process(script: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may import from the tests, in a process of its own."""
    root = Path(__file__).parents[3]
    found = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": found, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_loading_and_running_leave_pytorchs_compiler_alone(compiled: Compiled) -> None:
    """Importing it takes seconds of the time to the first step."""
    script = """
import sys
from pathlib import Path
import numpy as np
from tests.engine.inductor.test_backend import COMPONENT, InductorBackend, run
assert "torch._dynamo" not in sys.modules
run(InductorBackend().load(COMPONENT, [Path(file) for file in sys.argv[1:]], "cpu"), np.zeros((1, 77), np.int64))
print([name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "triton")])
"""
    done = in_own_process(script, *compiled.files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the linker is told in the words of Linux's")
def test_packages_open_if_the_compiler_links_the_standard_library_into_everything(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        """#!/bin/sh
case " $* " in *" -shared "*) exec g++ -static-libstdc++ "$@" ;; esac
exec g++ "$@"
"""
    )
    compiler.chmod(0o755)
    imports = """
import sys
from pathlib import Path
import torch
from tests.engine.inductor.test_backend import CPU, InductorBackend, network_source
"""
    build = """
InductorBackend().build(network_source(), Path(sys.argv[1]), CPU, print)
"""
    load = """
InductorBackend().load(network_source().component, [Path(file) for file in sys.argv[1:]], "cpu")
"""
    environment = {
        "CXX": str(compiler),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_VEC_ISA_OK": "0",  # without looking for vectors it is done in half the time
    }
    built = in_own_process(imports + build, tmp_path, **environment)
    assert built.returncode == 0, built.stderr
    files = tmp_path / "text_encoder.pt2", tmp_path / "text_encoder.safetensors"
    opened = in_own_process(imports + load, *files)
    assert opened.returncode == 0, opened.stderr


class EagerCode:
    """What ``open_package`` returns, without a compiler: a method of a network, and how often it was called."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.calls = call, 0

    def get_constant_fqns(self) -> list[str]:
        return []

    def load_constants(self, *arguments: Any) -> None:
        pass

    def boxed_run(self, tensors: list[Any]) -> list[Any]:
        self.calls += 1
        found = self.call(*tensors)
        return list(found) if isinstance(found, tuple) else [found]


def test_prompts_share_what_none_of_them_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from v2v.engine.inductor.fused.unet import FusedUNet
    from v2v.export.models.unet import UNet

    torch.manual_seed(0)
    config = UNetConfig(width=32, multipliers=(1, 2), head_size=16, context_width=8)
    model = replace(MODEL, unet=config)
    component = components(model, Window(2, 80, 64, levels=1), "fp32")["unet"]
    network = FusedUNet(UNet(config)).requires_grad_(False)
    codes = {
        "unet.unprompted.pt2": EagerCode(network.unprompted),
        "unet.prompted.pt2": EagerCode(lambda *tensors: network.prompted(tensors[:-2], *tensors[-2:])),
    }
    for module in (inductor, runner):
        monkeypatch.setattr(module, "open_package", lambda path: codes[path.name])
    paths = [tmp_path / name for name in codes]
    engine = InductorBackend().load(component, [*paths, inductor.save(component, paths, {})], "cpu")

    rng = np.random.default_rng(0)
    latents, *contexts = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (component.inputs[0].shape, *[component.inputs[2].shape] * 2)
    )
    common = {"latents": latents, "timestep": np.array([599])}
    together = [np.full_like(latents, np.nan) for _ in contexts]
    prompts = [({"context": c}, {"velocity": v}) for c, v in zip(contexts, together, strict=True)]
    engine.run_prompts(common, prompts)
    assert [code.calls for code in codes.values()] == [1, 2]
    assert not np.array_equal(*together)
    for context, found in zip(contexts, together, strict=True):
        alone = np.full_like(latents, np.nan)
        engine.run({**common, "context": context}, {"velocity": alone})
        np.testing.assert_array_equal(found, alone)


def test_weights_of_another_component_are_refused(compiled: Compiled) -> None:
    other = replace(COMPONENT, name="unet")
    with pytest.raises(EngineError, match="is not the unet expected"):
        InductorBackend().load(other, compiled.files, "cpu")


def test_damaged_weights_are_refused(compiled: Compiled, tmp_path: Path) -> None:
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
