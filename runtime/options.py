"""The options of ``v2v-run``, and how they become the request, the engine set and the time range of a run."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from v2v.core.configs import MODELS, ColorName, GridName
from v2v.core.console import one_of, parse_size
from v2v.core.errors import UsageError
from v2v.engine.backend import BACKENDS
from v2v.engine.choose import named_device
from v2v.engine.store import Wanted
from v2v.runtime.diffusion.image_to_video import Animation
from v2v.runtime.diffusion.loaded import Memory
from v2v.runtime.diffusion.settings import Settings
from v2v.runtime.diffusion.solvers import SOLVERS
from v2v.runtime.films.enhance import Request
from v2v.runtime.media.encoding import CODECS
from v2v.runtime.media.stdio import PIPE, is_pipe
from v2v.runtime.media.time_range import TimeRange, parse_time
from v2v.runtime.settings_file import from_file

PREVIEW_SECONDS = 3


@dataclass(frozen=True)
class RunOptions:
    """The command line of ``v2v-run``; where an option is not given, the model's own default holds."""

    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="A video, a folder of pictures, a picture to make a film of, or - for the standard input. "
            "Many: several of them, 'patterns*', folders of videos; then -o is a folder.",
        ),
    ]
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A file (.mp4, .mkv, .mov, .m4v), a folder/ for PNG pictures, or - for stdout.",
        ),
    ]
    # What the pictures become
    prompt: Annotated[str, typer.Option(help="What the video shows; quality words are added.")] = ""
    negative_prompt: Annotated[
        str | None, typer.Option(help="What it must not look like; default: the reference's words.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None
    solver: Annotated[str | None, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = None
    strength: Annotated[
        float | None, typer.Option(help="Noise level, 0 to 1: how far the result may leave the source.")
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt; 1: no guidance.")
    ] = None
    guidance_rescale: Annotated[
        float | None, typer.Option(help="How much of guidance's added contrast to take back, 0 to 1.")
    ] = None
    guidance_interval: Annotated[
        str | None, typer.Option(help="Noise levels at which guidance acts, as 0.2:0.5: spares evaluations.")
    ] = None
    reuse: Annotated[
        int | None,
        typer.Option(help="2: every second evaluation on features of the one before; needs a set built so."),
    ] = None
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="22 evaluations of the UNet instead of 60: 12 steps of dpmpp_2m, guidance at 0.08:0.56, --reuse 2 "
            "where the engine set can. The video differs from the full run's; other options win over it.",
        ),
    ] = False
    grid: Annotated[
        str | None,
        typer.Option(
            help="fast: 14 steps, far apart in the beginning; normal: --steps; default: the model's."
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = Settings.seed
    size: Annotated[str | None, typer.Option(help="Output's width x height, as 1280x720.")] = None
    scale: Annotated[float | None, typer.Option(help="Output's size over input's; --size wins.")] = None
    color: Annotated[
        str | None, typer.Option(help="wavelet or adain: colours of the source; none: of the model.")
    ] = None
    # Frames between frames
    interpolate: Annotated[
        int | None,
        typer.Option(help="2 to 8: frames that each frame becomes; a model that can, as venhancer."),
    ] = None
    fps: Annotated[
        str | None, typer.Option(help="As --interpolate, to come close to so many frames per second.")
    ] = None
    hint_noise: Annotated[
        int | None, typer.Option(help="0 to 300: noise on what such a model is shown of the source.")
    ] = None
    up_scale: Annotated[
        int | None, typer.Option(help="How much enlarged such a model is told that the source was.")
    ] = None
    # What a picture becomes first
    frames: Annotated[int | None, typer.Option(help="Of a picture: frames of its film.")] = None
    steps_first: Annotated[int | None, typer.Option(help="Of a picture: denoising steps of its film.")] = None
    first_stage: Annotated[
        Path | None,
        typer.Option(help="Of a picture: keep its film as it is before it is enhanced: film.mkv."),
    ] = None
    # What runs it
    model: Annotated[str | None, typer.Option(help=f"One of {', '.join(MODELS)}.")] = None
    engines: Annotated[
        str | None, typer.Option(help="Engine set: a folder, or a name in the store; default: the best.")
    ] = None
    engines_first: Annotated[
        str | None, typer.Option(help="Of a picture: engine set that makes a film of it; default: the best.")
    ] = None
    backend: Annotated[str | None, typer.Option(help=f"One of {', '.join(BACKENDS)}.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, or cuda:1 for the second GPU.")] = None
    memory: Annotated[str, typer.Option(help="low: never hold all engines in memory at once.")] = "high"
    parity: Annotated[
        bool, typer.Option("--parity", help="As the reference: 1280x720, 32 frames, 8 a second, no sound.")
    ] = False
    # How the video is written
    codec: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(CODECS)}; default: h264, for a folder/ png.")
    ] = None
    crf: Annotated[
        int | None, typer.Option(help="Constant quality, lower is better; default: the codec's.")
    ] = None
    preset: Annotated[str | None, typer.Option(help="The encoder's speed, as FFmpeg names it.")] = None
    depth: Annotated[
        int | None,
        typer.Option(help="Bits of a colour: 8, 10, 12 or 16, as the codec has them; default: the input's."),
    ] = None
    convert: Annotated[
        bool,
        typer.Option(
            "--convert/--no-convert",
            help="Convert sound and subtitles that the output's format cannot hold; else they are left out.",
        ),
    ] = True
    # What of the source is read, and how
    deinterlace: Annotated[
        bool,
        typer.Option(
            "--deinterlace/--no-deinterlace",
            help="Make whole frames of interlaced ones, which the model does not know.",
        ),
    ] = True
    rate: Annotated[
        str | None, typer.Option(help="Pictures per second of a folder, as 25 or 30000/1001.")
    ] = None
    start: Annotated[str | None, typer.Option(help="Enhance from here on: seconds, mm:ss or hh:mm:ss.")] = (
        None
    )
    end: Annotated[str | None, typer.Option(help="Enhance what begins before: seconds, mm:ss.")] = None
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="[SECONDS]",
            help=f"A few seconds ({PREVIEW_SECONDS}) from the middle or --start, the source on the left.",
        ),
    ] = None
    cuts: Annotated[
        bool, typer.Option("--cuts/--no-cuts", help="Find cuts, so that shots do not run into each other.")
    ] = True
    # What else
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            is_eager=True,
            callback=from_file,
            help="Options from a .toml or .json file, or those of a video that v2v has made; others win over it.",
        ),
    ] = None
    compare: Annotated[
        Path | None, typer.Option(help="Also write a page with a slider between before and after: page.html.")
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page on the run: where its time went, sharpness, flicker: page.html."
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would be done, and what time and memory it would take."
        ),
    ] = False
    prompt_file: Annotated[
        Path | None, typer.Option(help="A prompt for each video: lines 'name: prompt', or .csv, or .json.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work; on cuda each has its own GPU.")
    ] = None
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that shares the work; local starts one here.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of going on with an unfinished run.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done, as JSON.")] = False

    def settings(self) -> Settings:
        """The settings of the diffusion.

        Raises:
            UsageError: an option that cannot be read.
        """
        size = None if self.size is None else parse_size(self.size)[::-1]
        interval = None if self.guidance_interval is None else parse_interval(self.guidance_interval)
        return Settings(
            self.prompt,
            self.negative_prompt,
            steps=self.steps,
            solver=self.solver,
            strength=self.strength,
            guidance=self.guidance,
            guidance_rescale=self.guidance_rescale,
            guidance_interval=interval,
            reuse=self.reuse,
            fast=self.fast,
            seed=self.seed,
            size=size,
            scale=self.scale,
            color=cast(ColorName | None, self.color),
            depth=self.depth,
            parity=self.parity,
            grid=None if self.grid is None else one_of("--grid", self.grid, get_args(GridName)),
            interpolate=self.interpolate,
            hint_noise=self.hint_noise,
            up_scale=self.up_scale,
        )

    def animation(self) -> Animation:
        """How a picture becomes a film."""
        return Animation(self.frames, self.steps_first, seed=self.seed, parity=self.parity)

    def check_pictures(self, pictures: int, *, many: bool) -> None:
        """Refuse what has no meaning with, or without, ``pictures`` among the inputs.

        Raises:
            UsageError: names the flag.
        """
        of_pictures = {
            "--frames": self.frames,
            "--steps-first": self.steps_first,
            "--first-stage": self.first_stage,
            "--engines-first": self.engines_first,
        }
        of_videos = {
            "--start": self.start,
            "--end": self.end,
            "--preview": self.preview,
            "--compare": self.compare,
            "--report": self.report,
        }
        for flag, given in (of_videos if pictures else of_pictures).items():
            if given is not None and pictures:
                raise UsageError(
                    f"{flag} is for videos, and INPUT is a picture that becomes one; leave it out"
                )
            if given is not None:
                raise UsageError(f"{flag} is for a picture that becomes a film, and no INPUT is one")
        if pictures and many and self.first_stage is not None:
            raise UsageError("--first-stage names one file; give one picture, or leave it out")

    def wanted(self) -> Wanted:
        """What the engine set must be.

        Raises:
            UsageError: there is no such model, backend or device.
        """
        choices: dict[str, Any] = {}
        for name, allowed in (
            ("model", tuple(MODELS)),
            ("backend", tuple(BACKENDS)),
        ):
            value = getattr(self, name)
            choices[name] = None if value is None else one_of(f"--{name}", value, allowed)
        return Wanted(**choices, device=named_device(self.device))

    def memory_mode(self) -> Memory:
        """Whether engines may be in memory together.

        Raises:
            UsageError: neither low nor high.
        """
        mode: Memory = one_of("--memory", self.memory, get_args(Memory))
        return mode

    def time_range(self) -> TimeRange:
        """The part of the film to enhance.

        Raises:
            UsageError: a time that cannot be read, or an end before the start.
        """
        flags = (("--start", self.start), ("--end", self.end), ("--preview", self.preview))
        return TimeRange(*(None if text is None else parse_time(flag, text) for flag, text in flags))

    def request(self, *, many: bool) -> Request:
        """Everything about the run that does not depend on the video.

        Raises:
            UsageError: options that cannot be read, or that contradict each other.
        """
        codec = self.codec or ("png" if self.output.endswith("/") and not many else "h264")
        self._check_together(codec, many=many)
        return Request(
            settings=self.settings(),
            time_range=self.time_range(),
            codec=codec,
            crf=self.crf,
            preset=self.preset,
            rate=parse_rate(self.rate),
            fps=parse_rate(self.fps, "--fps"),
            deinterlace=self.deinterlace,
            find_cuts=self.cuts,
            convert=self.convert,
            overwrite=self.overwrite,
            restart=self.restart,
        )

    def _check_together(self, codec: str, *, many: bool) -> None:
        """Refuse options that contradict each other."""
        if self.report is not None and (many or self.output == PIPE):
            raise UsageError("--report is on one video: name one for INPUT, and a file or a folder for -o")
        if self.dry_run and any(name == PIPE or is_pipe(Path(name)) for name in self.inputs):
            raise UsageError("--dry-run reads INPUT, and from a pipe that is possible only once; name a file")
        if self.compare is not None:
            if many or self.output == PIPE or codec == "png" or self.inputs[0] == PIPE:
                raise UsageError("--compare needs files: name one video for INPUT and one for -o")
            if self.preview is not None:
                raise UsageError("--compare and --preview both show before and after; leave one of them out")
        if self.fps is not None and self.interpolate is not None:
            raise UsageError("--fps and --interpolate say the same in two ways; leave one of them out")
        if self.output == PIPE:
            self._check_pipe(codec)
        elif codec == "y4m":
            raise UsageError("--codec y4m is for pipes: give -o -, or choose another codec")

    def _check_pipe(self, codec: str) -> None:
        """Refuse what does not go with ``-o -``."""
        if codec == "png":
            raise UsageError("--codec png makes a folder of pictures; name one with -o, as -o pictures/")
        if self.ray is not None or (self.workers or 1) > 1:
            flag = "--workers" if self.ray is None else "--ray"
            raise UsageError(
                f"{flag}: workers finish a film's parts in any order, and -o - sends them as they come; leave it out, "
                "or name a file with -o"
            )
        if self.as_json and not self.dry_run:
            raise UsageError("--json and -o - both write to the standard output; leave one of them out")


def parse_rate(text: str | None, flag: str = "--rate") -> Fraction | None:
    """Pictures per second of ``25`` or ``30000/1001``.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise UsageError(f"{flag} must be pictures per second, as 25 or 30000/1001, not '{text}'")
    return rate


def parse_interval(text: str) -> tuple[float, float]:
    """Two shares of the noise levels, as ``0.2:0.5``.

    Raises:
        UsageError: anything else.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UsageError(
            f"--guidance-interval {text}: give two noise levels from 0 to 1, as 0.2:0.5"
        ) from None
    return low, high
