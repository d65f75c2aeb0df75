"""The TensorRT backend: builds on NVIDIA's own compiler, and what a GPU would be needed for against fakes."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.engine.tensorrt import graphs
from tests.stand_ins import sets
from tests.stand_ins.model import MODEL, WINDOW
from v2v.core.components import COMPONENTS, Component, Tensor, components
from v2v.core.errors import BuildError, EngineError, MachineError
from v2v.device import gpus
from v2v.device.gpus import Gpu
from v2v.engine.backend import BuildOptions, Compatibility, backend
from v2v.engine.store import EngineSet, engines_root, timing_cache_folder
from v2v.engine.tensorrt import backend as backend_module
from v2v.engine.tensorrt import runner
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.builder import GIB, TensorRTOptions, explain, limits, trtexec
from v2v.engine.tensorrt.library import Library, Message, load_library
from v2v.engine.tensorrt.runner import PlanRecord, TensorRTEngine, record_path

FP16 = BuildOptions(precision="fp16", device="cuda")
TOYS = components(MODEL, WINDOW, "fp16")
RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, "13.0")
RTX_4080 = Gpu(0, "NVIDIA GeForce RTX 4080", (8, 9), 16 * GIB, "13.0")
RTX_5090 = Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0), 32 * GIB, "13.0")
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB, "13.0")
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, "13.0")
T4 = Gpu(0, "Tesla T4", (7, 5), 16 * GIB, "13.0")


def quiet(phase: str, share: float) -> None:
    """Progress that nobody watches."""


def build(folder: Path, component: Component, graph: Path, options: BuildOptions = FP16) -> list[Path]:
    """Build into ``folder/<component>``, as a set lies on the disk."""
    target = folder / component.name
    target.mkdir()
    return TensorRTBackend().build(sets.source_of(component, graph), target, options, quiet).files


def use_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Pretend that ``gpu`` is in this machine."""
    monkeypatch.setattr(backend_module, "find_gpu", lambda device="cuda": gpu)


def forget(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Pretend that ``modules`` are not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


# The two libraries ----------------------------------------------------------------------------------------------


def test_without_tensorrt_the_advice_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
    with pytest.raises(EngineError, match=r"not installed here .*pip install 'v2v\[tensorrt\]'"):
        backend("tensorrt")


def test_an_old_tensorrt_is_refused_with_the_update_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(EngineError, match=r"TensorRT 10\.9\.0\.34 is too old: 10\.14 .*pip install -U"):
        backend("tensorrt")


def test_tensorrt_for_rtx_serves_where_tensorrt_is_not_installed(
    tensorrt_rtx: ModuleType,
) -> None:
    facts = TensorRTBackend().facts(FP16)
    assert (facts["library"], facts["portable"], facts["label"]) == ("tensorrt_rtx", True, "rtx")


# Building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_build_leaves_a_plan_and_a_record_of_its_needs(
    tensorrt: ModuleType, tmp_path: Path, name: Any
) -> None:
    plan, record = build(tmp_path, TOYS[name], graphs.toy(tmp_path, TOYS[name]))
    known = PlanRecord.read(record)
    assert record == record_path(plan)
    assert known.scratch_bytes is not None and known.weight_bytes is not None
    assert sum(known.layers.values()) > 0


