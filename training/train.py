"""Train the small model: ``python -m training.train autoencoder ...``, then ``unet``, then ``export``.

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
from v2v.export.models.autoencoder import Autoencoder
from v2v.export.models.configs import MODELS, ModelConfig
from v2v.export.models.text_encoder import TextEncoder
from v2v.export.models.unet import SpatialTransformer, TemporalConvolution, TemporalTransformer, UNet
from v2v.runtime.prompt import CONTEXT, END, NEGATIVE_PROMPT, POSITIVE_PROMPT, START, clean
from v2v.runtime.schedule import Schedule

from training.clips import DEFECT_WORDS, FRAMES, HEIGHT, QUALITY_WORDS, WIDTH, ClipStream
from training.losses import Discriminator, divergence, feature_distance, gradient_loss, hinge

SEED = 20240
CROP = (136, 128)  # pixels; the UNet takes heights of 8 modulo 16 and widths of 0 modulo 16
LENGTH = 8  # frames of a training clip
NETWORKS = ("autoencoder", "unet", "text_encoder")

# Noise levels. Enhancing starts from the noised latents of the bad video, so little noise keeps most of the picture:
# that is where most training happens. The rest covers all levels up to the reference's 599.
LEAST, USUAL, MOST = 15, 80, 599


class Networks(nn.Module):
    """The three networks of a model, named as in the weights file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(config.autoencoder)
        self.unet = UNet(config.unet)
        self.text_encoder = TextEncoder(config.text_encoder)
        self.register_buffer("latent_scale", torch.tensor(config.latent_scale))
        initialise(self)


def initialise(networks: Networks) -> None:
    """Residual branches start at nothing, so that training starts from a UNet that passes its input on.

    Token embeddings start at zero: a word that training never showed stays without effect.
    """
    unet = networks.unet
    for module in unet.modules():
        if isinstance(module, TemporalConvolution):
            nn.init.zeros_(module.conv4[-1].weight)
            nn.init.zeros_(module.conv4[-1].bias)
        if isinstance(module, SpatialTransformer | TemporalTransformer):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    nn.init.zeros_(unet.out[-1].weight)
    nn.init.zeros_(unet.out[-1].bias)
    nn.init.zeros_(networks.text_encoder.token_embedding.weight)
    nn.init.normal_(networks.text_encoder.positional_embedding, std=0.02)


class Captions:
    """Words for a clip, as token ids. The exact prompts of the runtime appear often: they are what a run sends."""

    def __init__(self, tokenizer: Path) -> None:
        self._bpe = tokenizers.Tokenizer.from_str(lzma.decompress(tokenizer.read_bytes()).decode())

    def ids(self, text: str) -> Tensor:
        """Token ids ``[77]``."""
        words = self._bpe.encode(clean(text)).ids[: CONTEXT - 2]
        return torch.tensor([START, *words, END] + [0] * (CONTEXT - 2 - len(words)))

    def good(self, rng: np.random.Generator, shows: str) -> Tensor:
        """Words for a good clip; none at all for one in seven."""
        if rng.random() < 1 / 7:
            return self.ids("")
        subject = shows if rng.random() < 0.5 else ""
        if rng.random() < 0.6:
            return self.ids(subject + POSITIVE_PROMPT)
        return self.ids(", ".join([subject, *rng.permutation(QUALITY_WORDS)[: rng.integers(1, 4)]]).strip(", "))

    def bad(self, rng: np.random.Generator, shows: str) -> Tensor:
        """Words for a bad clip."""
        if rng.random() < 0.6:
            return self.ids(NEGATIVE_PROMPT)
        return self.ids(", ".join([shows, *rng.permutation(DEFECT_WORDS)[: rng.integers(1, 4)]]))


