"""Still pictures and recordings to moving clips, and good clips to bad ones.

Half of the clips are pieces of recordings. The others are a camera moving over a picture (pan, zoom, rotation, all
with changing speed), often with pieces of other pictures moving on their own in front, sometimes with the exposure
changing or a line of text. What makes them bad is what videos meet: mostly scaling and a codec, else the second-order
pipeline of Real-ESRGAN (Wang et al. 2021): blur, scaling, noise, twice, each drawn at random, with a video codec
instead of JPEG at the end.

Everything is a function of a ``numpy.random.Generator``, so a seed decides a clip.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from training.pictures import load_index as load_pictures
from training.recordings import load_index as load_recordings

Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator

FRAMES, HEIGHT, WIDTH = 10, 272, 256  # of a clip; training takes smaller pieces of it

QUALITY_WORDS = (
    "highly detailed",
    "4k render",
    "hyper sharpness",
    "ultra HD",
    "High Contrast",
    "hyper detailed photo",
)
DEFECT_WORDS = ("worst quality", "normal quality", "low quality", "low res", "blurry", "jpeg artifacts")


@dataclass(frozen=True)
class Clip:
    """A good clip, what bad recording made of it (scaled back to the same size), and words for it."""

    good: Bytes  # [FRAMES, HEIGHT, WIDTH, 3] RGB
    bad: Bytes  # the same shape; scaled up bilinearly, as the runtime does before encoding
    shows: str


class Album:
    """The packed pictures of a folder and the recordings of another in memory, drawn by weight."""

    def __init__(self, pictures: Path, recordings: Path | None = None, *, validation: bool = False) -> None:
        self.entries = [p for p in load_pictures(pictures) if p.validation == validation]
        self.images = [Image.open(pictures / p.file).convert("RGB") for p in self.entries]
        self.shares = _shares([p.weight for p in self.entries])
        pieces = [] if recordings is None else load_recordings(recordings)
        self.pieces = [p for p in pieces if p.validation == validation]
        self.films = [] if recordings is None else [grown(read(recordings / p.file)) for p in self.pieces]
        self.film_shares = _shares([p.weight for p in self.pieces])

    def draw(self, rng: Rng) -> tuple[Image.Image, str]:
        """A picture, and what it shows."""
        index = int(rng.choice(len(self.entries), p=self.shares))
        return self.images[index], self.entries[index].shows

    def recorded(self, rng: Rng) -> tuple[Bytes, str] | None:
        """A piece of a recording ``[FRAMES, HEIGHT, WIDTH, 3]`` and what it shows; None: there are no recordings."""
        if not self.films:
            return None
        index = int(rng.choice(len(self.films), p=self.film_shares))
        film, every = self.films[index], int(rng.choice([1, 2], p=[0.8, 0.2]))
        every = min(every, max(1, (len(film) - 1) // (FRAMES - 1)))
        first = int(rng.integers(0, len(film) - every * (FRAMES - 1)))
        frames = film[first : first + every * (FRAMES - 1) + 1 : every]
        top, left = (
            int(rng.integers(0, frames.shape[1 + k] - side + 1)) for k, side in enumerate((HEIGHT, WIDTH))
        )
        return frames[:, top : top + HEIGHT, left : left + WIDTH], self.pieces[index].shows


def _shares(weights: Sequence[float]) -> npt.NDArray[np.float64]:
    """Weights that add up to 1."""
    return np.array(weights) / max(sum(weights), 1e-9)


def read(path: Path, first: int = 0, count: int | None = None) -> Bytes:
    """Frames of a film ``[F, H, W, 3]``, ``count`` from number ``first`` on, or all that are there."""
    with av.open(str(path)) as source:
        frames = islice(source.decode(video=0), first, None if count is None else first + count)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def grown(frames: Bytes) -> Bytes:
    """Frames ``[F, H, W, 3]``, enlarged where they are smaller than a clip."""
    height, width = frames.shape[1:3]
    scale = max(HEIGHT / height, WIDTH / width)
    if scale <= 1:
        return frames
    size = (math.ceil(width * scale), math.ceil(height * scale))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])


def camera(rng: Rng, picture: Image.Image, speed: float) -> npt.NDArray[np.float64]:
    """A smooth path: for each frame the six numbers of PIL's affine transform, output to picture pixels.

    ``speed`` scales the motion; at 1 the fastest pan is about 6 pixels a frame.
    """
    zoom = float(np.exp(rng.uniform(math.log(0.9), math.log(3.2))))  # picture pixels per output pixel
    zoom = min(zoom, 0.8 * picture.width / WIDTH, 0.8 * picture.height / HEIGHT)
    time = np.linspace(-0.5, 0.5, FRAMES) * FRAMES
    pan = speed * rng.exponential(1.5, 2).clip(0, 6) * rng.choice([-1, 1], 2)
    bend = speed * rng.normal(0, 0.05, 2)
    turn = rng.choice([0.0, rng.normal(0, 0.1)]) + speed * rng.normal(0, 0.004) * time
    scale = zoom * np.exp(speed * rng.normal(0, 0.006) * time)
    path = pan * time[:, None] + bend * time[:, None] ** 2  # output pixels
    reach = 0.5 * zoom * math.hypot(WIDTH, HEIGHT) * 1.02
    centre = np.array(
        [
            rng.uniform(min(reach, picture.width / 2), max(picture.width - reach, picture.width / 2)),
            rng.uniform(min(reach, picture.height / 2), max(picture.height - reach, picture.height / 2)),
        ]
    )
    flip = rng.choice([-1.0, 1.0])
    rows = []
    for frame in range(FRAMES):
        cos, sin = scale[frame] * math.cos(turn[frame]), scale[frame] * math.sin(turn[frame])
        matrix = np.array([[cos * flip, -sin], [sin * flip, cos]])
        origin = centre + zoom * path[frame] - matrix @ np.array([WIDTH / 2, HEIGHT / 2])
        rows.append([matrix[0, 0], matrix[0, 1], origin[0], matrix[1, 0], matrix[1, 1], origin[1]])
    return np.array(rows)


def move(picture: Image.Image, path: npt.NDArray[np.float64]) -> list[Image.Image]:
    """What the camera sees on its ``path``; where it looks past an edge, the picture is mirrored there.

    A box filter comes first where the camera shrinks, so that nothing aliases.
    """
    shrink = float(np.hypot(path[:, 0], path[:, 3]).max())
    corners = np.array([[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]])
    seen = [row[[0, 1, 3, 4]].reshape(2, 2) @ corners.T + row[[2, 5]][:, None] for row in path]
    low = np.floor(np.min([s.min(1) for s in seen], 0)).astype(int) - 4
    high = np.ceil(np.max([s.max(1) for s in seen], 0)).astype(int) + 4
    size = (picture.width, picture.height)
    if low.min() < 0 or high[0] > size[0] or high[1] > size[1]:
        index = [_mirrored(np.arange(low[i], high[i]), size[i]) for i in (0, 1)]
        view = Image.fromarray(np.asarray(picture)[index[1][:, None], index[0][None, :]])
    else:
        view = picture.crop((low[0], low[1], high[0], high[1]))
    path = path.copy()
    path[:, [2, 5]] -= low
    if shrink > 1.15:
        size = (max(1, round(view.width / shrink)), max(1, round(view.height / shrink)))
        ratio = (size[0] / view.width, size[1] / view.height)
        view = view.resize(size, Image.Resampling.LANCZOS)
        path[:, :3] *= ratio[0]
        path[:, 3:] *= ratio[1]
    return [
        view.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, tuple(row), Image.Resampling.BICUBIC)
        for row in path
    ]


def liveliest(paths: Sequence[npt.NDArray[np.float64]], picture: Image.Image) -> npt.NDArray[np.float64]:
    """The path of the camera that sees the most detail: large pictures are smooth in most places."""

    def detail(path: npt.NDArray[np.float64]) -> float:
        row = path[len(path) // 2]
        row = (2 * row[0], 2 * row[1], row[2], 2 * row[3], 2 * row[4], row[5])
        seen = picture.transform(
            (WIDTH // 2, HEIGHT // 2), Image.Transform.AFFINE, row, Image.Resampling.NEAREST
        )
        grey = np.asarray(seen.convert("L"), np.float32)
        return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())

    return paths[0] if len(paths) == 1 else max(paths, key=detail)


def _mirrored(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    folded = np.abs(index) % (2 * size)
    return np.where(folded >= size, 2 * size - 1 - folded, folded)


def shape_mask(rng: Rng) -> Image.Image:
    """A random blob or polygon, white on black, with edges from sharp to soft."""
    mask = Image.new("L", (2 * WIDTH, 2 * HEIGHT))
    centre, radius = rng.uniform(0.25, 0.75, 2) * (2 * WIDTH, 2 * HEIGHT), rng.uniform(50, 220)
    angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 12)))
    radii = radius * rng.uniform(0.5, 1.2, len(angles))
    points = [
        (centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    ]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    soft = float(rng.choice([0.0, 1.0, 6.0], p=[0.4, 0.4, 0.2]))
    return mask.resize((WIDTH, HEIGHT), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(soft))


def good_clip(rng: Rng, album: Album) -> tuple[Bytes, str]:
    """A clip ``[FRAMES, HEIGHT, WIDTH, 3]`` and what it shows."""
    recorded = album.recorded(rng) if rng.random() < 0.5 else None
    clip, shows = staged_clip(rng, album) if recorded is None else recorded
    if rng.random() < 0.15:
        clip = np.stack(captioned(rng, [Image.fromarray(frame) for frame in clip]))
    return clip, shows


def captioned(rng: Rng, frames: list[Image.Image]) -> list[Image.Image]:
    """Frames with a line of letters, digits or words on them, which may move."""
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?&%()-"
    text = "".join(rng.choice(list(letters), int(rng.integers(4, 40))))
    font = ImageFont.load_default(float(rng.uniform(9, 42)))
    place, drift = (
        rng.uniform((-20, 0), (WIDTH * 0.6, HEIGHT * 0.9)),
        rng.normal(0, 1, 2) * (rng.random() < 0.3),
    )
    light, dark = (255, 255, 255), (0, 0, 0)
    plain = [light, dark, tuple(int(v) for v in rng.integers(0, 256, 3))]
    fill = plain[int(rng.integers(3))]
    edge = int(rng.choice([0, 1, 2]))
    for number, frame in enumerate(frames):
        where = (float(place[0] + drift[0] * number), float(place[1] + drift[1] * number))
        draw = ImageDraw.Draw(frame)
        draw.text(
            where, text, fill=fill, font=font, stroke_width=edge, stroke_fill=dark if fill == light else light
        )
    return frames


def staged_clip(rng: Rng, album: Album) -> tuple[Bytes, str]:
    """A camera that moves over a picture: ``[FRAMES, HEIGHT, WIDTH, 3]``, and what it shows."""
    picture, shows = album.draw(rng)
    speed = float(rng.choice([0.0, 0.3, 1.0], p=[0.1, 0.4, 0.5]))
    frames = move(
        picture, liveliest([camera(rng, picture, speed) for _ in range(int(rng.integers(1, 5)))], picture)
    )
    for _ in range(int(rng.choice([0, 1, 2], p=[0.55, 0.3, 0.15]))):
        other, also = album.draw(rng)
        layer = move(other, camera(rng, other, speed))
        mask, drift = shape_mask(rng), rng.normal(0, 2.0, 2)
        for number, (frame, over) in enumerate(zip(frames, layer, strict=True)):
            shift = (1, 0, -drift[0] * number, 0, 1, -drift[1] * number)
            moved = mask.transform(mask.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
            frame.paste(over, (0, 0), moved)
        shows = f"{shows}, {also}"
    clip = np.stack([np.asarray(frame) for frame in frames])
    if rng.random() < 0.3:
        light = np.linspace(rng.uniform(0.6, 1.25), rng.uniform(0.6, 1.25), FRAMES)[:, None, None, None]
        clip = (clip * light).clip(0, 255).round().astype(np.uint8)
    return clip, shows


def blur_kernel(rng: Rng, strength: float) -> Tensor:
    """A Gaussian, equal along both axes or not, or a small sinc (ringing), square with odd sides, sum 1."""
    if rng.random() < 0.1:
        grid = np.arange(-4, 5)
        cutoff = rng.uniform(math.pi / 2, math.pi)
        line = np.sinc(cutoff / math.pi * grid) * np.hanning(11)[1:-1]
        kernel = np.outer(line, line)
    else:
        a = rng.uniform(0.2, strength)
        b = a if rng.random() < 0.6 else rng.uniform(0.2, strength)
        angle = rng.uniform(0, math.pi)
        radius = math.ceil(2.5 * max(a, b))
        x, y = np.meshgrid(np.arange(-radius, radius + 1), np.arange(-radius, radius + 1))
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        kernel = np.exp(-0.5 * ((u / a) ** 2 + (v / b) ** 2))
    return torch.from_numpy(kernel / kernel.sum()).float()


def blur(frames: Tensor, kernel: Tensor) -> Tensor:
    """``frames [F, 3, H, W]`` filtered with ``kernel``, edges repeated."""
    radius = kernel.shape[0] // 2
    padded = F.pad(frames, (radius,) * 4, mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel[None, None]).view_as(frames)


def resize(rng: Rng, frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale with a randomly chosen kernel, antialiased."""
    mode = str(rng.choice(["area", "bilinear", "bicubic"], p=[0.25, 0.25, 0.5]))
    if mode == "area":
        return F.interpolate(frames, size, mode="area")
    return F.interpolate(frames, size, mode=mode, antialias=True).clamp(0, 255)


