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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.clips import DEFECT_WORDS, FRAMES, HEIGHT, QUALITY_WORDS, WIDTH, ClipStream
from training.losses import Discriminator, divergence, feature_distance, gradient_loss, hinge
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

WORDS = MODELS["small"].words
SEED = 20240
CROP = (136, 128)  # pixels; the UNet takes heights of 8 modulo 16 and widths of 0 modulo 16
LENGTH = 8  # frames of a training clip
NETWORKS = ("autoencoder", "unet", "text_encoder")

# Noise levels. Enhancing starts from the noised latents of the bad video, so little noise keeps most of the picture:
# that is where most training happens. The rest covers all levels up to the reference's 599.
LEAST, USUAL, MOST = 15, 80, 599


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
    last: list[nn.Module] = [networks.unet.out[-1]]
    for module in networks.modules():
        if isinstance(module, ResnetBlock):
            last.append(module.conv2)
        elif isinstance(module, ResBlock):
            last.append(module.out_layers[-1])
        elif isinstance(module, TemporalConvolution):
            last.append(module.conv4[-1])
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
    progress: float = 0.0  # along the curve of learning rates, 0..1

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
            ours, theirs = (
                list(getattr(self.average, name).parameters()),
                list(getattr(self.networks, name).parameters()),
            )
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


def train_autoencoder(run: Run, buffer: ClipBuffer, arguments: argparse.Namespace) -> None:
    """L1 + differences + divergence, on good and bad frames alike: the UNet needs codes of both."""
    autoencoder = run.networks.autoencoder
    run.optimizers["autoencoder"] = adam(autoencoder.parameters())
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
        descend(loss, run.optimizers["autoencoder"])
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
        "unet": adam(makers),
        "decoder": adam(decoding),
        "discriminator": adam(run.discriminator.parameters(), momentum=0.5),
    }
    run.restore()
    rates = {"unet": arguments.rate, "decoder": arguments.rate / 2, "discriminator": 2e-4}
    encode, decode, predict = compiled(
        arguments, networks.autoencoder.encode, networks.autoencoder.decode, networks.unet
    )
    judge = compiled(arguments, run.discriminator)[0]
    captions = Captions(arguments.tokenizer)
    validate = Validation(arguments, captions, device)
    rng = np.random.default_rng(SEED + run.step)
    levels = torch.from_numpy(Schedule().levels).float().to(device)
    scale = networks.latent_scale
    batch, seen = arguments.batch, arguments.batch * 3 // 4
    log = Log(arguments.log, arguments.every)

    for step in steps(run, arguments, rates):
        good, bad, shows = buffer.draw(batch, LENGTH)
        wants_bad = torch.from_numpy(rng.random(batch) < 0.4).to(device)
        wants_bad[:seen] = False
        ids = torch.stack(
            [
                captions.bad(rng, s) if b else captions.good(rng, s)
                for s, b in zip(shows, wants_bad.tolist(), strict=True)
            ]
        ).to(device)
        with torch.no_grad(), autocast(device):
            both = sample(encode(torch.cat([good, bad]).flatten(0, 1))) * scale
        z_good, z_bad = both.view(2 * batch, LENGTH, *both.shape[1:]).transpose(1, 2).chunk(2)
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
        values = {
            "latents": loss_latents,
            "pixels": loss_pixels,
            "differences": loss_differences,
            "flicker": loss_flicker,
        }

        middle = bad[:seen, f + 1]
        if run.progress >= arguments.adversarial_from:
            run.discriminator.requires_grad_(False)
            with autocast(device):
                logits, features = judge(made, middle)
                with torch.no_grad():
                    _, real_features = judge(true, middle)
            loss_fooling = -logits.float().mean()
            loss_features = feature_distance(features, real_features)
            share = min(1.0, (run.progress - arguments.adversarial_from) / 0.1)
            loss = loss + share * (arguments.adversarial * loss_fooling + arguments.features * loss_features)
            values |= {"fooling": loss_fooling, "features": loss_features}
            run.discriminator.requires_grad_(True)
        descend(loss, run.optimizers["unet"], run.optimizers["decoder"])
        if run.progress >= arguments.adversarial_from - 0.05:
            with autocast(device):
                loss_judge = hinge(judge(true, middle)[0].float(), judge(made.detach(), middle)[0].float())
            descend(loss_judge, run.optimizers["discriminator"])
            values |= {"judge": loss_judge}
        run.update_average(("unet", "text_encoder", "autoencoder"))
        log.add(step, buffer, **values)
        if arguments.validate and (step + 1) % arguments.validate == 0:
            validate(run)
    validate(run)