class ClipBuffer:
    """Clips on the training device, replaced by fresh ones all the time while batches are drawn from them."""

    def __init__(self, folder: Path, device: torch.device, capacity: int, workers: int, seed: int) -> None:
        # Workers are forked: they must start before the device is touched.
        loader = torch.utils.data.DataLoader(ClipStream(folder, seed), batch_size=None, num_workers=workers)
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
        """``good`` and ``bad`` ``[number, length, 3, *CROP]`` in -1..1, mirrored and reversed at random, and words."""
        ready = min(self.count, self.capacity)
        good, bad, shows = [], [], []
        for index in self._rng.integers(0, ready, number):
            f = self._rng.integers(0, FRAMES - length + 1)
            y, x = self._rng.integers(0, HEIGHT - CROP[0] + 1), self._rng.integers(0, WIDTH - CROP[1] + 1)
            part = (index, slice(f, f + length), slice(None), slice(y, y + CROP[0]), slice(x, x + CROP[1]))
            axes = [axis for axis in (0, 3) if self._rng.random() < 0.5]
            good.append(self.good[part].flip(axes))
            bad.append(self.bad[part].flip(axes))
            shows.append(self.shows[index])
        return as_floats(torch.stack(good)), as_floats(torch.stack(bad)), shows


def as_floats(frames: Tensor) -> Tensor:
    """Bytes to -1..1."""
    return frames.float() / 127.5 - 1


@dataclass
class Run:
    """Everything that a checkpoint holds, and where it lies."""

    stage: str
    path: Path
    networks: Networks
    average: Networks  # exponential moving average of the weights: what is shipped
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    discriminator: Discriminator | None = None
    step: int = 0

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "stage": self.stage,
            "step": self.step,
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)

    def restore(self) -> None:
        """Continue from the checkpoint, or start from one of an earlier stage; nothing happens where there is none."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        if self.discriminator is not None and "discriminator" in state:
            self.discriminator.load_state_dict(state["discriminator"])
        if state["stage"] == self.stage:
            self.step = state["step"]
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])

    @torch.no_grad()
    def update_average(self, parts: tuple[str, ...]) -> None:
        """Let the average follow the weights of ``parts``, at first closely."""
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        for name in parts:
            ours, theirs = list(getattr(self.average, name).parameters()), list(getattr(self.networks, name).parameters())
            torch._foreach_lerp_(ours, theirs, 1 - decay)


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
        progress = run.step / arguments.steps if math.isinf(arguments.until) else low + (high - low) * gone
        share = min(1.0, (run.step - first + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
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
        self.path, self.every, self.sums, self.began = path, every, {}, time.monotonic()
        self.sums: dict[str, Tensor] = {}

    def add(self, step: int, buffer: ClipBuffer, **values: Tensor) -> None:
        """Add one step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
        if (step + 1) % self.every:
            return
        means = {name: round(float(value) / self.every, 5) for name, value in self.sums.items()}
        seconds = time.monotonic() - self.began
        entry = {"step": step + 1, "per_second": round(self.every / seconds, 2), "clips": buffer.count, **means}
        print(json.dumps(entry), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.sums, self.began = {}, time.monotonic()


def train_autoencoder(run: Run, buffer: ClipBuffer, arguments: argparse.Namespace) -> None:
    """L1 + differences + divergence, on good and bad frames alike: the UNet needs codes of both."""
    autoencoder = run.networks.autoencoder
    run.optimizers["autoencoder"] = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    run.restore()
    encode, decode = compiled(arguments, autoencoder.encode, autoencoder.decode)
    log = Log(arguments.log, arguments.every)
    for step in steps(run, arguments, {"autoencoder": arguments.rate}):
        good, bad, _ = buffer.draw(arguments.batch, 2)
        frames = torch.cat([good, bad])[:, 0] if step % 2 else torch.cat([good, bad])[:, 1]
        with autocast(buffer.device):
            moments = encode(frames)
            made = decode(sample(moments))
        loss_pixels = (made.float() - frames).abs().mean()
        loss_differences = gradient_loss(made.float(), frames)
        loss_divergence = divergence(moments)
        loss = loss_pixels + 0.5 * loss_differences + arguments.divergence * loss_divergence
        descend(run.optimizers["autoencoder"], loss, autoencoder)
        run.update_average(("autoencoder",))
        error = ((made.float() - frames) ** 2).mean()
        log.add(step, buffer, l1=loss_pixels, differences=loss_differences, kl=loss_divergence, mse=error)
    run.average.latent_scale.copy_(latent_scale(run.average.autoencoder, buffer))
    run.networks.latent_scale.copy_(run.average.latent_scale)
    print(f"latent scale {float(run.average.latent_scale):.5f}", flush=True)
    run.save()


@torch.no_grad()
def latent_scale(autoencoder: Autoencoder, buffer: ClipBuffer) -> Tensor:
    """What brings latents to unit variance."""
    good, bad, _ = buffer.draw(64, 1)
    return 1 / sample(autoencoder.encode(torch.cat([good, bad])[:, 0])).std()


def sample(moments: Tensor) -> Tensor:
    """A latent drawn from its posterior."""
    mean, logvar = moments.float().chunk(2, 1)
    return mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)


