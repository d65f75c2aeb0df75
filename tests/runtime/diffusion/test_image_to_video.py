"""The first stage as a whole, through exported graphs: the reference's numbers, and a person's defaults."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")

from safetensors.torch import load_file, save_file

from tests.export import golden
from v2v.core.components import component_names, window_for
from v2v.core.configs import Defaults, ModelConfig
from v2v.core.errors import V2VError
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set
from v2v.engine.store import EngineSet
from v2v.export.models.image_encoder import CONTEXT_LAYERS
from v2v.export.models.unet import told_frame_rate
from v2v.runtime.diffusion.image_to_video import Animation, AnimationPlan, ImageToVideo
from v2v.runtime.diffusion.pipeline import VideoToVideo

pytestmark = pytest.mark.slow  # the golden UNet takes a minute to export

MODEL = ModelConfig(
    "golden-image2video",
    unet=golden.FIRST_STAGE_UNET,
    autoencoder=golden.AUTOENCODER,
    text_encoder=None,
    image_encoder=golden.IMAGE_ENCODER,
    defaults=Defaults(steps=2, solver="ddim", guidance=3.0, window=(3, 64, 128)),
    schedule="scaled linear",
    offset_noise=0.1,
    fps=8,
)
WHOLE = load_file(golden.GOLDEN / "image-to-video" / "i2v_whole_small.safetensors")
PICTURE = np.random.default_rng(5).integers(0, 256, (90, 160, 3), np.uint8)


@pytest.fixture(scope="module")
def engine_set(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Made as any other, of the golden weights."""
    folder = tmp_path_factory.mktemp("golden")
    told = told_frame_rate(golden.weights("image-to-video/i2v_unet_small"), int(WHOLE["fps"]))
    layers = {k: v for k, v in told.items() if k.startswith(CONTEXT_LAYERS)}
    networks = {
        "unet": {k: v for k, v in told.items() if k not in layers},
        "autoencoder": golden.weights("vae_small", np.float32),
        "image_encoder": golden.weights("image-to-video/clip_visual_small") | layers,
    }
    save_file(
        {f"{network}.{name}": value for network, state in networks.items() for name, value in state.items()},
        folder / "golden.safetensors",
    )
    return build_engine_set(
        MODEL,
        weights=str(folder / "golden.safetensors"),
        window=window_for(MODEL),
        backend_name="onnxruntime",
        options=BuildOptions(),
        output=folder / "set",
    ).engine_set


@pytest.fixture(scope="module")
def pipeline(engine_set: EngineSet) -> ImageToVideo:
    return ImageToVideo.load(engine_set)


def test_the_whole_run_gives_the_references_numbers(pipeline: ImageToVideo) -> None:
    asked = Animation(steps=int(WHOLE["steps"]), guidance=float(WHOLE["guidance"]), parity=True)
    made = AnimationPlan.of(asked, MODEL)
    contexts = pipeline.encode(WHOLE["image"].numpy())
    start = np.ascontiguousarray(np.moveaxis(WHOLE["start"].numpy()[0], 1, 0))
    latents = pipeline.denoise(contexts, start, made)
    expected = np.moveaxis(WHOLE["latents"].numpy()[0], 1, 0)
    assert golden.relative_error(latents, expected) < 1e-5
    frames = np.stack(list(pipeline.decode(np.ascontiguousarray(expected), made)))
    difference = np.abs(frames.astype(int) - WHOLE["frames"].numpy())
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 2e-4 * difference.size  # values on an edge


def test_start_is_noise_with_an_offset_for_each_channel_and_frame(pipeline: ImageToVideo) -> None:
    start = pipeline.start(AnimationPlan.of(Animation(seed=1, frames=400), MODEL))
    assert start.shape == (400, 4, 8, 16)
    assert start.var() == pytest.approx(1.01, rel=0.01)
    assert start.mean(axis=(2, 3)).std() == pytest.approx((0.1**2 + 1 / 128) ** 0.5, rel=0.05)
    shorter = pipeline.start(AnimationPlan.of(Animation(seed=1), MODEL))
    np.testing.assert_array_equal(start[:3], shorter)


def test_a_picture_guides_a_film_of_any_length(pipeline: ImageToVideo) -> None:
    one = list(pipeline(PICTURE, seed=1))
    assert [frame.shape for frame in one] == [(64, 128, 3)] * 3
    assert one[0].dtype == np.uint8
    np.testing.assert_array_equal(one, list(pipeline(PICTURE, seed=1)))
    for other in (
        pipeline(PICTURE, seed=2),
        pipeline(PICTURE[:, ::-1], seed=1),
        pipeline(PICTURE, parity=True, seed=1),
    ):
        assert (np.stack(list(other)) != one).any()
    assert len(list(pipeline(PICTURE, frames=2))) == 2
    assert len(list(pipeline(PICTURE, frames=5))) == 5


def test_progress_reaches_the_end(pipeline: ImageToVideo) -> None:
    told: list = []
    list(pipeline(PICTURE, progress=told.append))
    assert [now.stage for now in told if now.step == now.steps] == ["denoise", "decode"]
    assert told[-1].fraction == 1
    assert told[-1].frames_done == 3


def test_low_memory_gives_the_same_film(pipeline: ImageToVideo, engine_set: EngineSet) -> None:
    frugal = ImageToVideo.load(engine_set, memory="low")
    np.testing.assert_array_equal(list(frugal(PICTURE)), list(pipeline(PICTURE)))
    frugal.close()


def test_what_cannot_be_is_told(
    pipeline: ImageToVideo, engine_set: EngineSet, small_engine_set: EngineSet
) -> None:
    assert component_names(MODEL) == ("image_encoder", "unet", "vae_decoder") == tuple(engine_set.names)
    for changes, message in (
        ({"frames": 0}, "--frames 0: must lie between 1 and 1000"),
        ({"steps": 1}, "--steps-first 1: must lie between 2 and 1000"),
        ({"seed": -1}, "--seed -1: must lie"),
    ):
        with pytest.raises(V2VError, match=message):
            list(pipeline(PICTURE, **changes))
    with pytest.raises(V2VError, match=r"a picture is uint8 \[H, W, 3\], not uint8 \[90, 160\]"):
        list(pipeline(PICTURE[..., 0]))
    with pytest.raises(V2VError, match="model golden-image2video makes films of pictures, not of videos"):
        VideoToVideo.load(engine_set)
    with pytest.raises(V2VError, match="model small makes films of videos, not of pictures"):
        ImageToVideo.load(small_engine_set)


def test_planted_faults_in_the_engines_are_noticed(pipeline: ImageToVideo) -> None:
    made = AnimationPlan.of(Animation(steps=int(WHOLE["steps"]), guidance=3.0, parity=True), MODEL)
    contexts = pipeline.encode(WHOLE["image"].numpy())
    start = np.ascontiguousarray(np.moveaxis(WHOLE["start"].numpy()[0], 1, 0))
    expected = np.moveaxis(WHOLE["latents"].numpy()[0], 1, 0)
    found = pipeline.denoise((contexts[0], np.zeros_like(contexts[1])), start, made)
    assert golden.relative_error(found, expected) > 1e-3, "no picture is not a context of zeros"
