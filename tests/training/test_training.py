"""Clips, measures and steps of training, and what the shipped weights do."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training import clips, hdr, losses, metrics, train
from v2v.core.configs import MODELS
from v2v.export import packaged
from v2v.export.weights import load_weights
from v2v.runtime.diffusion.prompt import Tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "engine/data/tokenizer.json.xz"
SMALL = MODELS["small"]
WORDS = SMALL.words


class OnePicture(clips.Album):
    """An album without files: stripes and noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.picture = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((1200, 900))

    def draw(self, rng: np.random.Generator) -> tuple[Image.Image, str]:
        return self.picture, "stripes"

    def recorded(self, rng: np.random.Generator) -> tuple[clips.Bytes, str]:
        left = int(rng.integers(0, 900))
        film = np.asarray(self.picture)[None, : clips.HEIGHT, left : left + clips.WIDTH]
        return np.concatenate([np.roll(film, 2 * number, 2) for number in range(clips.FRAMES)]), "stripes"


@pytest.fixture(scope="module")
def made() -> list[clips.Clip]:
    return [clips.make_clip((1, number), OnePicture()) for number in range(4)]


def test_a_seed_decides_a_clip(made: list[clips.Clip]) -> None:
    again = clips.make_clip((1, 2), OnePicture())
    assert np.array_equal(again.good, made[2].good)
    assert np.array_equal(again.bad, made[2].bad)
    assert not np.array_equal(made[1].good, made[2].good)


def test_the_bad_clip_shows_the_same_scene_with_less_detail(made: list[clips.Clip]) -> None:
    for clip in made:
        assert clip.bad.shape == clip.good.shape == (clips.FRAMES, clips.HEIGHT, clips.WIDTH, 3)
        good, bad = as_tensor(clip.good), as_tensor(clip.bad)
        assert metrics.sharpness(bad) < metrics.sharpness(good)
        assert metrics.psnr(bad, good) > 15


def test_h264_at_a_higher_crf_is_worse(made: list[clips.Clip]) -> None:
    true = as_tensor(made[0].good)
    fine, coarse = (as_tensor(clips.h264(made[0].good, crf, "veryfast")) for crf in (10, 40))
    assert metrics.psnr(fine, true) > metrics.psnr(coarse, true) + 5


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """Four frames of the sample clip, ``[4, 3, 168, 320]`` in 0..1."""
    with av.open(str(ROOT / "assets/sample.mp4")) as source:
        frames = [
            f.to_ndarray(format="rgb24") for f, _ in zip(source.decode(video=0), range(4), strict=False)
        ]
    return as_tensor(np.stack(frames))[:, :, :168]