def draw_levels(rng: np.random.Generator, batch: int, seen: int) -> np.ndarray[Any, Any]:
    """Time steps ``[batch]``: the first ``seen`` at little noise, half of the rest too, the others at any."""
    few = seen + (batch - seen) // 2
    little = np.exp(rng.uniform(math.log(LEAST), math.log(USUAL), few)).astype(np.int64)
    return np.concatenate([little, rng.integers(LEAST, MOST + 1, batch - few)])


def draw_mixture(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    """How much of the bad video is left in the network's input, per clip and frame ``[batch, LENGTH]``.

    All of it for two in three; at times the first frames are finished already, as where a segment continues another.
    """
    share = np.where(rng.random(batch) < 0.67, 1.0, rng.random(batch))[:, None].repeat(LENGTH, 1)
    share[rng.random(batch) < 0.1, :2] = 0.0
    return share


class Validation:
    """Clips of pictures that are never trained on."""

    def __init__(self, arguments: argparse.Namespace, captions: Captions, device: torch.device) -> None:
        stream = iter(ClipStream(arguments.pictures, SEED, validation=True))
        clips = [next(stream) for _ in range(arguments.validation_clips)]
        # The UNet takes heights of 8 modulo 16.
        self.clips = [[as_floats(b[:LENGTH, :, :264].to(device)) for b in clip[:2]] for clip in clips]
        self.ids = captions.ids(WORDS.positive)[None].to(device)

    @torch.no_grad()
    def __call__(self, run: Run) -> None:
        """Print PSNR, detail (gradients, 1 is that of the good clip) and flicker of one step from a little noise."""
        networks, scale, levels = run.average, run.average.latent_scale, Schedule().levels
        context = networks.text_encoder(self.ids)
        results: dict[str, list[list[float]]] = {}
        for good, bad in self.clips:
            with autocast(good.device):
                z = sample(networks.autoencoder.encode(torch.cat([bad, good]))) * scale
                outputs = {"bilinear": bad, "codes": networks.autoencoder.decode(z[LENGTH:] / scale).float()}
                for t in (20, 30, 60):
                    s = float(levels[t])
                    alpha = math.sqrt(1 - s * s)
                    x = (alpha * z[:LENGTH] + s * torch.randn_like(z[:LENGTH])).transpose(0, 1)[None]
                    v = networks.unet(x, torch.tensor([t], device=good.device), context).float()
                    estimate = (alpha * x - s * v)[0].transpose(0, 1)
                    outputs[f"t{t}"] = networks.autoencoder.decode(estimate / scale).float()
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("stage", choices=["autoencoder", "unet", "export"])
    parser.add_argument("--pictures", type=Path, help="folder that training.pictures made")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--target", type=Path, help="safetensors file that export writes")
    parser.add_argument(
        "--start", type=Path, help="exported weights to start from where there is no checkpoint"
    )
    parser.add_argument("--tokenizer", type=Path, default=Path("engine/data/tokenizer.json.xz"))
    parser.add_argument("--log", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--divergence", type=float, default=3e-4)
    parser.add_argument("--latents", type=float, default=0.05, help="weight of the loss in latents")
    parser.add_argument("--adversarial", type=float, default=0.02)
    parser.add_argument(
        "--adversarial-from", type=float, default=0.3, help="point of the curve where it starts"
    )
    parser.add_argument("--features", type=float, default=0.2)
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