def test_tensorrt_for_rtx_builds_by_the_same_path(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    component = TOYS["vae_decoder"]
    _, record = build(tmp_path, component, graphs.toy(tmp_path, component))
    assert PlanRecord.read(record).library == "tensorrt_rtx"


def test_progress_grows_from_0_to_1(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = TOYS["vae_encoder"]
    told: list[tuple[str, float]] = []
    TensorRTBackend().build(
        sets.source_of(component, graphs.toy(tmp_path, component)),
        tmp_path,
        FP16,
        lambda phase, share: told.append((phase, share)),
    )
    for phase in ("compiling", "storing"):
        shares = [share for name, share in told if name == phase]
        assert shares == sorted(shares) and shares[-1] == 1.0
        assert all(0.0 <= share <= 1.0 for share in shares)


def test_ctrl_c_stops_the_builder_and_leaves_no_plan(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = TOYS["unet"]

    def press(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source = sets.source_of(component, graphs.toy(tmp_path, component))
        TensorRTBackend().build(source, tmp_path, FP16, press)
    assert not any(thread.name == "tensorrt-builder" for thread in threading.enumerate())
    assert not list(tmp_path.glob("*.plan"))


def test_a_cancelled_compilation_ends_before_it_is_done(tensorrt: ModuleType, tmp_path: Path) -> None:
    from v2v.engine.tensorrt import builder

    component = TOYS["unet"]
    state = builder.BuildState()
    state.cancelled.set()
    library = load_library()
    with library.capture() as messages, pytest.raises(BuildError, match="unet was cancelled"):
        builder.compile_plan(
            library,
            component,
            graphs.toy(tmp_path, component),
            limits(None, TensorRTOptions()),
            "same_gpu",
            tmp_path / "cache",
            state,
            messages,
        )
    assert (tmp_path / "cache").exists()  # what was timed until then need not be timed again


def test_what_the_compiler_warns_of_goes_to_the_log(
    tensorrt: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    library = load_library()
    library.log.log(tensorrt.ILogger.WARNING, "a kernel\nis missing")
    library.log.log(tensorrt.ILogger.INFO, "all is well")
    assert caplog.messages == ["a kernel is missing"]


def test_the_timing_cache_lies_beside_the_sets_and_survives_damage(
    tensorrt: ModuleType, tmp_path: Path
) -> None:
    component = TOYS["vae_encoder"]
    graph = graphs.toy(tmp_path, component)
    build(tmp_path, component, graph)
    (cache,) = timing_cache_folder().glob("*.timing")
    first = cache.read_bytes()
    assert first
    cache.write_bytes(b"no cache at all")
    (tmp_path / "again").mkdir()
    build(tmp_path / "again", component, graph)
    assert cache.read_bytes() == first


# What a card gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "workspace"), [(16, 12), (24, 20), (80, 76)])
def test_limits_leave_room_for_the_weights(gib: int, workspace: int) -> None:
    limit = limits(gib * GIB, TensorRTOptions())
    assert limit.workspace == limit.tactic_memory == workspace * GIB
    assert limit.optimization_level == 3
    assert limit.tactics is None


def test_options_override_the_defaults() -> None:
    given = {"tactics": "10", "tactic_memory": "1.5", "workspace": "1", "optimization_level": "0"}
    limit = limits(80 * GIB, TensorRTOptions.read(given))
    assert (limit.workspace, limit.tactic_memory) == (GIB, 1.5 * GIB)
    assert (limit.tactics, limit.optimization_level) == (10, 0)


@pytest.mark.parametrize("text", ["none", "-1", "0", "1.5", "nan"])
def test_an_option_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match=f"tactics={text} must be a whole number above 0"):
        TensorRTOptions.read({"tactics": text})


def test_an_unknown_option_is_named(tensorrt: ModuleType) -> None:
    with pytest.raises(BuildError, match="no option 'tactic'; it has library, portable, tactics"):
        TensorRTBackend().facts(replace(FP16, extra={"tactic": "1"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(FP16, extra={"tactics": "few"}), "tactics=few must be a whole number"),
        (replace(FP16, extra={"portable": "all"}), "portable=all is unknown; choose from same_gpu"),
        (replace(FP16, extra={"library": "tensorrt_9"}), "library=tensorrt_9: no module named"),
        (replace(FP16, device="cpu"), "for --device cuda, not cpu"),
        (replace(FP16, extra={"weight_streaming": "1"}), "weight_streaming=1 must be yes or no"),
        (replace(FP16, extra={"profiling": "all"}), "profiling=all must be detailed or names"),
        (replace(FP16, precision="fp32"), "with --precision fp16, not fp32"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_built(
    tensorrt: ModuleType, options: BuildOptions, said: str
) -> None:
    with pytest.raises((BuildError, EngineError), match=said):
        TensorRTBackend().facts(options)


# Bad graphs -----------------------------------------------------------------------------------------------------


def attention_component(heads: int, tokens: int, head_size: int, dtype: str) -> Component:
    """Attention as a component of its own."""
    shape = (1, heads, tokens, head_size)
    inputs = tuple(Tensor(name, dtype, shape) for name in "qkv")
    return Component("vae_decoder", inputs, (Tensor("out", dtype, shape),))


def attention(component: Component, folder: Path) -> Path:
    """The graph of an :func:`attention_component`, after an addition whose weights tell the place."""
    query = component.inputs[0]
    shift = graphs.array("decoder.mid.attn_1.q.bias", query.shape[-1], dtype=query.dtype)
    nodes = [
        helper.make_node("Add", ["q", shift.name], ["shifted"], name="node_7"),
        helper.make_node("Attention", ["shifted", "k", "v"], ["out"], name="node_8"),
    ]
    return graphs.save(folder, component, nodes, [shift])


def scores_bytes(component: Component) -> int:
    """Size of the matrix of scores of an :func:`attention_component`, in its type."""
    _, heads, tokens, _ = component.inputs[0].shape
    return heads * tokens * tokens * np.dtype(component.inputs[0].dtype).itemsize


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize(("heads", "head_size", "dtype"), [(1, 512, "float16"), (4, 64, "float32")])
def test_small_attention_without_a_kernel_is_computed_step_by_step(
    request: pytest.FixtureRequest, tmp_path: Path, library: str, heads: int, head_size: int, dtype: str
) -> None:
    request.getfixturevalue(library)
    component = attention_component(heads, 1024, head_size, dtype)
    _, record = build(tmp_path, component, attention(component, tmp_path))
    assert (PlanRecord.read(record).scratch_bytes or 0) >= scores_bytes(component)


def test_attention_with_a_kernel_stays_fused(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = attention_component(4, 4096, 64, "float16")
    _, record = build(tmp_path, component, attention(component, tmp_path))
    assert (PlanRecord.read(record).scratch_bytes or 0) < scores_bytes(component)


def test_large_attention_without_a_kernel_is_named_with_what_to_do(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    good, bad = (1, 4, 16384, 64), (1, 1, 16448, 512)
    component = Component(
        "unet",
        (Tensor("a", "float16", good), Tensor("b", "float16", bad)),
        (Tensor("x", "float16", good), Tensor("y", "float16", bad)),
    )
    shift = graphs.array("decoder.mid.attn_1.q.bias", 512)
    nodes = [
        helper.make_node("Attention", ["a", "a", "a"], ["x"], name="fine"),
        helper.make_node("Add", ["b", shift.name], ["shifted"], name="node_7"),
        helper.make_node("Attention", ["shifted", "b", "b"], ["y"], name="too_wide"),
    ]
    with pytest.raises(BuildError) as caught:
        build(tmp_path, component, graphs.save(tmp_path, component, nodes, [shift]))
    said = str(caught.value)
    assert "cannot compile unet" in said
    assert "too_wide (after decoder.mid.attn_1.q) HALF [1, 1, 16448, 512]" in said
    assert "a smaller --size or fewer --frames" in said
    assert "fine" not in said and "\n" not in said


def test_an_unknown_operator_is_named(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = TOYS["unet"]
    node = helper.make_node("Wobble", ["latents"], ["velocity"], name="wobbler", domain="own")
    graph = graphs.save(tmp_path, component, [node], domains=["own"])
    with pytest.raises(BuildError, match=r"cannot read the graph of unet .*node 'wobbler' \(Wobble\)"):
        build(tmp_path, component, graph)


def test_mixed_types_are_named_with_the_node(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = Component(
        "unet",
        (Tensor("a", "float16", (4, 4)), Tensor("b", "float32", (4, 4))),
        (Tensor("c", "float16", (4, 4)),),
    )
    graph = graphs.save(tmp_path, component, [helper.make_node("Add", ["a", "b"], ["c"], name="adder")])
    with pytest.raises(BuildError, match=r"'adder' \(Add\): .*Half and Float") as caught:
        build(tmp_path, component, graph)
    assert ".cpp" not in str(caught.value)


def test_a_truncated_graph_is_told(tensorrt: ModuleType, tmp_path: Path) -> None:
    component = TOYS["vae_encoder"]
    graph = graphs.toy(tmp_path, component)
    graph.write_bytes(graph.read_bytes()[:-40])
    with pytest.raises(BuildError, match=r"cannot read the graph of vae_encoder .*Failed to parse"):
        build(tmp_path, component, graph)


def test_a_missing_graph_is_told(tensorrt: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no graph for unet at .*gone\.onnx"):
        build(tmp_path, TOYS["unet"], tmp_path / "gone.onnx")


def test_a_graph_of_another_component_is_refused(tensorrt: ModuleType, tmp_path: Path) -> None:
    graph = graphs.toy(tmp_path, TOYS["vae_encoder"])
    with pytest.raises(BuildError, match=r"graph of vae_decoder lacks the input .*latents.*its inputs are"):
        build(tmp_path, TOYS["vae_decoder"], graph)


NODE = "{ForeignNode[node_conv2d_3...node_add_7]}"


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        (
            f"Error Code 10: Internal Error (Could not find any implementation for node {NODE}.)",
            r"no implementation for \{ForeignNode\[node_conv2d_3\.\.\.node_add_7\]\}; try .*--workspace",
        ),
        (
            f"Error Code 10: Could not find any implementation for node {NODE} due to insufficient workspace.",
            "node_conv2d_3.* needs more scratch memory than --workspace allows",
        ),
        ("Error Code 2: OutOfMemory (Requested size was 8585216 bytes.)", "the GPU ran out of memory"),
        (
            "Error Code 1: Cuda Driver (CUDA_ERROR_NO_DEVICE)",
            "nvidia-smi that the driver runs and is r580 or later",
        ),
        ("Error Code 4: something\nnew", "Error Code 4: something new; try --backend onnxruntime"),
    ],
)
def test_what_a_gpu_builder_logs_becomes_one_line_of_advice(tmp_path: Path, logged: str, said: str) -> None:
    library = Library("tensorrt", "10.14.1.48", None, None)
    messages = [Message(3, "fine so far"), Message(1, logged)]
    explained = explain(library, TOYS["unet"], tmp_path / "none.onnx", messages)
    assert explained.startswith("TensorRT 10.14.1.48 cannot compile unet: ")
    assert "\n" not in explained
    assert re.search(said, explained), explained


# Where engines load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("portable", "built_on", "here", "said"),
    [
        (None, RTX_4090, RTX_4090, None),
        (None, RTX_4090, RTX_4080, "built on NVIDIA GeForce RTX 4090, here is NVIDIA GeForce RTX 4080"),
        ("same_compute_capability", RTX_4090, RTX_4080, None),
        ("same_compute_capability", RTX_4090, A100, "for compute capability 8.9, here is .*A100.* 8.0"),
        ("ampere_plus", RTX_4090, H100, None),
        ("ampere_plus", RTX_4090, T4, "for compute capability 8.0 and later, here is Tesla T4"),
    ],
)
def test_an_engine_fits_the_gpus_it_was_built_for(
    tensorrt: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    portable: str | None,
    built_on: Gpu,
    here: Gpu,
    said: str | None,
) -> None:
    made = TensorRTBackend()
    use_gpu(monkeypatch, built_on)
    extra = {} if portable is None else {"portable": portable}
    facts = json.loads(json.dumps(made.facts(replace(FP16, extra=extra))))
    assert facts["portable"] == (portable is not None)
    use_gpu(monkeypatch, here)
    fits = made.fits(facts, "cuda")
    if said is None:
        assert fits.fits
    else:
        assert not fits.fits and re.search(said, fits.reason), fits.reason


@pytest.mark.parametrize(
    ("here", "expected"), [(RTX_4090, True), (RTX_5090, True), (T4, True), (H100, False)]
)
def test_tensorrt_for_rtx_fits_rtx_gpus_wherever_it_was_built(
    tensorrt_rtx: ModuleType, monkeypatch: pytest.MonkeyPatch, here: Gpu, expected: bool
) -> None:
    made = TensorRTBackend()
    facts = made.facts(FP16)
    assert facts["gpu"] is None
    use_gpu(monkeypatch, here)
    fits = made.fits(facts, "cuda")
    assert fits.fits is expected
    assert (
        expected or "compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, here is NVIDIA H100" in fits.reason
    )


@pytest.mark.parametrize(("here", "devices"), [(RTX_5090, ("cuda",)), (H100, ())])
def test_tensorrt_for_rtx_is_not_offered_on_a_gpu_that_it_does_not_compile_for(
    tensorrt_rtx: ModuleType, monkeypatch: pytest.MonkeyPatch, here: Gpu, devices: tuple[str, ...]
) -> None:
    use_gpu(monkeypatch, here)
    assert TensorRTBackend().devices == devices


def test_another_version_does_not_fit(tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, RTX_4090)
    made = TensorRTBackend()
    facts = {**made.facts(FP16), "version": "10.14.1.48"}
    assert made.fits(facts, "cuda").reason == f"it was built by tensorrt 10.14.1.48, here is {made.version}"


def test_an_engine_of_the_other_library_does_not_fit(
    tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "tensorrt_rtx", "tensorrt_rtx_bindings")
    made = TensorRTBackend()
    facts = {**made.facts(FP16), "library": "tensorrt_rtx"}
    assert "it needs tensorrt_rtx" in made.fits(facts, "cuda").reason


def test_a_manifest_cannot_make_us_import_anything_else(tensorrt: ModuleType) -> None:
    made = TensorRTBackend()
    sys.modules.pop("this", None)
    assert not made.fits({**made.facts(FP16), "library": "this"}, "cuda").fits
    assert "this" not in sys.modules


def test_an_old_driver_is_told_before_minutes_are_spent(
    tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TensorRTBackend()
    facts = made.facts(FP16)
    use_gpu(monkeypatch, replace(RTX_4090, driver="12.8"))
    said = (
        r"driver of NVIDIA GeForce RTX 4090 runs CUDA 12\.8 at most, .* update the driver to r580 or later, "
        "or install v2v's extras for CUDA 12"
    )
    with pytest.raises(BuildError, match=said):
        made.facts(FP16)
    fits = made.fits(facts, "cuda")
    assert not fits.fits and not fits.rebuild and re.search(said, fits.reason)


def test_with_packages_for_cuda_12_an_older_driver_does_and_sets_say_so(
    tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, RTX_4090)
    made = TensorRTBackend()
    of_13 = made.facts(FP16)
    assert made.fits(of_13, "cuda").fits
    monkeypatch.setattr(backend_module, "cuda_version", lambda: 12)
    assert made.fits(of_13, "cuda").reason == "it was built for CUDA 13, the packages here are for CUDA 12"
    use_gpu(monkeypatch, replace(RTX_4090, driver="12.2"))
    facts = made.facts(FP16)
    assert facts == {**of_13, "driver": "12.2", "cuda": 12} and made.fits(facts, "cuda").fits
    use_gpu(monkeypatch, replace(RTX_4090, driver="11.8"))
    with pytest.raises(BuildError, match=r"need CUDA 12; update the driver to r525 or later$"):
        made.facts(FP16)


def test_without_a_gpu_the_reason_is_that(tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cuda_devices", lambda: 0)
    made = TensorRTBackend()
    assert made.devices == ()
    assert "no NVIDIA GPU" in made.fits(made.facts(FP16), "cuda").reason
    assert "not on 'cpu'" in made.fits(made.facts(FP16), "cpu").reason


# An engine set of real plans -----------------------------------------------------------------------------------


@pytest.fixture
def engine_set(tensorrt: ModuleType) -> EngineSet:
    """A set with a real plan for each component."""
    return sets.build(backend="tensorrt", exporter=sets.ONNX, options=FP16).engine_set


def test_the_manifest_and_the_name_tell_version_gpu_and_portability(engine_set: EngineSet) -> None:
    facts = engine_set.manifest.recipe.backend.facts
    assert {"library", "version", "gpu", "compute_capability", "driver", "portable"} <= facts.keys()
    assert f"tensorrt-{facts['version']}-no-gpu" in engine_set.name
    assert engine_set.path.parent == engines_root()
    for name in COMPONENTS:
        stored = [file.name for file in engine_set.manifest.components[name].files]
        assert stored == [f"{name}/{name}.plan", f"{name}/{name}.json"]


def test_a_set_is_moved_and_judged_without_a_gpu(
    engine_set: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "cuda_devices", lambda: 0)
    moved = engine_set.path.rename(tmp_path / "moved")
    fits = EngineSet.open(moved).runs_on("cuda")
    assert not fits.fits and "no NVIDIA GPU" in fits.reason


def test_a_machine_without_a_gpu_is_not_told_to_rebuild(
    engine_set: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "cuda_devices", lambda: 0)
    with pytest.raises(EngineError, match="no NVIDIA GPU here, or its driver is not installed") as caught:
        engine_set.load("unet", "cuda")
    assert "rebuild" not in str(caught.value)


def test_a_driver_that_does_not_do_is_told_instead_of_rebuilding(
    engine_set: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's runtime itself refuses the plan: here is no driver."""
    use_gpu(monkeypatch, RTX_4090)
    monkeypatch.setattr(TensorRTBackend, "fits", lambda self, facts, device: Compatibility(True))
    monkeypatch.setattr("cuda.core.Device", lambda ordinal: SimpleNamespace(set_current=lambda: None))
    with pytest.raises(
        MachineError, match=r"Cuda Runtime .*check with nvidia-smi that the driver runs"
    ) as caught:
        engine_set.load("unet", "cuda")
    assert "rebuild" not in str(caught.value)


def test_a_truncated_plan_is_told_with_the_rebuild_command(engine_set: EngineSet) -> None:
    plan = engine_set.path / "unet" / "unet.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(
        EngineError, match=r"unet\.plan has .* rebuild .*v2v-build-engines stand-in .*--force"
    ):
        engine_set.load("unet", "cuda")


# Running --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tensorrt: ModuleType, tmp_path: Path) -> Path:
    """A real plan of the toy UNet."""
    component = TOYS["unet"]
    return build(tmp_path, component, graphs.toy(tmp_path, component))[0]


def test_a_plan_of_another_version_is_refused_before_it_is_read(plan: Path) -> None:
    record = json.loads(record_path(plan).read_text())
    record_path(plan).write_text(json.dumps({**record, "version": "10.14.1.48"}))
    with pytest.raises(EngineError, match=r"built by tensorrt 10\.14\.1\.48, here is tensorrt 11"):
        runner.deserialize(load_library(), TOYS["unet"], plan)


def test_a_plan_without_its_record_is_refused(plan: Path) -> None:
    record_path(plan).unlink()
    with pytest.raises(EngineError, match=r"unet\.json cannot be read"):
        runner.deserialize(load_library(), TOYS["unet"], plan)


def test_what_tensorrt_says_of_a_bad_plan_is_passed_on_in_one_line(plan: Path) -> None:
    """On a machine without a GPU every plan is refused, by the real runtime."""
    plan.write_bytes(bytes(plan.stat().st_size))
    with pytest.raises(EngineError, match=r"unet .*is refused by TensorRT 11") as caught:
        runner.deserialize(load_library(), TOYS["unet"], plan)
    assert "\n" not in str(caught.value)


def test_tensorrt_for_rtx_says_why_it_refuses_a_plan(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    component = TOYS["unet"]
    plan, _ = build(tmp_path, component, graphs.toy(tmp_path, component))
    plan.write_bytes(bytes(plan.stat().st_size))
    with pytest.raises(EngineError, match=r"is refused by TensorRT for RTX 1\.7\.1\.116: malformed engine"):
        runner.deserialize(load_library(), component, plan)


class FakeContext:
    """Records what the runner asks of an execution context."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.streams: list[int] = []
        self.capturable = True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.memory = (pointer, size)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        return True


class FakeEngine:
    """An engine with a component's tensors, as TensorRT would describe them."""

    def __init__(self, component: Component, scratch: int) -> None:
        self.component = component
        self.device_memory_size_v2 = scratch
        self.tensors = [*component.inputs, *component.outputs]
        self.contexts: list[FakeContext] = []
        self.runtime_config: Any = None
        self.streamable_weights_size = 0
        self.weight_streaming_budget_v2 = 0

    def get_weight_streaming_automatic_budget(self) -> int:
        assert not self.contexts  # no context may be there when it changes
        return self.streamable_weights_size // 3

    num_io_tensors = property(lambda self: len(self.tensors))
    context = property(lambda self: self.contexts[0])  # the one that is made when the engine is loaded

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def _named(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if self._named(name) in self.component.inputs else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"float16": "HALF", "float32": "FLOAT", "int64": "INT64"}
        return SimpleNamespace(name=names[self._named(name).dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._named(name).shape

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == "user managed" or strategy is self.runtime_config
        self.contexts.append(FakeContext())
        return self.contexts[-1]

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(known=b"", deserialize=lambda data: setattr(cache, "known", data))
        cache.serialize = lambda: cache.known + b"+jit"
        self.runtime_config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda given: None,
        )
        return self.runtime_config


class FakeMemory:
    """Device memory: what is allocated now."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self.next = 4096
        self.waits = 0
        self.capturing = 0  # CU_STREAM_CAPTURE_STATUS_NONE

    def synchronize(self) -> tuple[int]:
        self.waits += 1
        return (0,)

    def is_capturing(self, stream: int) -> tuple[int, int]:
        return 0, self.capturing

    def allocate(self, size: int) -> tuple[int, int]:
        self.blocks[self.next] = size
        self.next += size
        return 0, self.next - size

    def free(self, pointer: int) -> tuple[int]:
        del self.blocks[int(pointer)]
        return (0,)


class FakeLog:
    messages: list[Message]

    def __init__(self) -> None:
        self.messages = []


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """Stands in for the CUDA driver's allocator."""
    driver = pytest.importorskip("cuda.bindings.driver")
    fake = FakeMemory()
    monkeypatch.setattr(driver, "cuMemAlloc", fake.allocate)
    monkeypatch.setattr(driver, "cuMemFree", fake.free)
    monkeypatch.setattr(driver, "cuCtxSynchronize", fake.synchronize)
    monkeypatch.setattr(driver, "cuStreamIsCapturing", fake.is_capturing)
    return fake


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes :class:`TensorRTEngine` objects over fake engines whose records lie in one set."""
    api = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        IProfiler=object,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )

    def make(fake: FakeEngine, library: str = "tensorrt", jit: Path | None = None) -> TensorRTEngine:
        monkeypatch.setattr(runner, "deserialize", lambda *args: fake)
        made = Library(library, "11.0", api, make.log)  # type: ignore[attr-defined]
        name = fake.component.name
        return TensorRTEngine(fake.component, tmp_path / name / f"{name}.plan", made, RTX_4090, jit)

    def record(name: str, scratch: int) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.plan").touch()
        PlanRecord("tensorrt", "11.0", scratch, 0, {}).write(tmp_path / name / f"{name}.json")

    make.record = record  # type: ignore[attr-defined]
    make.log = FakeLog()  # type: ignore[attr-defined]
    yield make


def arrays(tensors: tuple[Tensor, ...], start: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Device arrays at made-up addresses."""
    return {
        tensor.name: SimpleNamespace(
            shape=shapes.get(tensor.name, tensor.shape), dtype=np.dtype(tensor.dtype), pointer=start + 256 * i
        )
        for i, tensor in enumerate(tensors)
    }


def test_a_run_binds_the_callers_buffers_and_queues_on_its_stream(engines: Any, memory: FakeMemory) -> None:
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    engine = engines(fake)
    engine.run(arrays(component.inputs, 256), arrays(component.outputs, 8192), stream=7)
    assert fake.context.addresses == {"latents": 256, "timestep": 512, "context": 768, "velocity": 8192}
    assert fake.context.streams == [7]


def test_what_is_captured_keeps_its_own_buffers(engines: Any, memory: FakeMemory) -> None:
    """A library may look up its parameters in the context when a graph is replayed, long after it was captured."""
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    engine = engines(fake)
    inputs = arrays(component.inputs, 256)
    for output in (8192, 16384):  # two prompts of a guided step; each runs before it is captured
        for _ in ("run", "captured"):
            engine.run(inputs, arrays(component.outputs, output), stream=7)
    replayed = [context.addresses["velocity"] for context in fake.contexts for _ in context.streams[1:]]
    assert replayed == [8192, 16384]
    assert {context.memory for context in fake.contexts} == {(4096, 1000)}  # one block of scratch for both


def test_of_too_many_contexts_the_one_goes_that_was_used_longest_ago(
    engines: Any, memory: FakeMemory
) -> None:
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    engine = engines(fake)

    def run(output: int) -> None:
        engine.run(arrays(component.inputs, 256), arrays(component.outputs, output * 4096))

    for output in (*range(64), 0, 64):
        run(output)
    assert memory.waits == 1  # runs that are queued may use what goes
    made = len(fake.contexts)
    run(0)
    assert len(fake.contexts) == made == 65
    run(1)
    assert len(fake.contexts) == 66


def test_the_engines_of_a_set_share_one_block_of_the_largest_need(engines: Any, memory: FakeMemory) -> None:
    needs = {"text_encoder": 10, "vae_encoder": 300, "unet": 6400, "vae_decoder": 400}
    for name, need in needs.items():
        engines.record(name, need)
    needs["unet"] += 64  # rounded up when loaded
    fakes = [FakeEngine(TOYS[name], need) for name, need in needs.items()]  # type: ignore[index]
    loaded = [engines(fake) for fake in fakes]
    ((pointer, size),) = memory.blocks.items()
    assert 6464 <= size < 1.05 * 6464
    assert {fake.context.memory for fake in fakes} == {(pointer, size)}
    for engine in loaded:
        engine.close()
        engine.close()  # harmless
    del loaded, engine
    assert memory.blocks == {}


def test_a_larger_engine_of_another_set_does_not_move_memory_in_use(engines: Any, memory: FakeMemory) -> None:
    first, second = FakeEngine(TOYS["unet"], 100), FakeEngine(TOYS["vae_decoder"], 200)
    kept = (engines(first), engines(second))
    assert first.context.memory is not None and first.context.memory[1] == 100
    assert second.context.memory is not None and second.context.memory[1] == 200
    assert sorted(memory.blocks.values()) == [100, 200]
    del kept


def test_too_little_memory_for_scratch_is_told_with_what_to_do(
    engines: Any, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import driver

    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (2, 0))
    with pytest.raises(MachineError, match=r"RTX 4090 has no 7\.0 GiB .*--memory low"):
        engines(FakeEngine(TOYS["unet"], 7 * GIB))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents": (1, 4, 5, 10, 8)}, r"'latents' of unet must be float16 .*, not float16 \[1, 4, 5"),
        ({"context": (1, 77, 1)}, "'context' of unet must be"),
    ],
)
def test_a_buffer_of_the_wrong_shape_is_refused(
    engines: Any, memory: FakeMemory, change: dict[str, tuple[int, ...]], said: str
) -> None:
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    with pytest.raises(EngineError, match=said):
        engines(fake).run(arrays(component.inputs, 0, **change), arrays(component.outputs, 0))
    assert fake.context.streams == []


def test_a_buffer_of_the_wrong_type_or_none_is_refused(engines: Any, memory: FakeMemory) -> None:
    component = TOYS["unet"]
    engine = engines(FakeEngine(component, 1000))
    given = arrays(component.inputs, 0)
    given["latents"].dtype = np.dtype("float32")
    with pytest.raises(EngineError, match=r"must be float16 .*, not float32"):
        engine.run(given, arrays(component.outputs, 0))
    with pytest.raises(EngineError, match="unet needs an array for 'velocity'"):
        engine.run(arrays(component.inputs, 0), {})


def test_a_failed_run_passes_on_what_tensorrt_logged(engines: Any, memory: FakeMemory) -> None:
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    engine = engines(fake)

    def fail(stream: int) -> bool:
        engines.log.messages.append(Message(1, "Error Code 1: out of memory"))
        return False

    fake.context.execute_async_v3 = fail  # type: ignore[method-assign]
    with pytest.raises(MachineError, match=r"unet failed: .*out of memory; run with --memory low"):
        engine.run(arrays(component.inputs, 0), arrays(component.outputs, 0))


def test_closing_waits_for_queued_runs_before_it_frees(engines: Any, memory: FakeMemory) -> None:
    engine = engines(FakeEngine(TOYS["unet"], 1000))
    engine.close()
    assert memory.waits == 1


def test_a_closed_engine_says_so(engines: Any, memory: FakeMemory) -> None:
    engine = engines(FakeEngine(TOYS["unet"], 1000))
    engine.close()
    with pytest.raises(EngineError, match="unet is closed"):
        engine.run({}, {})


def test_an_engine_of_another_component_is_refused_at_load(engines: Any, memory: FakeMemory) -> None:
    fake = FakeEngine(TOYS["vae_decoder"], 1000)
    fake.component = TOYS["unet"]
    with pytest.raises(EngineError, match="is not the unet expected"):
        engines(fake)
    assert memory.blocks == {}


def test_what_rtx_compiled_just_in_time_is_kept(engines: Any, memory: FakeMemory, tmp_path: Path) -> None:
    """It is written when the context has been made: a process may be killed before its engines are closed."""
    cache = tmp_path / "caches" / "unet.jit"
    for kept in (b"+jit", b"+jit+jit"):
        engine = engines(FakeEngine(TOYS["unet"], 1000), "tensorrt_rtx", cache)
        assert cache.read_bytes() == kept
        engine.close()
        assert cache.read_bytes() == kept
        assert [file.name for file in cache.parent.iterdir()] == ["unet.jit"]


@pytest.mark.parametrize(("capturing", "capturable"), [(0, False), (1, True), (1, False)])
def test_tensorrt_for_rtx_is_asked_before_a_run_is_captured(
    engines: Any, memory: FakeMemory, capturing: int, capturable: bool
) -> None:
    component = TOYS["unet"]
    fake = FakeEngine(component, 1000)
    engine = engines(fake, "tensorrt_rtx")
    fake.context.capturable, memory.capturing = capturable, capturing
    given = arrays(component.inputs, 0), arrays(component.outputs, 0)
    if capturing and not capturable:
        with pytest.raises(EngineError, match="does not let unet be captured in a CUDA graph"):
            engine.run(*given, stream=7)
    else:
        engine.run(*given, stream=7)
        assert fake.context.streams == [7]


def test_weights_are_streamed_within_what_tensorrt_finds_room_for(engines: Any, memory: FakeMemory) -> None:
    engines.record("unet", 1000)
    fake = FakeEngine(TOYS["unet"], 1000)
    fake.streamable_weights_size = 3 * GIB
    engines(fake)
    assert fake.weight_streaming_budget_v2 == GIB


@pytest.mark.parametrize("options", [{"weight_streaming": "yes"}, {"profiling": "detailed"}])
def test_streamed_and_detailed_plans_compile(
    tensorrt_rtx: ModuleType, tmp_path: Path, options: dict[str, str]
) -> None:
    component = TOYS["vae_encoder"]
    plan, record = build(tmp_path, component, graphs.toy(tmp_path, component), replace(FP16, extra=options))
    assert plan.stat().st_size > 0
    assert PlanRecord.read(record).layers


def test_the_line_for_trtexec_says_what_the_builder_is_told() -> None:
    given = {"workspace": "2", "tactics": "9", "optimization_level": "5", "weight_streaming": "yes"}
    limit = limits(None, TensorRTOptions.read(given | {"profiling": "detailed"}))
    line = trtexec(Path("unet.onnx"), Path("unet.plan"), limit, "ampere_plus")
    assert line == (
        "trtexec --onnx=unet.onnx --saveEngine=unet.plan --stronglyTyped --skipInference "
        "--builderOptimizationLevel=5 --memPoolSize=workspace:2048 --maxTactics=9 "
        "--hardwareCompatibilityLevel=ampere+ --allowWeightStreaming --profilingVerbosity=detailed"
    )
    plain = trtexec(Path("a b.onnx"), Path("p"), limits(None, TensorRTOptions()), "same_gpu")
    assert plain.endswith("--skipInference --builderOptimizationLevel=3")
    assert "'--onnx=a b.onnx'" in plain


def test_graphs_are_kept_with_the_lines_and_plans_made_of_them_are_taken(
    tensorrt: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether such a plan is the component shows when it is loaded, as with any other."""
    kept, own = tmp_path / "kept", tmp_path / "own"
    for number, name in enumerate(("vae_encoder", "unet", "unet")):  # twice: one line each
        folder = tmp_path / str(number)
        folder.mkdir()
        graph = graphs.toy(folder, TOYS[name])
        build(folder, TOYS[name], graph, replace(FP16, extra={"graphs": str(kept)}))
    lines = (kept / "trtexec.sh").read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["trtexec", f"--onnx={name}.onnx", f"--saveEngine={name}.plan"] for name in ("vae_encoder", "unet")
    ]
    assert "the same by TensorRT's own tool: trtexec --onnx=" in caplog.text
    own.mkdir()
    (own / "unet.plan").write_bytes(b"made by trtexec")
    taking = replace(FP16, extra={"plans": str(own)})
    (tmp_path / "set").mkdir()
    plan, record = build(tmp_path / "set", TOYS["unet"], kept / "unet.onnx", taking)
    assert plan.read_bytes() == b"made by trtexec"
    assert PlanRecord.read(record).version == tensorrt.__version__
    with pytest.raises(BuildError, match=r"vae_encoder\.plan cannot be read .*--option graphs=FOLDER writes"):
        build(tmp_path / "set", TOYS["vae_encoder"], kept / "vae_encoder.onnx", taking)


def test_tensorrt_for_rtx_has_no_trtexec(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="trtexec, the tool of TensorRT, not of TensorRT for RTX"):
        TensorRTBackend().facts(replace(FP16, extra={"plans": str(tmp_path)}))


def test_the_second_run_tells_the_times_of_layers(engines: Any, memory: FakeMemory) -> None:
    component = TOYS["unet"]
    engines.record("unet", 1000)
    fake = FakeEngine(component, 1000)
    engine = engines(fake)

    def create(strategy: Any) -> FakeContext:
        context = FakeContext()

        def execute(stream: int) -> bool:
            context.streams.append(stream)
            for layer, milliseconds in (("conv + silu", 2.0), ("attention", 3.0), ("conv + silu", 1.0)):
                context.profiler.report_layer_time(layer, milliseconds * len(context.streams))  # type: ignore[attr-defined]
            return True

        context.execute_async_v3 = execute  # type: ignore[method-assign]
        fake.contexts.append(context)
        return context

    fake.create_execution_context = create  # type: ignore[method-assign]
    seconds = engine.layer_seconds(arrays(component.inputs, 100), arrays(component.outputs, 200), 7)
    assert seconds == pytest.approx({"conv + silu": 0.006, "attention": 0.006})
    assert fake.contexts[-1].streams == [7, 7]
    assert set(fake.contexts[-1].addresses) == {t.name for t in (*component.inputs, *component.outputs)}