def add_noise(rng: Rng, frames: Tensor, strength: float) -> Tensor:
    """Gaussian noise, on colours or on brightness alone, stronger in bright parts half the time."""
    sigma = rng.uniform(0.5, strength)
    channels = 1 if rng.random() < 0.4 else 3
    seed = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = torch.randn((len(frames), channels, *frames.shape[2:]), generator=seed)
    if rng.random() < 0.5:
        noise = noise * (frames.clamp(0, 255) / 128).sqrt()
    return (frames + sigma * noise).clamp(0, 255)


CODECS = {
    "h264": ("libx264", lambda crf, preset: {"crf": str(crf), "preset": preset}),
    "hevc": (
        "libx265",
        lambda crf, preset: {"crf": str(crf), "preset": "veryfast", "x265-params": "log-level=none"},
    ),
    "vp9": (
        "libvpx-vp9",
        lambda crf, preset: {"crf": str(crf + 8), "b": "0", "deadline": "realtime", "cpu-used": "6"},
    ),
}
"""Encoders, and their options for a quality as x264 counts it."""


def encoded(frames: Bytes, crf: int, preset: str, codec: str = "h264") -> Bytes:
    """Encode ``[F, h, w, 3]`` (yuv420p) in memory and decode it again; h and w are even.

    Raises:
        RuntimeError: the codec gave another number of frames back.
    """
    buffer = io.BytesIO()
    encoder, options = CODECS[codec]
    with av.open(buffer, "w", format="matroska") as out:
        stream: Any = out.add_stream(encoder, rate=25, options=options(crf, preset))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as source:
        source.streams.video[0].codec_context.thread_count = 1
        decoded = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec} gave {len(decoded)} of {len(frames)} frames back")
    return np.stack(decoded)


