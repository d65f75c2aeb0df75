"""The ONNX Runtime backend: checks what it loads, runs into the caller's arrays, never changes device by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL, WINDOW
from tests.stand_ins.sets import ONNX, build, source_of
from v2v.core.components import COMPONENTS, ComponentName, Precision, Tensor, components
from v2v.core.errors import BuildError, EngineError
from v2v.core.samples import sample_inputs
from v2v.engine.backend import Backend, BuildOptions, Engine, backend
from v2v.engine.onnxruntime.backend import OnnxRuntimeBackend
from v2v.engine.store import EngineSet

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return build(tmp_path_factory.mktemp("sets") / "ort", backend="onnxruntime", exporter=ONNX).engine_set


def run(engine: Engine, **inputs: np.ndarray) -> np.ndarray:
    (output,) = engine.component.outputs
    outputs = {output.name: np.full(output.shape, np.nan, output.dtype)}
    engine.run(inputs, outputs)
    return outputs[output.name]


def test_it_is_a_backend_with_a_cpu() -> None:
    made: Backend = backend("onnxruntime")
    assert made.version == onnxruntime.__version__
    assert made.devices[-1] == "cpu"


def test_it_computes_the_graph_into_the_callers_arrays(stand_in: EngineSet) -> None:
    engine = stand_in.load("unet", "cpu")
    inputs = sample_inputs(engine.component, 100)
    for latents in (inputs["latents"], np.full_like(inputs["latents"], 3.0)):
        inputs["latents"] = latents
        others = 0.05 * (latents.mean(axis=2, keepdims=True) + inputs["context"].mean())
        expected = 0.1 * latents + others + 0.0001 * inputs["timestep"][0]
        np.testing.assert_allclose(run(engine, **inputs), expected, rtol=1e-5, atol=1e-6)


def test_encoder_and_decoder_agree_on_the_picture(stand_in: EngineSet) -> None:
    colours = np.random.default_rng(0).uniform(-1, 1, (1, 3, 10, 8)).astype(np.float32)
    image = colours.repeat(8, axis=2).repeat(8, axis=3)
    moments = run(stand_in.load("vae_encoder", "cpu"), image=image)
    again = run(stand_in.load("vae_decoder", "cpu"), latents=np.ascontiguousarray(moments[:, :4]))
    np.testing.assert_allclose(again, image, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", COMPONENTS)
def test_every_type_of_the_contract_runs(name: ComponentName, precision: Precision, tmp_path: Path) -> None:
    component = components(MODEL, WINDOW, precision)[name]
    path = tmp_path / "graph.onnx"
    path.write_bytes(onnx_model(component, MODEL).SerializeToString())
    engine = OnnxRuntimeBackend().load(component, [path], "cpu")
    assert np.isfinite(run(engine, **sample_inputs(component, 100))).all()


def test_a_set_does_not_hold_its_weights_twice_on_the_disk(tmp_path: Path) -> None:
    graph = tmp_path / "unet.onnx"
    graph.write_bytes(onnx_model(components(MODEL, WINDOW, "fp32")["unet"], MODEL).SerializeToString())
    (tmp_path / "set").mkdir()
    made = OnnxRuntimeBackend()
    component = components(MODEL, WINDOW, "fp32")["unet"]
    (file,) = made.build(
        source_of(component, graph), tmp_path / "set", BuildOptions(), lambda phase, share: None
    ).files
    assert file.stat().st_ino == graph.stat().st_ino


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ()}, "its inputs are context float32"),
        (
            {"outputs": (Tensor("noise", "float32", (1, 4, 4, 10, 8)),)},
            r"its outputs are velocity float32 \[1, 4, 4, 10, 8\] instead of noise",
        ),
        (
            {"outputs": (Tensor("velocity", "float16", (1, 4, 4, 10, 8)),)},
            r"velocity float32 .* instead of velocity float16",
        ),
        (
            {"outputs": (Tensor("velocity", "float32", (1, 4, 4, 10, 16)),)},
            r"10, 8\] instead of velocity float32 \[1, 4, 4, 10, 16\]",
        ),
    ],
)
def test_a_graph_that_is_not_the_component_is_refused(
    stand_in: EngineSet, change: dict[str, tuple[Tensor, ...]], message: str
) -> None:
    component = replace(stand_in.component("unet"), **change)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=message):
        OnnxRuntimeBackend().load(component, [stand_in.path / "unet/unet.onnx"], "cpu")


def test_what_is_wrong_with_a_graph_is_not_printed_where_results_go(
    stand_in: EngineSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (stand_in.path / "unet/unet.onnx").read_bytes()
    (tmp_path / "unet.onnx").write_bytes(content.replace(b"velocity", b"vel\xffcity"))
    with pytest.raises(EngineError, match=r"unet.onnx does not load in ONNX Runtime"):
        OnnxRuntimeBackend().load(stand_in.component("unet"), [tmp_path / "unet.onnx"], "cpu")
    assert capfd.readouterr().out == ""


def test_a_graph_that_does_not_load_is_refused(tmp_path: Path) -> None:
    component = components(MODEL, WINDOW, "fp32")["unet"]
    (tmp_path / "unet.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"unet.onnx does not load in ONNX Runtime: ") as error:
        OnnxRuntimeBackend().load(component, [tmp_path / "unet.onnx"], "cpu")
    assert "\n" not in str(error.value)
    (tmp_path / "set").mkdir()
    with pytest.raises(BuildError, match="does not load"):
        OnnxRuntimeBackend().build(
            source_of(component, tmp_path / "unet.onnx"),
            tmp_path / "set",
            BuildOptions(),
            lambda phase, share: None,
        )


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (None, "unet needs an array for 'latents'"),
        (np.zeros((1, 4, 4, 10, 8), np.float64), "must be float32 .* not float64"),
        (np.zeros((1, 4, 8, 10, 8), np.float32), r"not float32 \[1, 4, 8, 10, 8\]"),
        (np.zeros((1, 4, 4, 10, 8), np.float32, order="F"), "must be C-contiguous"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    stand_in: EngineSet, latents: np.ndarray | None, message: str
) -> None:
    engine = stand_in.load("unet", "cpu")
    inputs = sample_inputs(engine.component, 100)
    inputs.pop("latents")
    if latents is not None:
        inputs["latents"] = latents
    with pytest.raises(EngineError, match=message):
        run(engine, **inputs)


def test_a_closed_engine_says_so(stand_in: EngineSet) -> None:
    engine = stand_in.load("unet", "cpu")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="unet is closed"):
        run(engine, **sample_inputs(engine.component, 100))


def test_a_missing_gpu_is_an_error_and_never_the_cpu(stand_in: EngineSet) -> None:
    made = OnnxRuntimeBackend()
    made.devices = ("cpu",)
    fits = made.fits(stand_in.manifest.recipe.backend.facts, "cuda")
    assert not fits.fits
    assert "runs on cpu here, not on cuda; pip install onnxruntime-gpu" in fits.reason


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_onnxruntimes_own_fallback_to_the_cpu_is_refused(stand_in: EngineSet) -> None:
    with pytest.raises(EngineError, match="could not start CUDAExecutionProvider and would run on the CPU"):
        OnnxRuntimeBackend().load(stand_in.component("unet"), [stand_in.path / "unet/unet.onnx"], "cuda")


@pytest.mark.parametrize(
    ("version", "fits"), [("1.22.1", False), ("1.23.0", True), ("1.100.0", True), ("2.0", True)]
)
def test_an_onnxruntime_without_the_operators_is_named(version: str, fits: bool) -> None:
    made = OnnxRuntimeBackend()
    facts = made.facts(BuildOptions())
    made.version = version
    assert made.fits(facts, "cpu").fits is fits
    if not fits:
        assert "needs ONNX Runtime 1.23 or later on cpu, here is 1.22.1" in made.fits(facts, "cpu").reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(extra={"tactics": "few"}), "has no option 'tactics'"),
    ],
)
def test_options_of_other_backends_are_refused_before_anything_is_built(
    options: BuildOptions, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=message):
        build(tmp_path / "set", backend="onnxruntime", exporter=ONNX, options=options)
    assert list(tmp_path.iterdir()) == []


def test_threads_can_be_set(stand_in: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V2V_THREADS", "1")
    stand_in.load("unet", "cpu")
    monkeypatch.setenv("V2V_THREADS", "many")
    with pytest.raises(EngineError, match="V2V_THREADS must be a number of threads, not 'many'"):
        stand_in.load("unet", "cpu")


def test_on_cuda_raw_pointers_and_the_callers_stream_are_bound(
    stand_in: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime is told, on a machine without a GPU: its session is replaced by a recorder."""
    import v2v.engine.onnxruntime.backend as module

    component, bound, sessions = stand_in.component("unet"), {}, []

    def bind(
        name: str, device: str, index: int, dtype: np.dtype, shape: tuple[int, ...], pointer: int
    ) -> None:
        bound[name] = (device, index, dtype, shape, pointer)

    def session(
        path: str, options: object, providers: list[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> SimpleNamespace:
        assert not enable_fallback
        sessions.append(providers)
        kinds = {"float32": "tensor(float)", "int64": "tensor(int64)"}
        described = {
            f"get_{kind}": lambda tensors=tensors: [
                SimpleNamespace(name=t.name, type=kinds[t.dtype], shape=list(t.shape)) for t in tensors
            ]
            for kind, tensors in (("inputs", component.inputs), ("outputs", component.outputs))
        }
        return SimpleNamespace(
            **described,
            get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            io_binding=lambda: SimpleNamespace(bind_input=bind, bind_output=bind),
            run_with_iobinding=lambda binding, options: None,
        )

    monkeypatch.setattr(module.ort, "InferenceSession", session)
    engine = OnnxRuntimeBackend().load(component, [stand_in.path / "unet/unet.onnx"], "cuda")
    arrays = {
        tensor.name: SimpleNamespace(shape=tensor.shape, dtype=np.dtype(tensor.dtype), pointer=1000 + index)
        for index, tensor in enumerate((*component.inputs, *component.outputs))
    }
    for _ in range(2):
        engine.run(arrays, arrays, stream=77)
    assert bound["latents"] == ("cuda", 0, np.dtype("float32"), (1, 4, 4, 10, 8), 1000)
    assert bound["velocity"] == ("cuda", 0, np.dtype("float32"), (1, 4, 4, 10, 8), 1003)
    settings = module.CUDA_SETTINGS
    assert settings["enable_skip_layer_norm_strict_mode"] == "1"
    assert sessions == [
        [("CUDAExecutionProvider", settings)],
        [("CUDAExecutionProvider", {**settings, "user_compute_stream": "77"})],
    ]


def test_layers_are_timed_and_the_engine_goes_on(stand_in: EngineSet) -> None:
    engine = stand_in.load("unet", "cpu")
    inputs = sample_inputs(engine.component, 100)
    before = run(engine, **inputs)
    (output,) = engine.component.outputs
    seconds = engine.layer_seconds(inputs, {output.name: np.empty(output.shape, output.dtype)})
    assert len(seconds) > 3 and all(0 <= each < 10 for each in seconds.values())
    assert any(name.endswith(" ReduceMean") for name in seconds)
    np.testing.assert_array_equal(run(engine, **inputs), before)
