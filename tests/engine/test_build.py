"""What a build does where the user says nothing, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.stand_ins.sets import BYTES, CopyBackend, build, install
from v2v.core.components import COMPONENTS, component_names, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError, EngineError
from v2v.engine import choose
from v2v.engine.backend import BACKENDS, BuildOptions
from v2v.engine.build import Exporter, build_engine_set
from v2v.engine.choose import default_backend, default_device, default_precision, default_weights
from v2v.engine.store import EngineSet, NoEngineSet, Wanted, find
from v2v.export import packaged


def test_without_a_gpu_it_is_onnxruntime_in_fp32_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "cuda_devices", lambda: 0)
    assert default_device() == "cpu"
    assert default_backend("cpu") == "onnxruntime"
    assert default_precision("cpu") == "fp32"


def test_with_a_gpu_it_is_the_first_backend_that_runs_there_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "absent", "no_such_module:Backend")
    install(CopyBackend("on-cpu"), monkeypatch)
    monkeypatch.setattr(choose, "BACKENDS", ["absent", "on-cpu"])
    monkeypatch.setattr(choose, "cuda_devices", lambda: 1)
    assert default_device() == "cpu"
    with pytest.raises(EngineError, match=r"absent.*is not installed here.*on-cpu does not run on cuda here"):
        default_backend("cuda")
    install(CopyBackend("first", devices=("cuda", "cpu")), monkeypatch)
    install(CopyBackend("second", devices=("cuda",)), monkeypatch)
    monkeypatch.setattr(choose, "BACKENDS", ["absent", "on-cpu", "first", "second"])
    assert default_device() == "cuda"
    assert default_backend("cuda") == "first"
    assert default_precision("cuda") == "fp16"


def test_the_window_is_the_models() -> None:
    small = MODELS["small"]
    window = window_for(small)
    assert (window.frames, window.height, window.width) == small.defaults.window
    assert str(window_for(MODELS["ms-vid2vid-xl"])) == "1280x720x32"
    assert str(window_for(MODELS["ms-vid2vid-xl"], (640, 336), 8)) == "640x336x8"


@pytest.mark.parametrize(
    ("size", "frames", "message"),
    [
        ((1280, 700), 32, r"height must be a multiple of 64 plus 16, not 700; nearest: 656 or 720"),
        ((1270, 720), 32, r"width must be a multiple of 64 plus 0, not 1270; nearest: 1216 or 1280"),
        ((1280, 720), 0, r"at least one frame, not 0"),
    ],
)
def test_a_size_that_the_unet_cannot_take_is_refused(
    size: tuple[int, int], frames: int, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        window_for(MODELS["ms-vid2vid-xl"], size, frames)


def test_weights_that_do_not_come_along_must_be_named() -> None:
    with pytest.raises(BuildError, match="do not come with v2v: name them with --weights"):
        default_weights(MODELS["ms-vid2vid-xl"])


def test_weights_in_the_package_come_before_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    assert default_weights(MODELS["small"]) == "random:0"
    (tmp_path / "small.safetensors").touch()
    assert default_weights(MODELS["small"]) == str(tmp_path / "small.safetensors")


def test_the_rebuild_command_names_local_weights_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CopyBackend(), monkeypatch)
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    built = build(weights="weights").engine_set
    assert f"--weights {tmp_path / 'weights'} " in built.rebuild_command


def test_each_component_is_exported_compiled_and_hashed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    install(CopyBackend(), monkeypatch)
    seen: list[tuple[str, str]] = []
    build(progress=lambda component, phase, share: seen.append((component, phase)))
    expected = [
        (name, phase) for name in COMPONENTS for phase in ("exporting", "compiling", "hashing", "done")
    ]
    assert [step for step in seen if step[0] != "weights"] == expected


def test_a_set_that_can_reuse_features_holds_the_unet_in_two_components(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(CopyBackend(), monkeypatch)
    plain = build().engine_set
    reusing = build(options=BuildOptions(reuse=True)).engine_set
    assert list(plain.manifest.components) == list(COMPONENTS)
    assert list(reusing.manifest.components) == list(component_names(plain.model, reuse=True))
    assert EngineSet.open(reusing.path) == reusing
    assert reusing.path != plain.path and "-reuse-" in reusing.name
    assert reusing.runs_on("cpu").fits
    full, outer = reusing.component("unet_full"), reusing.component("unet_outer")
    assert full.outputs[1] == outer.inputs[3]
    assert full.outputs[1].shape == (1, 4, 10, 8, 32)
    assert "--reuse" in reusing.rebuild_command and "--reuse" not in plain.rebuild_command


def test_a_plain_set_is_found_first_unless_reuse_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    install(CopyBackend(), monkeypatch)
    plain = build().engine_set
    with pytest.raises(NoEngineSet, match=r"built without --reuse.*v2v-build-engines stand-in --reuse"):
        find(Wanted(model="stand-in", reuse=True))
    reusing = build(options=BuildOptions(reuse=True)).engine_set
    assert find(Wanted(model="stand-in")) == plain
    assert find(Wanted(model="stand-in", reuse=True)) == reusing


def test_packaged_graphs_are_not_those_of_a_set_that_can_reuse_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the plain UNet: such a set is exported by PyTorch."""
    asked: list[str] = []

    def export(name: str, *rest: object) -> None:
        asked.append(name)
        raise BuildError("stop here")

    exporter = Exporter(packaged.load_weights, export, lambda weights, folder: None)
    monkeypatch.setattr(Exporter, "default", lambda: exporter)
    model = MODELS["small"]
    with pytest.raises(BuildError, match="stop here"):
        build_engine_set(
            model,
            weights=default_weights(model),
            window=window_for(model),
            backend_name="onnxruntime",
            options=BuildOptions(reuse=True),
            output=tmp_path / "set",
        )
    assert asked == ["text_encoder"]


def test_a_graph_that_is_refused_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(CopyBackend(), monkeypatch)

    def refuse(*arguments: object) -> None:
        raise BuildError("unet: the graph's error is 0.5, allowed is 1e-4")

    with pytest.raises(BuildError, match="allowed is 1e-4"):
        build(tmp_path / "set", exporter=replace(BYTES, export_component=refuse))
    assert {path.name for path in tmp_path.iterdir()} == {".set.lock"}