def train_unet(run: Run, buffer: ClipBuffer, arguments: argparse.Namespace) -> None:
    """Teach the UNet to see the good video in the noised latents of the bad one.

    A network input is ``z_t = alpha (z_good + w (z_bad - z_good)) + s eps`` with w = 1 where a run starts and less
    later on, when the solver has moved towards the estimate; the velocity is the one whose denoised estimate
    ``alpha z_t - s v`` is ``z_good``. With w = 0 that is the usual velocity (Salimans & Ho 2022). Where the words
    describe a bad clip, the bad clip itself is wanted: guidance then leads away from it.

    Of every batch a part ("seen") is at little noise and is also decoded and judged as pixels; the rest covers all
    noise levels in latents alone.
    """
    networks, device = run.networks, buffer.device
    run.discriminator = Discriminator().to(device)
    decoder = [networks.autoencoder.decoder, networks.autoencoder.post_quant_conv]
    for parameter in networks.autoencoder.parameters():
        parameter.requires_grad_(False)
    for module in decoder:
        module.requires_grad_(True)
    makers = [*networks.unet.parameters(), *networks.text_encoder.parameters()]
    decoding = [p for m in decoder for p in m.parameters()]
    run.optimizers = {
        "unet": torch.optim.AdamW(makers, betas=(0.9, 0.99), weight_decay=0.0),
        "decoder": torch.optim.AdamW(decoding, betas=(0.9, 0.99), weight_decay=0.0),
        "discriminator": torch.optim.AdamW(run.discriminator.parameters(), betas=(0.5, 0.99), weight_decay=0.0),
    }
    run.restore()
    rates = {"unet": arguments.rate, "decoder": arguments.rate / 2, "discriminator": 2e-4}
    encode, decode, predict = compiled(arguments, networks.autoencoder.encode, networks.autoencoder.decode, networks.unet)
    judge = compiled(arguments, run.discriminator)[0]
    captions = Captions(arguments.tokenizer)
    rng = np.random.default_rng(SEED + run.step)
    levels = torch.from_numpy(Schedule().levels).float().to(device)
    scale = networks.latent_scale
    batch, seen = arguments.batch, arguments.batch * 5 // 8
    log = Log(arguments.log, arguments.every)

    for step in steps(run, arguments, rates):
        good, bad, shows = buffer.draw(batch, LENGTH)
        wants_bad = torch.from_numpy(rng.random(batch) < 0.4).to(device)
        wants_bad[:seen] = False
        ids = torch.stack(
            [captions.bad(rng, s) if b else captions.good(rng, s) for s, b in zip(shows, wants_bad.tolist(), strict=True)]
        ).to(device)
        with torch.no_grad(), autocast(device):
            both = sample(encode(torch.cat([good, bad]).flatten(0, 1))) * scale
        z_good, z_bad = both.unflatten(0, (2 * batch, LENGTH)).transpose(1, 2).chunk(2)
        wanted = torch.where(wants_bad[:, None, None, None, None], z_bad, z_good)

        t = torch.from_numpy(draw_levels(rng, batch, seen)).to(device)
        s = levels[t][:, None, None, None, None]
        alpha = (1 - s**2).sqrt()
        w = torch.from_numpy(draw_mixture(rng, batch)).float().to(device)[:, None, :, None, None]
        x = alpha * (wanted + w * (z_bad - wanted)) + s * torch.randn_like(wanted)
        with autocast(device):
            context = networks.text_encoder(ids)
            velocity = predict(x, t, context).float()
        estimate = alpha * x - s * velocity
        weight = 1 / (s**2 + 0.05)  # the velocity's own loss at high noise, bounded where the noise vanishes
        loss_latents = (weight * (estimate - wanted) ** 2).mean()

        f = int(rng.integers(0, LENGTH - 2))
        true = good[:seen, f : f + 3]
        codes = estimate[:seen, :, f : f + 3].transpose(1, 2).flatten(0, 1)
        clean_codes = z_good[:seen, :, f + 1]  # the decoder must go on decoding clean latents
        with autocast(device):
            decoded = decode(torch.cat([codes, clean_codes]) / scale).float()
        made = decoded[: 3 * seen].unflatten(0, (seen, 3))
        kept = (decoded[3 * seen :] - true[:, 1]).abs().mean()
        loss_pixels = (made - true).abs().mean()
        loss_differences = gradient_loss(made.flatten(0, 1), true.flatten(0, 1))
        loss_flicker = (made.diff(dim=1) - true.diff(dim=1)).abs().mean()
        loss = (
            arguments.latents * loss_latents
            + loss_pixels
            + 0.5 * loss_differences
            + 0.5 * loss_flicker
            + 0.25 * kept
        )
        values = {"latents": loss_latents, "pixels": loss_pixels, "differences": loss_differences, "flicker": loss_flicker}

        middle = bad[:seen, f + 1]
        if step >= arguments.adversarial_from:
            run.discriminator.requires_grad_(False)
            with autocast(device):
                logits, features = judge(made, middle)
                with torch.no_grad():
                    _, real_features = judge(true, middle)
            loss_fooling = -logits.float().mean()
            loss_features = feature_distance(features, real_features)
            share = min(1.0, (step - arguments.adversarial_from + 1) / 300)
            loss = loss + share * (arguments.adversarial * loss_fooling + arguments.features * loss_features)
            values |= {"fooling": loss_fooling, "features": loss_features}
            run.discriminator.requires_grad_(True)
        run.optimizers["decoder"].zero_grad()
        descend(run.optimizers["unet"], loss, networks)
        run.optimizers["decoder"].step()
        if step >= arguments.adversarial_from - 200 and arguments.adversarial > 0:
            with autocast(device):
                loss_judge = hinge(judge(true, middle)[0].float(), judge(made.detach(), middle)[0].float())
            descend(run.optimizers["discriminator"], loss_judge, run.discriminator)
            values |= {"judge": loss_judge}
        run.update_average(("unet", "text_encoder", "autoencoder"))
        log.add(step, buffer, **values)
        if arguments.validate and (step + 1) % arguments.validate == 0:
            validate(run, arguments, captions)
    validate(run, arguments, captions)


