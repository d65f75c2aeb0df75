"""Train the small model: ``python -m training.train train ...``, then ``export``.

Checkpoints are written every minute and on a deadline, and the same command continues from them. Data are decided by
the seed; which clip meets which step depends on how fast the machine makes clips, so two runs agree in quality, not
in bits.
"""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.clips import DEFECT_WORDS, FRAMES, HEIGHT, QUALITY_WORDS, WIDTH, ClipStream
from training.losses import Discriminator, Perceptual, divergence, feature_distance, gradient_loss, hinge
from v2v.core.configs import CLIP_CONTEXT, MODELS, ModelConfig
from v2v.export.models.autoencoder import Autoencoder, ResnetBlock
from v2v.export.models.text_encoder import TextEncoder
from v2v.export.models.unet import (
    ResBlock,
    SpatialTransformer,
    TemporalConvolution,
    TemporalTransformer,
    UNet,
)
from v2v.runtime.diffusion.prompt import END, START, clean
from v2v.runtime.diffusion.schedule import Schedule

MODEL = MODELS["small"]
WORDS = MODEL.words
SEED = 20240
CROP = (136, 128)  # pixels; the UNet takes heights of 8 modulo 16 and widths of 0 modulo 16
LENGTH = 8  # frames of a training clip
GROUP = 8  # clips of a batch that are cut alike

# Noise levels. Enhancing starts from the noised latents of the bad video, with a strength of 0.015 to 0.3: that is
# where most training happens. The rest covers all levels up to the reference's 599.
LEAST, USUAL, MOST = 15, 300, 599


class Networks(nn.Module):
    """The three networks of a model, named as in the weights file."""

    latent_scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(config.autoencoder)
        self.unet = UNet(config.unet)
        self.text_encoder = TextEncoder(config.text_encoder)
        self.register_buffer("latent_scale", torch.tensor(config.latent_scale))
        initialise(self)


def initialise(networks: Networks) -> None:
    """Convolutions keep the variance of what they read; residual branches start at nothing.

    Without norms that is what makes training stable (Zhang et al. 2019, Fixup). Token embeddings start at zero: a
    word that training never showed stays without effect.
    """
    for module in networks.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    last: list[nn.Module] = [networks.unet.out[-1], networks.autoencoder.decoder.conv_out]
    for module in networks.modules():
        if isinstance(module, ResnetBlock):
            last.append(module.conv2)
        elif isinstance(module, ResBlock):
            last.append(module.out_layers[-1])
        elif isinstance(module, TemporalConvolution):
            last.append(list(module.children())[-1][-1])
        elif isinstance(module, SpatialTransformer | TemporalTransformer):
            last.append(module.proj_out)
    for module in last:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    nn.init.zeros_(networks.text_encoder.token_embedding.weight)
    nn.init.normal_(networks.text_encoder.positional_embedding, std=0.02)


class Captions:
    """Words for a clip, as token ids. The exact prompts of the runtime appear often: they are what a run sends."""

    def __init__(self, tokenizer: Path) -> None:
        self._bpe = tokenizers.Tokenizer.from_str(lzma.decompress(tokenizer.read_bytes()).decode())

    def ids(self, text: str) -> Tensor:
        """Token ids ``[77]``."""
        words = self._bpe.encode(clean(text)).ids[: CLIP_CONTEXT - 2]
        return torch.tensor([START, *words, END] + [0] * (CLIP_CONTEXT - 2 - len(words)))

    def good(self, rng: np.random.Generator, shows: str) -> Tensor:
        """Words for a good clip; none at all for one in seven."""
        if rng.random() < 1 / 7:
            return self.ids("")
        subject = shows if rng.random() < 0.5 else ""
        if rng.random() < 0.6:
            return self.ids(subject + WORDS.positive)
        return self.ids(
            ", ".join([subject, *rng.permutation(QUALITY_WORDS)[: rng.integers(1, 4)]]).strip(", ")
        )

    def bad(self, rng: np.random.Generator, shows: str) -> Tensor:
        """Words for a bad clip."""
        if rng.random() < 0.6:
            return self.ids(WORDS.negative)
        return self.ids(", ".join([shows, *rng.permutation(DEFECT_WORDS)[: rng.integers(1, 4)]]))