def h264(frames: Bytes, crf: int, preset: str) -> Bytes:
    """As :func:`encoded`."""
    return encoded(frames, crf, preset)


def even(size: float) -> int:
    """The nearest even number, as 4:2:0 needs."""
    return max(16, 2 * round(size / 2))


def degrade(rng: Rng, good: Bytes) -> Bytes:
    """A bad recording of ``good``, scaled back up bilinearly to the same size.

    Four in five are only scaled down and compressed, as videos on the web are, and some of those not even scaled or
    not even compressed; the rest go through two rounds of blur, scaling and noise.
    """
    frames = torch.from_numpy(good).permute(0, 3, 1, 2).float()
    scale = float(rng.choice([1.0, 1.5, 2.0, 3.0, 4.0], p=[0.15, 0.07, 0.45, 0.08, 0.25]))
    if rng.random() < 0.1:
        scale = rng.uniform(1.0, 4.0)
    small = (even(HEIGHT / scale), even(WIDTH / scale))
    if rng.random() < 0.8:
        frames = resize(rng, frames, small) if scale > 1 else frames
        crf = 0 if rng.random() < 0.06 else int(rng.integers(18, 35))
    else:
        frames = recorded_badly(rng, frames, scale, small)
        crf = int(rng.integers(16, 36))
    recorded = frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    if crf:
        codec = str(rng.choice(["h264", "hevc", "vp9"], p=[0.86, 0.07, 0.07]))
        recorded = encoded(recorded, crf, str(rng.choice(["veryfast", "medium"])), codec)
    if scale == 1:
        return recorded
    planes = torch.from_numpy(recorded).permute(0, 3, 1, 2).float()
    back = F.interpolate(planes, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return back.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def recorded_badly(rng: Rng, frames: Tensor, scale: float, small: tuple[int, int]) -> Tensor:
    """Two rounds of blur, scaling and noise, down to ``small`` pixels."""
    if rng.random() < 0.7:
        frames = blur(frames, blur_kernel(rng, 0.5 + 0.3 * scale))
    if rng.random() < 0.6:
        between = scale ** rng.uniform(0.2, 0.9)
        frames = resize(rng, frames, (even(HEIGHT / between), even(WIDTH / between)))
    if rng.random() < 0.4:
        frames = add_noise(rng, frames, 8)
    if rng.random() < 0.3:
        frames = blur(frames, blur_kernel(rng, 1.0))
    frames = resize(rng, frames, small)
    return add_noise(rng, frames, 5) if rng.random() < 0.3 else frames


def make_clip(seed: Sequence[int], album: Album) -> Clip:
    """The clip that ``seed`` (any numbers) decides."""
    rng = np.random.default_rng(list(seed))
    good, shows = good_clip(rng, album)
    return Clip(good, degrade(rng, good), shows)


class ClipStream(torch.utils.data.IterableDataset[tuple[Tensor, Tensor, str]]):
    """Endless clips ``(good, bad, shows)``, frames uint8 ``[FRAMES, 3, HEIGHT, WIDTH]``, each worker its own."""

    def __init__(
        self, pictures: Path, recordings: Path | None, seed: int, *, validation: bool = False
    ) -> None:
        self.pictures, self.recordings, self.seed, self.validation = pictures, recordings, seed, validation

    def __iter__(self) -> Any:
        """Clips of this worker, for ever."""
        torch.set_num_threads(1)
        # Read here and not before the fork: a child that inherits libraries which had threads may wait for ever.
        album = Album(self.pictures, self.recordings, validation=self.validation)
        info = torch.utils.data.get_worker_info()
        worker = info.id if info else 0
        number = 0
        while True:
            clip = make_clip((self.seed, worker, number), album)
            yield (
                torch.from_numpy(clip.good).permute(0, 3, 1, 2).contiguous(),
                torch.from_numpy(clip.bad).permute(0, 3, 1, 2).contiguous(),
                clip.shows,
            )
            number += 1