def draw_levels(rng: np.random.Generator, batch: int, seen: int) -> np.ndarray[Any, Any]:
    """Time steps ``[batch]``: the first ``seen`` at little noise, the rest at any."""
    little = np.exp(rng.uniform(math.log(LEAST), math.log(USUAL), seen)).astype(np.int64)
    return np.concatenate([little, rng.integers(LEAST, MOST + 1, batch - seen)])


def draw_mixture(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    """How much of the bad video is left in the network's input, per clip and frame ``[batch, LENGTH]``.

    All of it for two in three; at times the first frames are finished already, as where a segment continues another.
    """
    share = np.where(rng.random(batch) < 0.67, 1.0, rng.random(batch))[:, None].repeat(LENGTH, 1)
    share[rng.random(batch) < 0.1, :2] = 0.0
    return share


@torch.no_grad()
def validate(run: Run, arguments: argparse.Namespace, captions: Captions) -> None:
    """One step from a little noise on clips of pictures that are never trained on; prints PSNR and sharpness."""
    device = next(run.networks.parameters()).device
    stream = iter(ClipStream(arguments.pictures, SEED, validation=True))
    clips = getattr(validate, "clips", None) or [next(stream) for _ in range(arguments.validation_clips)]
    validate.clips = clips  # type: ignore[attr-defined]  # made once a run
    levels = Schedule().levels
    context = run.average.text_encoder(captions.ids(POSITIVE_PROMPT)[None].to(device))
    results: dict[str, list[float]] = {}
    for good_bytes, bad_bytes, _ in clips:
        good, bad = (as_floats(b[:LENGTH, :, :264].to(device)) for b in (good_bytes, bad_bytes))
        outputs = {"bilinear": bad, "codes": None}
        with autocast(device):
            z = sample(run.average.autoencoder.encode(torch.cat([bad, good]))) * run.average.latent_scale
            outputs["codes"] = run.average.autoencoder.decode(z[LENGTH:] / run.average.latent_scale).float()
            for t in (10, 30, 60):
                s = float(levels[t])
                alpha = math.sqrt(1 - s * s)
                x = (alpha * z[:LENGTH] + s * torch.randn_like(z[:LENGTH])).transpose(0, 1)[None]
                v = run.average.unet(x, torch.tensor([t], device=device), context).float()
                estimate = (alpha * x - s * v)[0].transpose(0, 1)
                outputs[f"t{t}"] = run.average.autoencoder.decode(estimate / run.average.latent_scale).float()
        for name, made in outputs.items():
            mse = ((made.clamp(-1, 1) - good) ** 2).mean(dim=(1, 2, 3)).clamp_min(1e-6)
            detail = (made.diff(dim=-1).abs().mean() + made.diff(dim=-2).abs().mean()) / (
                good.diff(dim=-1).abs().mean() + good.diff(dim=-2).abs().mean()
            )
            flicker = (made.diff(dim=0) - good.diff(dim=0)).abs().mean() * 127.5
            results.setdefault(name, []).append([float((10 * (4 / mse).log10()).mean()), float(detail), float(flicker)])
    means = {name: [round(float(x), 4) for x in np.mean(rows, 0)] for name, rows in results.items()}
    print(json.dumps({"step": run.step + 1, "psnr, detail, flicker": means}), flush=True)


def compiled(arguments: argparse.Namespace, *functions: Any) -> list[Any]:
    """The functions, compiled where asked for."""
    return [torch.compile(f) if arguments.compile else f for f in functions]


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module) -> None:
    """One step, gradients clipped to length 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 1.0)
    optimizer.step()


def export(checkpoint: Path, target: Path) -> None:
    """The averaged weights as FP16 safetensors, ``NETWORK.TENSOR``, with the latent scale in the header."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    scale = float(state.pop("latent_scale"))
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise SystemExit(f"{checkpoint}: not finite in FP16: {', '.join(broken)}")
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
    """Train one stage, or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stage", choices=["autoencoder", "unet", "export"])
    parser.add_argument("--pictures", type=Path, help="folder that training.pictures made")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--target", type=Path, help="safetensors file that export writes")
    parser.add_argument("--start", type=Path, help="exported weights to start from where there is no checkpoint")
    parser.add_argument("--tokenizer", type=Path, default=Path("engine/data/tokenizer.json.xz"))
    parser.add_argument("--log", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--divergence", type=float, default=1e-3)
    parser.add_argument("--latents", type=float, default=0.05, help="weight of the loss in latents")
    parser.add_argument("--adversarial", type=float, default=0.02)
    parser.add_argument("--adversarial-from", type=int, default=10**9)
    parser.add_argument("--features", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and keep a checkpoint after this long")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), help="part of the decay curve")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--capacity", type=int, default=2000, help="clips kept on the device")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--validate", type=int, default=0)
    parser.add_argument("--validation-clips", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.checkpoint, arguments.target)
        return
    arguments.until = time.monotonic() + arguments.seconds
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    buffer = ClipBuffer(arguments.pictures, device, arguments.capacity, arguments.workers, SEED)
    networks = Networks(MODELS["small"])
    if arguments.start:
        import_weights(networks, arguments.start)
    networks = networks.to(device)
    run = Run(arguments.stage, arguments.checkpoint, networks, copy.deepcopy(networks).requires_grad_(False))
    buffer.wait_for(min(arguments.capacity, 4 * arguments.batch))
    {"autoencoder": train_autoencoder, "unet": train_unet}[arguments.stage](run, buffer, arguments)
    buffer.close()


if __name__ == "__main__":
    main()
