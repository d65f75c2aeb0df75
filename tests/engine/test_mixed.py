"""Sets of one precision in which a component has another; what is known of the numbers inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import SMALL_WINDOW
from tests.stand_ins.sets import BYTES, ONNX, CopyBackend, build, install, source_of
from v2v.core.components import components, window_for
from v2v.core.configs import MODELS
from v2v.core.errors import BuildError, UsageError
from v2v.device import open_device
from v2v.engine import cli
from v2v.engine.backend import BuildOptions
from v2v.engine.options import BuildArguments
from v2v.engine.store import EngineSet
from v2v.engine.tensorrt.backend import TensorRTBackend
from v2v.engine.tensorrt.runner import PlanRecord
from v2v.engine.verify import verify_engine_set
from v2v.runtime.diffusion.pipeline import VideoToVideo

MIXED = BuildOptions("fp16", "cpu", mixed=(("vae_decoder", "fp32"),))


def options(*texts: str, precision: str = "fp16") -> BuildOptions:
    return BuildArguments(option=[*texts], precision=precision, device="cpu").build_options()


def test_a_component_is_named_like_an_option_of_the_backend() -> None:
    found = options("vae_decoder=fp32", "vae_encoder=fp32", "tactics=3")
    assert found.mixed == (("vae_decoder", "fp32"), ("vae_encoder", "fp32"))
    assert found.extra == {"tactics": "3"}
    assert options("vae_decoder=fp16").mixed == ()
    assert [found.of(name).precision for name in ("unet", "vae_decoder")] == ["fp16", "fp32"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet=fp32", "--option unet: only vae_encoder and vae_decoder may have a precision of their own"),
        ("text_encoder=fp32", "--option text_encoder: only"),
        ("vae_decoder=bf16", "--option vae_decoder must be one of fp16, fp32, not 'bf16'"),
    ],
)
def test_others_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options(text)


def test_a_mixed_set_is_built_named_found_verified_and_run(tmp_path: Path) -> None:
    plain = build(backend="onnxruntime", exporter=ONNX, options=replace(MIXED, mixed=())).engine_set
    mixed = build(backend="onnxruntime", exporter=ONNX, options=MIXED).engine_set
    assert mixed.path != plain.path
    assert "-fp16-vae-decoder-fp32-" in mixed.name
    assert "--precision fp16 --option vae_decoder=fp32" in mixed.rebuild_command
    assert mixed.runs_on("cpu").fits
    again = build(backend="onnxruntime", exporter=ONNX, options=MIXED)
    assert not again.fresh and again.engine_set == mixed
    types = {name: mixed.component(name).outputs[0].dtype for name in mixed.names}
    assert types == dict.fromkeys(("text_encoder", "vae_encoder", "unet"), "float16") | {
        "vae_decoder": "float32"
    }
    assert [each.error for each in verify_engine_set(mixed, "cpu")] == [None] * 4
    frames = [np.full((80, 64, 3), 20 * number, np.uint8) for number in range(4)]
    made = [list(VideoToVideo(each, open_device("cpu"))(frames)) for each in (plain, mixed)]
    assert np.abs(np.subtract(*made, dtype=np.int16)).max() <= 1


def test_the_backend_is_asked_for_each_component_in_its_own_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, BuildOptions] = {}

    class Noting(CopyBackend):
        def build(self, source: Any, folder: Path, options: BuildOptions, progress: Any) -> Any:
            asked[source.component.name] = options
            assert source.precision == options.precision
            return super().build(source, folder, options, progress)

    install(Noting(), monkeypatch)
    build(options=MIXED)
    assert {name: each.precision for name, each in asked.items()} == {
        "text_encoder": "fp16",
        "vae_encoder": "fp16",
        "unet": "fp16",
        "vae_decoder": "fp32",
    }


def test_tensorrt_compiles_a_decoder_in_fp32_and_no_set(tensorrt: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from v2v.export.graphs import export_component
    from v2v.export.weights import load_weights

    model = MODELS["small"]
    window = window_for(model, *SMALL_WINDOW)
    graph = export_component("vae_decoder", model, load_weights("random:0", model), window, "fp32", tmp_path)
    component = components(model, window, "fp32")["vae_decoder"]
    wide = BuildOptions("fp32", "cuda")
    source = source_of(component, graph.path)
    _, record = TensorRTBackend().build(source, tmp_path, wide, lambda *_: None).files
    layers = PlanRecord.read(record).layers
    assert layers["CONVOLUTION FLOAT"] > 5 and "CONVOLUTION HALF" not in layers
    with pytest.raises(BuildError, match="--option vae_decoder=fp32 gives the decoder alone more"):
        TensorRTBackend().facts(wide)


def test_a_build_tells_of_numbers_that_come_near_the_end_of_fp16(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(CopyBackend(), monkeypatch)

    def numbers(model: Any, weights: Any, window: Any, progress: Any) -> Any:
        names = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
        return {name: {"conv1 conv2d": 16000.0, "conv2 conv2d": 17000.0} for name in names}

    exporter = replace(BYTES, largest_numbers=numbers)
    made = build(options=MIXED, exporter=exporter, weights="trained:1").engine_set
    reopened = EngineSet.open(made.path).manifest.components
    assert reopened["unet"].largest == {"conv1 conv2d": 16000.0, "conv2 conv2d": 17000.0}
    assert reopened["vae_decoder"].largest == {}  # it is in FP32
    cli.show_built(made)
    told = " ".join(capsys.readouterr().err.split())
    assert "vae_encoder: 'conv2 conv2d' comes to 17000 on a picture and a prompt, FP16 ends at 65504" in told
    assert "--option vae_encoder=fp32 gives it more" in told
    assert "vae_decoder" not in told
    random = build(options=MIXED, exporter=exporter).engine_set
    assert not any(record.largest for record in random.manifest.components.values())