class ClipBuffer:
    """Clips on the training device, replaced by fresh ones all the time while batches are drawn from them."""

    def __init__(
        self, clips: ClipStream, device: torch.device, capacity: int, workers: int, seed: int
    ) -> None:
        # Workers are forked: they must start before the device is touched.
        loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=workers)
        self._clips = iter(loader)
        shape = (capacity, FRAMES, 3, HEIGHT, WIDTH)
        self.good = torch.empty(shape, dtype=torch.uint8, device=device)
        self.bad = torch.empty(shape, dtype=torch.uint8, device=device)
        self.shows = [""] * capacity
        self.capacity, self.count, self.device = capacity, 0, device
        self._rng = np.random.default_rng(seed)
        self._stop = False
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        while not self._stop:
            good, bad, shows = next(self._clips)
            place = self.count % self.capacity
            self.good[place].copy_(good)
            self.bad[place].copy_(bad)
            self.shows[place] = shows
            self.count += 1

    def close(self) -> None:
        """Stop making clips."""
        self._stop = True
        self._thread.join()
        del self._clips

    def wait_for(self, clips: int) -> None:
        """Until so many clips are there."""
        while self.count < clips:
            if not self._thread.is_alive():
                raise RuntimeError("the clip workers died; the reason is above")
            time.sleep(0.2)

    def draw(self, number: int, length: int) -> tuple[Tensor, Tensor, list[str]]:
        """``good`` and ``bad`` ``[number, length, 3, *CROP]`` in -1..1, mirrored and reversed at random, and words.

        Clips are taken in groups that are cut, mirrored and reversed alike, for the host has no time for each.
        """
        ready = min(self.count, self.capacity)
        good, bad, shows = [], [], []
        for first in range(0, number, GROUP):
            indices = self._rng.integers(0, ready, min(GROUP, number - first))
            f = self._rng.integers(0, FRAMES - length + 1)
            y, x = self._rng.integers(0, HEIGHT - CROP[0] + 1), self._rng.integers(0, WIDTH - CROP[1] + 1)
            part = (slice(f, f + length), slice(None), slice(y, y + CROP[0]), slice(x, x + CROP[1]))
            axes = [axis for axis in (1, 4) if self._rng.random() < 0.5]
            chosen = torch.from_numpy(indices).to(self.device)
            good.append(self.good[(slice(None), *part)][chosen].flip(axes))
            bad.append(self.bad[(slice(None), *part)][chosen].flip(axes))
            shows += [self.shows[index] for index in indices]
        return as_floats(torch.cat(good)), as_floats(torch.cat(bad)), shows


def as_floats(frames: Tensor) -> Tensor:
    """Bytes to -1..1."""
    return frames.float() / 127.5 - 1


@dataclass
class Run:
    """Everything that a checkpoint holds, and where it lies."""

    path: Path
    networks: Networks
    average: Networks  # exponential moving average of the weights: what is shipped
    discriminator: Discriminator
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0
    progress: float = 0.0  # along the curve of learning rates, 0..1

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "step": self.step,
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)

    def restore(self) -> None:
        """Continue from the checkpoint; nothing happens where there is none."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.step = state["step"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    @torch.no_grad()
    def update_average(self) -> None:
        """Let the average follow the weights, at first closely."""
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        ours, theirs = list(self.average.parameters()), list(self.networks.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        self.average.latent_scale.copy_(self.networks.latent_scale)


def steps(run: Run, arguments: argparse.Namespace, rates: dict[str, float]) -> Iterator[int]:
    """Count steps up to the total or the deadline, with warm-up and cosine decay of the learning rates.

    With a deadline the decay follows the clock, from and to the points of the curve that ``--span`` names, so that a
    curve can be spread over several calls.
    """
    began = saved = time.monotonic()
    low, high = arguments.span
    first = run.step
    while run.step < arguments.steps:
        gone = (time.monotonic() - began) / max(arguments.until - began, 1e-9)
        if gone >= 1:
            break
        run.progress = (
            run.step / arguments.steps if math.isinf(arguments.until) else low + (high - low) * gone
        )
        share = min(1.0, (run.step - first + 1) / 100) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * run.progress))
        )
        for name, optimizer in run.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * share
        yield run.step
        run.step += 1
        if time.monotonic() - saved > 60:
            run.save()
            saved = time.monotonic()
    run.save()


class Log:
    """Means of named numbers, printed every ``every`` steps and kept as JSON lines."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.began = path, every, time.monotonic()
        self.sums: dict[str, Tensor] = {}

    def add(self, step: int, buffer: ClipBuffer, **values: Tensor) -> None:
        """Add one step's values."""
        for name, value in values.items():
            self.sums[name] = (
                self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            )
        if (step + 1) % self.every:
            return
        means = {name: round(float(value) / self.every, 5) for name, value in self.sums.items()}
        seconds = time.monotonic() - self.began
        entry = {
            "step": step + 1,
            "per_second": round(self.every / seconds, 2),
            "clips": buffer.count,
            **means,
        }
        print(json.dumps(entry), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.sums, self.began = {}, time.monotonic()


def sample(moments: Tensor) -> Tensor:
    """A latent drawn from its posterior."""
    mean, logvar = moments.float().chunk(2, 1)
    return mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)