@pytest.mark.parametrize("measure", ["ssim", "vif", "gmsd"])
def test_measures_prefer_the_less_blurred(sample: Tensor, measure: str) -> None:
    value = metrics.MEASURES[measure]
    some, more = (F.avg_pool2d(sample, k, 1, k // 2, count_include_pad=False) for k in (3, 7))
    better = 1 if measure != "gmsd" else -1
    assert better * value(sample, sample) > better * value(some, sample) > better * value(more, sample)


def test_gmsd_is_zero_for_equal_frames_and_grows_with_local_damage(sample: Tensor) -> None:
    assert metrics.gmsd(sample, sample) == pytest.approx(0, abs=1e-6)
    damaged = sample.clone()
    damaged[..., 40:80, 40:80] = damaged[..., 40:80, 40:80].mean()
    assert metrics.gmsd(damaged, sample) > 0.01


def test_the_colour_error_sees_a_cast_and_not_what_is_fine(sample: Tensor) -> None:
    cast = sample * 0.8 + torch.tensor([0.1, 0.0, 0.0])[:, None, None]
    true = sample * 0.8
    noisy = true + 0.1 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    assert metrics.color_error(true, true) == 0
    assert metrics.color_error(cast, true) == pytest.approx(0.1 * 255 / 3, rel=1e-3)
    assert metrics.color_error(noisy, true) < 0.2 * metrics.color_error(cast, true)


def test_sharpness_falls_with_blur_and_flicker_rises_with_changing_light(sample: Tensor) -> None:
    assert metrics.sharpness(F.avg_pool2d(sample, 3, 1, 1)) < metrics.sharpness(sample)
    light = 1 + 0.05 * torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None, None]
    assert metrics.flicker(sample, sample) == 0
    assert metrics.flicker(sample * light, sample) > 1


def test_gradient_loss_ignores_a_constant_and_sees_blur(sample: Tensor) -> None:
    assert losses.gradient_loss(sample + 0.1, sample).item() == pytest.approx(0, abs=1e-6)
    assert losses.gradient_loss(F.avg_pool2d(sample, 3, 1, 1), sample) > 0.001


def test_divergence_is_zero_for_the_unit_gaussian_alone() -> None:
    assert losses.divergence(torch.zeros(1, 8, 2, 2)).item() == 0
    assert losses.divergence(torch.full((1, 8, 2, 2), 0.5)).item() > 0


def test_a_step_that_is_not_finite_is_left_out() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = train.adam([weight])
    train.descend((weight * float("nan")).sum(), optimizer)
    assert torch.equal(weight, torch.ones(3))
    train.descend(weight.sum(), optimizer)
    assert (weight < 1).all()


def test_captions_are_tokenized_as_the_runtime_does(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(prebuilt_tokenizer())
    tokenizer, captions = Tokenizer(path), train.Captions(TOKENIZER)
    assert np.array_equal(captions.ids(WORDS.positive)[None], tokenizer.positive(""))
    assert np.array_equal(captions.ids(WORDS.negative)[None], tokenizer.negative())


def test_noise_levels_cover_what_the_schedule_promises() -> None:
    drawn = train.draw_levels(np.random.default_rng(0), 4000)
    assert drawn.min() == train.LEAST
    assert drawn.max() > 590
    assert (drawn < 2 * train.LEAST).mean() > 0.33
    assert (drawn > train.USUAL).mean() < 0.1


def test_the_more_noise_the_bolder() -> None:
    levels = torch.tensor([train.LEAST, 2 * train.LEAST, train.USUAL, train.MOST])
    bold = train.boldness(levels).tolist()
    assert bold[0] == 0
    assert 0 < bold[1] < 1
    assert bold[2:] == [1, 1]


def test_an_untrained_unet_gives_its_input_back() -> None:
    """Residual branches start at nothing, so the first estimate is alpha times the noised latent."""
    unet = train.Networks(SMALL).unet
    with torch.inference_mode():
        velocity = unet(torch.randn(1, 16, 2, 6, 8), torch.tensor([20]), torch.zeros(1, 77, 64))
    assert (velocity == 0).all()


def test_an_untrained_decoder_gives_its_source_back() -> None:
    autoencoder = train.Networks(SMALL).autoencoder
    source = torch.rand(2, 3, 24, 32) * 2 - 1
    with torch.inference_mode():
        moments = autoencoder.encode(source)
        made = autoencoder.decode(torch.randn(2, 16, 6, 8), source)
    assert moments.shape == (2, 32, 6, 8)
    assert torch.equal(made, source)


class FourClips(train.ClipBuffer):
    """Clips without workers: noise, and the same in grey."""

    def __init__(self) -> None:
        shape = (4, clips.FRAMES, 3, clips.HEIGHT, clips.WIDTH)
        self.good = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.bad = self.good.float().mean(2, keepdim=True).byte().expand(shape)
        self.shows, self.capacity, self.count = [""] * 4, 4, 4
        self.device, self._rng = torch.device("cpu"), np.random.default_rng(0)


def test_good_and_bad_are_cut_alike() -> None:
    good, bad, shows = FourClips().draw(11, 8)
    assert good.shape == bad.shape == (11, 8, 3, *train.CROP)
    assert len(shows) == 11
    assert (good.mean(2) - bad.mean(2)).abs().max() < 2 / 127.5


def test_an_export_is_what_it_is_trained_as(tmp_path: Path) -> None:
    networks = train.Networks(SMALL)
    target = tmp_path / "small.safetensors"
    train.export(networks, target, train.Captions(TOKENIZER))
    weights = load_weights(str(target), SMALL)
    again = train.Networks(SMALL)
    train.import_weights(again, target)
    name = "unet.input_blocks.1.0.temopral_conv.conv2.3.weight"
    assert torch.equal(again.state_dict()[name], networks.state_dict()[name].half().float())
    assert weights.kind == "trained"


def test_shipped_weights_are_small_finite_and_trained() -> None:
    path = packaged.FOLDER / "small.safetensors"
    assert path.stat().st_size < 11e6
    weights = load_weights(str(path), SMALL)
    assert weights.kind == "trained"
    for network in ("autoencoder", "unet", "text_encoder"):
        assert all(
            t.dtype == torch.float16 and t.isfinite().all() for t in weights.state_dict(network).values()
        )


def test_the_shipped_model_sharpens_within_half_a_decibel_of_bicubic(sample: Tensor) -> None:
    """One step at the default strength, on frames of a film that training never saw."""
    networks = train.Networks(SMALL)
    train.import_weights(networks, packaged.FOLDER / "small.safetensors")
    small = F.interpolate(sample, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    small = as_tensor(
        clips.h264((small * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy(), 23, "medium")
    )
    bicubic = F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(0, 1)
    bilinear = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    torch.manual_seed(0)
    enhanced = train.enhance(networks, 2 * bilinear - 1, train.Captions(TOKENIZER))
    enhanced = (enhanced / 2 + 0.5).clamp(0, 1)
    assert metrics.sharpness(enhanced) > metrics.sharpness(bicubic)
    assert metrics.psnr(enhanced, sample) > metrics.psnr(bicubic, sample) - 0.5


def test_frames_of_one_colour_come_back_as_they_were_once_levelled() -> None:
    """On average over colours: what a network adds to all of them is taken off its last bias."""
    torch.manual_seed(0)
    networks = train.Networks(SMALL)
    networks.autoencoder.decoder.conv_out.bias.data = torch.randn(3).repeat_interleave(16) / 20
    captions = train.Captions(TOKENIZER)
    grey = torch.zeros(2, 3, 72, 80)
    assert train.enhance(networks, grey, captions).abs().mean() > 0.02
    train.level(networks, captions)
    assert train.enhance(networks, grey, captions).abs().max() < 1e-5


def as_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def prebuilt_tokenizer() -> bytes:
    from v2v.engine.store import packaged_tokenizer

    return packaged_tokenizer()


def test_the_pq_curve_is_that_of_st_2084() -> None:
    white = np.ones((1, 1, 1, 3))
    for light, coded in ((100.0, 0.5081), (203.0, 0.5807), (1000.0, 0.7518), (10000.0, 1.0)):
        np.testing.assert_allclose(hdr.to_pq(white, light), coded, atol=1e-4)
    pictures = np.random.default_rng(0).random((2, 4, 5, 3))
    np.testing.assert_allclose(hdr.to_sdr(hdr.to_pq(pictures, 203.0), 203.0), pictures, atol=1e-3)