def draw_levels(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    """Time steps ``[batch]``: a third at the least noise, which the default is; one in twenty above what runs use.

    The others are evenly spread in logarithm.
    """
    usual = np.exp(rng.uniform(math.log(LEAST), math.log(USUAL + 1), batch)).astype(np.int64)
    little = rng.integers(LEAST, 2 * LEAST, batch)
    chance = rng.random(batch)
    return np.select(
        [chance < 0.33, chance > 0.95], [little, rng.integers(USUAL, MOST + 1, batch)], default=usual
    )


def draw_mixture(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    """How much of the bad video is left in the network's input, per clip and frame ``[batch, LENGTH]``.

    All of it for two in three; at times the first frames are finished already, as where a segment continues another.
    """
    share = np.where(rng.random(batch) < 0.67, 1.0, rng.random(batch))[:, None].repeat(LENGTH, 1)
    share[rng.random(batch) < 0.1, :2] = 0.0
    return share


def boldness(levels: Tensor) -> Tensor:
    """How much a result may leave its source, ``[batch]``: 0 at the least noise, 1 at the most that runs start with."""
    share = torch.log(levels.float() / LEAST) / math.log(USUAL / LEAST)
    return share.clamp(0, 1)


class Step:
    """One step: what the networks make of a batch, and what it costs.

    A UNet's input is ``z_t = alpha (z_good + w (z_bad - z_good)) + s eps`` with w = 1 where a run starts and less
    later on, when the solver has moved towards the estimate; the velocity is the one whose denoised estimate
    ``alpha z_t - s v`` is ``z_good``. With w = 0 that is the usual velocity (Salimans & Ho 2022). The decoder is given
    the estimate and the bad frame. Where the words describe a bad clip, the bad clip itself is wanted: guidance then
    leads away from it.

    The more noise, the more a result is judged by how it looks and the less by each pixel (:func:`boldness`).
    """

    def __init__(self, run: Run, arguments: argparse.Namespace, device: torch.device) -> None:
        networks = run.networks
        self.run, self.arguments, self.device = run, arguments, device
        self.encode, self.decode, self.predict = compiled(
            arguments, networks.autoencoder.encode, networks.autoencoder.decode, networks.unet
        )
        self.perceptual = Perceptual.load(arguments.perceptual).to(device) if arguments.perceptual else None
        self.captions = Captions(arguments.tokenizer)
        self.rng = np.random.default_rng(SEED + run.step)
        self.levels = torch.from_numpy(Schedule().levels).float().to(device)

    def __call__(self, buffer: ClipBuffer) -> dict[str, Tensor]:
        """Descend once; returns the losses by name."""
        rng, networks, device = self.rng, self.run.networks, self.device
        batch = self.arguments.batch
        good, bad, shows = buffer.draw(batch, LENGTH)
        wants_bad = rng.random(batch) < 0.1
        ids = [
            (self.captions.bad if b else self.captions.good)(rng, s)
            for s, b in zip(shows, wants_bad, strict=True)
        ]
        plain = torch.from_numpy(wants_bad).to(device)[:, None, None, None, None]
        good = torch.where(plain, bad, good)

        with autocast(device):
            moments = self.encode(torch.cat([good, bad]).flatten(0, 1))
        both = sample(moments)
        if self.arguments.span[0] == 0:
            networks.latent_scale.lerp_(1 / both.detach().std(), 0.01)
        scale = networks.latent_scale
        z_good, z_bad = (scale * both).unflatten(0, (2 * batch, LENGTH)).transpose(1, 2).chunk(2)
        t = torch.from_numpy(draw_levels(rng, batch)).to(device)
        s = self.levels[t][:, None, None, None, None]
        alpha = (1 - s**2).sqrt()
        w = torch.from_numpy(draw_mixture(rng, batch)).float().to(device)[:, None, :, None, None]
        x = alpha * (z_good + w * (z_bad - z_good)) + s * torch.randn_like(z_bad)
        with autocast(device):
            velocity = self.predict(x, t, networks.text_encoder(torch.stack(ids).to(device))).float()
        estimate = alpha * x - s * velocity

        f = int(rng.integers(0, LENGTH - 2))
        true, shown = good[:, f : f + 3], bad[:, f : f + 3]
        codes = estimate[:, :, f : f + 3].transpose(1, 2).flatten(0, 1)
        # The decoder must go on decoding clean latents: at the end of many steps they are what it is given.
        every = slice(0, batch, 4)
        codes = torch.cat([codes, z_good[every, :, f + 1]]) / scale
        with autocast(device):
            decoded = self.decode(codes, torch.cat([shown.flatten(0, 1), shown[every, 1]])).float()
        made = decoded[: 3 * batch].unflatten(0, (batch, 3))
        kept = (decoded[3 * batch :] - true[every, 1]).abs().mean()
        latents = ((estimate - z_good.detach()) ** 2).mean()
        others = {"latents": (0.02, latents), "kept": (0.25, kept), "kl": (3e-4, divergence(moments))}
        wanted_good = torch.from_numpy(np.flatnonzero(~wants_bad)).to(device)
        return self._descend(made, true, shown, boldness(t), wanted_good, others)

    def _descend(
        self,
        made: Tensor,
        true: Tensor,
        shown: Tensor,
        bold: Tensor,
        wanted_good: Tensor,
        others: dict[str, tuple[float, Tensor]],
    ) -> dict[str, Tensor]:
        """Judge frames ``[batch, 3, 3, H, W]``, and follow the gradients of all that is told.

        The discriminator is shown those alone of which the good clip was wanted, ``[N]`` numbers.
        """
        run, arguments = self.run, self.arguments
        flat, wanted = made.flatten(0, 1), true.flatten(0, 1)
        weighed = {
            "pixels": (1.0, ((made - true) ** 2 + 1e-6).sqrt().mean()),
            "differences": (0.5, gradient_loss(flat, wanted)),
            "flicker": (0.5, (made.diff(dim=1) - true.diff(dim=1)).abs().mean()),
            "tint": (0.5, (F.avg_pool2d(flat, 8) - F.avg_pool2d(wanted, 8)).abs().mean()),
            **others,
        }
        if self.perceptual is not None:
            least, most = arguments.looks
            with autocast(self.device):
                looks = self.perceptual(made[:, 1], true[:, 1])
            weighed["looks"] = (1.0, (least * (most / least) ** bold * looks).mean())
        judges = arguments.adversarial > 0 and run.progress >= arguments.adversarial_from - 0.05
        made, true, middle, bold = (
            made[wanted_good],
            true[wanted_good],
            shown[wanted_good, 1],
            bold[wanted_good],
        )
        if judges and run.progress >= arguments.adversarial_from:
            run.discriminator.requires_grad_(False)
            with autocast(self.device):
                logits, features = run.discriminator(made, middle)
                with torch.no_grad():
                    _, real_features = run.discriminator(true, middle)
            share = min(1.0, (run.progress - arguments.adversarial_from) / 0.1)
            fooling = -(bold[:, None, None, None] * logits.float()).mean()
            weighed["fooling"] = (share * arguments.adversarial, fooling)
            weighed["features"] = (share * arguments.features, feature_distance(features, real_features))
            run.discriminator.requires_grad_(True)
        total = torch.stack([weight * value for weight, value in weighed.values()]).sum()
        descend(total, run.optimizers["networks"])
        if judges:
            with autocast(self.device):
                real = run.discriminator(true, middle)[0].float()
                judged = run.discriminator(made.detach(), middle)[0].float()
            weighed["judge"] = (1.0, hinge(real, judged))
            descend(weighed["judge"][1], run.optimizers["discriminator"])
        return {name: value for name, (_, value) in weighed.items()}


def train(run: Run, buffer: ClipBuffer, arguments: argparse.Namespace) -> None:
    """All three networks at once, from what the last frame looks like."""
    run.optimizers = {
        "networks": adam(run.networks.parameters()),
        "discriminator": adam(run.discriminator.parameters(), momentum=0.5),
    }
    run.restore()
    step_once, log = Step(run, arguments, buffer.device), Log(arguments.log, arguments.every)
    validate = Validation(arguments, step_once.captions, buffer.device)
    for step in steps(run, arguments, {"networks": arguments.rate, "discriminator": 2e-4}):
        log.add(step, buffer, **step_once(buffer))
        run.update_average()
        if arguments.validate and (step + 1) % arguments.validate == 0:
            validate(run)
    validate(run)


class Validation:
    """Clips of pictures and recordings that are never trained on."""

    def __init__(self, arguments: argparse.Namespace, captions: Captions, device: torch.device) -> None:
        stream = iter(ClipStream(arguments.pictures, arguments.recordings, SEED, validation=True))
        clips = [next(stream) for _ in range(arguments.validation_clips)]
        # The UNet takes heights of 8 modulo 16.
        self.clips = [[as_floats(b[:LENGTH, :, :264].to(device)) for b in clip[:2]] for clip in clips]
        self.ids = captions.ids(WORDS.positive)[None].to(device)

    @torch.no_grad()
    def __call__(self, run: Run) -> None:
        """Print PSNR, detail (gradients, 1 is that of the good clip) and flicker of one step from some noise levels."""
        networks = run.average
        context = networks.text_encoder(self.ids)
        results: dict[str, list[list[float]]] = {}
        for good, bad in self.clips:
            with autocast(good.device):
                z = sample(networks.autoencoder.encode(bad)) * networks.latent_scale
                outputs = {"source": bad}
                for t in (15, 40, 100, 300):
                    outputs[f"t{t}"] = one_step(networks, z, bad, t, context).float()
            for name, made in outputs.items():
                mse = ((made.clamp(-1, 1) - good) ** 2).mean(dim=(1, 2, 3)).clamp_min(1e-6)
                detail = made.diff(dim=-1).abs().mean() / good.diff(dim=-1).abs().mean()
                flicker = (made.diff(dim=0) - good.diff(dim=0)).abs().mean() * 127.5
                row = [float((10 * (4 / mse).log10()).mean()), float(detail), float(flicker)]
                results.setdefault(name, []).append(row)
        means = {name: [round(float(x), 4) for x in np.mean(rows, 0)] for name, rows in results.items()}
        print(json.dumps({"step": run.step, "psnr, detail, flicker": means}), flush=True)


def compiled(arguments: argparse.Namespace, *functions: Any) -> list[Any]:
    """The functions, compiled where asked for."""
    return [torch.compile(f) if arguments.compile else f for f in functions]


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def adam(parameters: Any, momentum: float = 0.9) -> torch.optim.AdamW:
    """Adam without weight decay, fused."""
    return torch.optim.AdamW(parameters, betas=(momentum, 0.99), weight_decay=0.0, fused=True)


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step, the gradients of each optimizer clipped to length 1; a step that is not finite is left out.

    Leaving out happens on the device (``found_inf``, as gradient scalers do it), so that the host need not wait.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        length = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.found_inf = (~length.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()


def one_step(networks: Networks, latents: Tensor, frames: Tensor, t: int, context: Tensor) -> Tensor:
    """What one step from the noise of time step ``t`` makes of ``frames`` ``[F, 3, H, W]`` and their scaled latents."""
    alpha, s = Schedule().noising(t)
    x = (alpha * latents + s * torch.randn_like(latents)).transpose(0, 1)[None]
    velocity = networks.unet(x, torch.tensor([t], device=x.device), context).float()
    estimate = (alpha * x - s * velocity)[0].transpose(0, 1)
    made: Tensor = networks.autoencoder.decode(estimate / networks.latent_scale, frames)
    return made


@torch.no_grad()
def enhance(networks: Networks, frames: Tensor, captions: Captions) -> Tensor:
    """What one step of the default strength makes of ``[F, 3, H, W]`` in -1..1, scaled up already."""
    latents = networks.autoencoder.encode(frames).chunk(2, 1)[0] * networks.latent_scale
    context = networks.text_encoder(captions.ids(WORDS.positive)[None])
    return one_step(networks, latents, frames, Schedule().start(MODEL.defaults.strength), context)


def level(networks: Networks, captions: Captions) -> None:
    """Let frames of one colour come back as they were: take what is added to them off the decoder's last bias.

    Training leaves a tint of a level.
    """
    colours = torch.rand((64, 3, 1, 1), generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    added = torch.stack(
        [(enhance(networks, c.expand(4, 3, 72, 80), captions) - c)[:, :, 16:56, 16:64] for c in colours]
    )
    patches = F.pixel_unshuffle(added.flatten(0, 1), MODEL.autoencoder.patch)
    networks.autoencoder.decoder.conv_out.bias.data -= patches.mean((0, 2, 3))


def export(networks: Networks, target: Path, captions: Captions) -> None:
    """The weights as FP16 safetensors, ``NETWORK.TENSOR``, with the latent scale in the header."""
    level(networks, captions)
    state = networks.state_dict()
    scale = float(state.pop("latent_scale"))
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise SystemExit(f"{target}: not finite in FP16: {', '.join(broken)}")
    save_file(tensors, target, {"model": "small", "latent_scale": f"{scale:.6f}"})
    print(f"{target}: {len(tensors)} tensors, {target.stat().st_size / 1e6:.1f} MB, latent scale {scale:.6f}")


def import_weights(networks: Networks, source: Path) -> None:
    """Start from exported weights."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        scale = float(file.metadata()["latent_scale"])
    state = {name: tensor.float() for name, tensor in load_file(source).items()}
    networks.load_state_dict({**state, "latent_scale": torch.tensor(scale)})


def main() -> None:
    """Train, or export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=["train", "export"])
    parser.add_argument("--pictures", type=Path, help="folder that training.pictures made")
    parser.add_argument("--recordings", type=Path, help="folder that training.recordings made")
    parser.add_argument("--perceptual", type=Path, help="weights of the network that judges looks")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--target", type=Path, help="safetensors file that export writes")
    parser.add_argument("--start", type=Path, help="exported weights to begin with, or to export again")
    parser.add_argument("--tokenizer", type=Path, default=Path("engine/data/tokenizer.json.xz"))
    parser.add_argument("--log", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument(
        "--looks",
        type=float,
        nargs=2,
        default=(0.02, 0.8),
        help="weight of looks at the least and most noise",
    )
    parser.add_argument("--adversarial", type=float, default=0.02)
    parser.add_argument(
        "--adversarial-from", type=float, default=0.5, help="point of the curve where it starts"
    )
    parser.add_argument("--features", type=float, default=0.1)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop and keep a checkpoint after this long"
    )
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), help="part of the decay curve")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--capacity", type=int, default=2000, help="clips kept on the device")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--validate", type=int, default=0)
    parser.add_argument("--validation-clips", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "export":
        networks = Networks(MODEL)
        if arguments.start:
            import_weights(networks, arguments.start)
        else:
            state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
            networks.load_state_dict(state["average"])
        export(networks, arguments.target, Captions(arguments.tokenizer))
        return
    arguments.until = time.monotonic() + arguments.seconds
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = ClipStream(arguments.pictures, arguments.recordings, SEED)
    buffer = ClipBuffer(clips, device, arguments.capacity, arguments.workers, SEED)
    networks = Networks(MODEL)
    if arguments.start:
        import_weights(networks, arguments.start)
    networks = networks.to(device)
    average = copy.deepcopy(networks).requires_grad_(False)
    run = Run(arguments.checkpoint, networks, average, Discriminator().to(device))
    buffer.wait_for(min(arguments.capacity, 4 * arguments.batch))
    train(run, buffer, arguments)
    buffer.close()


if __name__ == "__main__":
    main()
