"""What becomes of each stream beside the pictures, decided by trial before the first picture.

A stream is copied if the output's format takes it: its header, its first packets and the trailer are written, into
memory, by the same code that writes the film. Otherwise it is converted, if that is wanted and works, or left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import av
import av.container
from av.bitstream import BitStreamFilterContext

from v2v.runtime.media.clock import FilmClock, Packet
from v2v.runtime.media.conversion import SoundConverter, SubtitleConverter, is_unusual, wanted_codec
from v2v.runtime.media.errors import warn
from v2v.runtime.media.formats import FORMATS, Y4M_ENDING, ending_of, is_cover, reason_of, reasons_kept
from v2v.runtime.media.packet_order import PacketOrder
from v2v.runtime.media.pipe_in import Inflow, Source
from v2v.runtime.media.streams import all_packets, describe, looked_at
from v2v.runtime.media.tags import TagPlan, film_tags, plan_tags, stream_tags

Action = Literal["copy", "convert", "attach", "fold in", "leave out"]
"""To fold in: what it says is said of the film; to attach: as a file inside of the file."""
Converter = SoundConverter | SubtitleConverter

_TRIED_PACKETS = 8  # of each stream
_LOOKED_AT = 32 << 20, 20_000  # bytes and packets of a file in which they are looked for
_LOOKED_AT_IN_PIPE = 4 << 20, 300  # the same where the pictures wait for it
_REFUSALS = (av.FFmpegError, ValueError, TypeError, AttributeError, NotImplementedError, MemoryError)
_STAND_INS = {"audio": ("aac", "mp3"), "subtitle": ("subrip", "mov_text"), "video": ("mpeg4", "h264")}
_ROLES = {
    "forced": 0x40,  # FFmpeg's dispositions
    "for those who hear badly": 0x80,
    "for those who see badly": 0x100,
    "a comment": 0x8,
    "dubbed": 0x2,
    "the original": 0x4,
}
_TAKES_STAND_INS = tuple(int(part) for part in av.__version__.split(".")[:2]) >= (
    18,
    1,
)  # before it, they crash
_LAYERS = {"mp1": "mp3", "mp2": "mp3", "ssa": "ass"}  # MP4 calls all layers of MPEG sound the same
_NAMES = {"libopus": "Opus", "aac": "AAC", "flac": "FLAC", "mov_text": "MP4's own text", "subrip": "SRT"}


@dataclass(frozen=True)
class Fate:
    """What becomes of one stream."""

    index: int
    description: str  # as a person calls it
    action: Action
    codec: str = ""  # FFmpeg's name of what it is converted to
    reason: str = ""  # why it is not copied
    keeper: str | None = None  # ending of files that would keep it as it is
    content: bytes = field(default=b"", repr=False)  # of a cover picture that is attached
    unsaid: tuple[str, ...] = ()  # whom it is for, where the format cannot say that

    @property
    def outcome(self) -> str:
        """The outcome in words, for the table that users see."""
        keeper_text = f"; {self.keeper} keeps it as it is" if self.keeper else ""
        unsaid_text = f", but not that it is {' and '.join(self.unsaid)}" if self.unsaid else ""
        if self.action == "convert":
            return f"converted to {_NAMES[self.codec]}{unsaid_text}{keeper_text}"
        if self.action == "leave out":
            return f"left out: {self.reason}{keeper_text}"
        return f"kept{unsaid_text}"

    @property
    def is_changed(self) -> bool:
        """Whether the stream is converted, left out, or loses what it says of its audience."""
        return self.action in ("convert", "leave out") or bool(self.unsaid)


@dataclass(frozen=True)
class StreamPlan:
    """The fates of all streams of ``source`` but that of the pictures, in ``target``."""

    source: Source
    target: Path
    fates: tuple[Fate, ...] = ()
    tags: TagPlan = field(default_factory=TagPlan)

    def tell(self) -> None:
        """Tell of the streams that do not stay as they are, in one table, and of tags that have no place."""
        if self.tags.lost:
            names = ", ".join(self.tags.lost)
            warn(f"{self.source.name} in {self.target.name}: no place for the tags {names}; .mkv keeps them")
        if any(fate.is_changed for fate in self.fates):
            width = max(len(fate.description) for fate in self.fates)
            rows = (
                f"stream {fate.index:2} ({fate.description}){'':{width - len(fate.description)}} {fate.outcome}"
                for fate in self.fates
            )
            warn("\n".join([f"{self.source.name} in {self.target.name}:", *rows]))

    def kept(self) -> tuple[Fate, ...]:
        """The streams that go along."""
        return tuple(fate for fate in self.fates if fate.action not in ("fold in", "leave out"))

    @property
    def have_packets(self) -> bool:
        """Whether anything that goes along comes with the pictures, and not at the beginning alone."""
        return any(
            fate.action != "attach" and not fate.description.startswith("attachment") for fate in self.kept()
        )

    def without(self, unwanted: Iterable[int]) -> StreamPlan:
        """The same with streams left out."""
        indices = set(unwanted)
        return replace(self, fates=tuple(fate for fate in self.fates if fate.index not in indices))


def plan_streams(source: Source, skip: int, target: Path, *, convert: bool = True) -> StreamPlan:
    """Decide what becomes of each stream of ``source`` but number ``skip``; reads the beginning of the file.

    ``convert``: what cannot be copied may be made into something else.
    """
    if target.suffix == Y4M_ENDING:
        return _without_others(source, skip, target)
    container_format = FORMATS[target.suffix.lower()]
    with looked_at(source) as opened, reasons_kept():
        others = [stream for stream in opened.streams if stream.index != skip]
        tags = plan_tags(film_tags(opened), container_format, cover=any(map(is_cover, others)))
        if not others:
            return StreamPlan(source, target, tags=tags)
        samples = _first_packets(opened, {stream.index for stream in others}, live=isinstance(source, Inflow))
        fates = [_fate(stream, samples.get(stream.index, []), container_format, convert) for stream in others]
        plan = StreamPlan(source, target, tuple(fates), tags)
        plan = _fitting_together(plan, opened, samples, container_format)
        return _with_roles(plan, opened, samples, container_format)


def _without_others(source: Source, skip: int, target: Path) -> StreamPlan:
    """The plan of a format that holds pictures alone."""
    reason = "y4m holds pictures alone"
    with looked_at(source) as opened:
        fates = tuple(
            Fate(stream.index, describe(stream), "leave out", reason=reason, keeper=ending_of("matroska"))
            for stream in opened.streams
            if stream.index != skip
        )
    return StreamPlan(source, target, fates)


def declare(
    fate: Fate, stream: Any, output: av.container.OutputContainer, *, whole: bool = True
) -> tuple[Any, Converter | None]:
    """Add what ``stream`` becomes to ``output``; returns it and what converts its packets, if anything does.

    Raises:
        av.FFmpegError, ValueError: FFmpeg refuses it.
    """
    converter: Converter | None = None
    if stream.type == "attachment":
        return output.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data), None
    if fate.action == "attach":
        name, kind = _cover_name(stream)
        return output.add_attachment(name, kind, fate.content), None
    if fate.action == "convert":
        make = SoundConverter if stream.type == "audio" else SubtitleConverter
        converter = make(stream, output, fate.codec)
        track = converter.track
    else:
        track = _copy_of(stream, output)
    track.metadata.update(stream_tags(stream, whole=whole and converter is None))
    track.disposition = stream.disposition
    return track, converter


def _copy_of(stream: Any, output: av.container.OutputContainer) -> Any:
    """A stream of ``output`` that takes the packets of ``stream`` as they are."""
    try:
        return output.add_stream_from_template(stream, opaque=True)
    except ValueError:  # PyAV asks for codecs that a format knows by name; FFmpeg's muxers take more
        for stand_in in _STAND_INS.get(stream.type, ()) if _TAKES_STAND_INS else ():
            try:
                track = output.add_mux_stream(stand_in)
            except ValueError:
                continue
            BitStreamFilterContext("null", stream, track)  # replaces all that the stand-in said
            track.time_base = stream.time_base
            return track
        raise


def _cover_name(stream: Any) -> tuple[str, str]:
    """File name and type under which Matroska's players know a cover picture."""
    codec = str(_codec_of(stream))
    types = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
    ending, kind = types.get(codec, (codec, f"image/{codec}"))
    tags: dict[str, str] = {key.lower(): value for key, value in stream.metadata.items()}
    return tags.get("filename", f"cover.{ending}"), tags.get("mimetype", kind)


def _first_packets(
    opened: av.container.InputContainer, indices: set[int], *, live: bool
) -> dict[int, list[Packet]]:
    """Some packets of each stream, under the film's time stamps; what is ``live`` is not waited for long."""
    samples: dict[int, list[Packet]] = {}
    most_bytes, most = _LOOKED_AT_IN_PIPE if live else _LOOKED_AT
    sparse = ("attachment", "subtitle", "data") if live else ("attachment",)
    silent = {
        stream.index for stream in opened.streams if stream.index in indices and stream.type not in sparse
    }
    for number, packet in enumerate(all_packets(opened, FilmClock.of(opened))):
        index = packet.stream.index
        if packet.size and index in indices and len(samples.setdefault(index, [])) < _TRIED_PACKETS:
            samples[index].append(packet)
            if len(samples[index]) == _TRIED_PACKETS or is_cover(packet.stream):
                silent.discard(index)
        most_bytes -= packet.size
        if not silent or most_bytes < 0 or number > most:
            break
    return samples


def _fate(stream: Any, sample: Sequence[Packet], container_format: str, convert: bool) -> Fate:
    fate = Fate(stream.index, describe(stream), "copy")
    if stream.type == "data" and "timecode" in stream.metadata:
        return replace(fate, action="fold in")
    if is_cover(stream) and container_format == "matroska":
        if not sample:
            return replace(fate, action="leave out", reason="it holds no picture")
        return replace(fate, action="attach", content=bytes(sample[0]))
    codec = wanted_codec(stream, container_format) if convert else None
    refused = _refusal(fate, stream, sample, container_format)
    unusual = codec is not None and is_unusual(stream, container_format)
    if refused is None and not unusual:
        return fate
    keeper = _keeper(fate, stream, sample, container_format)
    if codec is not None:
        converted = replace(fate, action="convert", codec=codec, keeper=keeper)
        conversion_refusal = _refusal(converted, stream, sample, container_format)
        if conversion_refusal is None:
            return converted
        refused = refused and f"{refused}; it cannot be converted ({conversion_refusal})"
    if refused is None:
        return fate
    return replace(fate, action="leave out", reason=refused, keeper=keeper)


def _keeper(fate: Fate, stream: Any, sample: Sequence[Packet], container_format: str) -> str | None:
    """Ending of the files that would keep a stream as it is."""
    others = ("matroska", "mp4", "mov")
    return next(
        (
            ending_of(other)
            for other in others
            if other != container_format
            and not is_unusual(stream, other)
            and _refusal(fate, stream, sample, other) is None
        ),
        None,
    )


def _refusal(fate: Fate, stream: Any, sample: Sequence[Packet], container_format: str) -> str | None:
    """Why a format does not take a stream, or None if it does."""
    if stream.type == "attachment" and container_format != "matroska":
        return "the format has no attachments"
    return _trial([fate], {stream.index: stream}, {stream.index: sample}, container_format)


def _fitting_together(
    plan: StreamPlan,
    opened: av.container.InputContainer,
    samples: dict[int, list[Packet]],
    container_format: str,
) -> StreamPlan:
    """Leave out what does not go beside the others, the last streams first."""
    streams = {stream.index: stream for stream in opened.streams}
    while (kept := plan.kept()) and len(kept) > 1:
        reason = _trial(kept, streams, samples, container_format)
        if reason is None:
            break
        removed = replace(kept[-1], action="leave out", reason=reason)
        plan = replace(
            plan, fates=tuple(removed if fate.index == removed.index else fate for fate in plan.fates)
        )
    return plan


def _with_roles(
    plan: StreamPlan,
    opened: av.container.InputContainer,
    samples: dict[int, list[Packet]],
    container_format: str,
) -> StreamPlan:
    """Find out by trial which roles of the streams (forced, dubbed and the like) the format loses."""
    streams = {stream.index: stream for stream in opened.streams}
    kept = [fate for fate in plan.kept() if streams[fate.index].type in ("audio", "subtitle")]
    if not any(_roles(streams[fate.index]) for fate in kept):
        return plan
    file = io.BytesIO()
    if _trial(kept, streams, samples, container_format, file) is not None:
        return plan
    file.seek(0)
    with av.open(file) as reread:
        roles_reread = {
            kind: [_roles(stream) for stream in reread.streams if stream.type == kind]
            for kind in ("audio", "subtitle")
        }
    unsaid: dict[int, tuple[str, ...]] = {}
    for fate in kept:
        remaining = roles_reread[streams[fate.index].type]
        unsaid[fate.index] = tuple(
            sorted(_roles(streams[fate.index]) - (remaining.pop(0) if remaining else set()))
        )
    fates = tuple(replace(fate, unsaid=unsaid.get(fate.index, ())) for fate in plan.fates)
    return replace(plan, fates=fates)


def _roles(stream: Any) -> set[str]:
    """The roles of a stream (:data:`_ROLES`), in words."""
    disposition = int(stream.disposition)
    return {name for name, role in _ROLES.items() if disposition & role}


def _trial(
    fates: Sequence[Fate],
    streams: dict[int, Any],
    samples: dict[int, list[Packet]] | dict[int, Sequence[Packet]],
    container_format: str,
    file: io.BytesIO | None = None,
) -> str | None:
    """Write streams into memory, beside a picture; returns why that fails, or None."""
    file = io.BytesIO() if file is None else file
    try:
        with av.open(file, "w", format=container_format) as output:
            pictures = output.add_stream("mpeg4", rate=25, width=16, height=16)
            declared = [(fate, *declare(fate, streams[fate.index], output)) for fate in fates]
            output.start_encoding()
            for packet in pictures.encode(av.VideoFrame(16, 16, "yuv420p")):
                output.mux_one(packet)
            for fate, track, converter in declared:
                order = PacketOrder(output)
                for packet in _packets_for(samples.get(fate.index, ()), track, converter):
                    order(packet)
                    output.mux_one(packet)
        codecs = [_codec_of(streams[fate.index]) for fate in fates if fate.action == "copy"]
        return _unreadable(file, [codec for codec in codecs if codec])
    except _REFUSALS as error:
        return reason_of(error)


def _unreadable(file: io.BytesIO, codecs: Sequence[str]) -> str | None:
    """Why a file that was written is not as planned: the first of ``codecs`` that it lacks when it is read again."""
    file.seek(0)
    with av.open(file) as reread:
        codecs_reread = [_codec_of(stream) for stream in reread.streams]
    missing = next((codec for codec in codecs if codecs.count(codec) > codecs_reread.count(codec)), None)
    return f"nothing reads {missing} in this format" if missing else None


def _codec_of(stream: Any) -> str | None:
    """The canonical name of a stream's codec, of those with one decoder the last; None where FFmpeg has none."""
    name = stream.codec_context.codec.canonical_name if stream.codec_context else None
    return _LAYERS.get(str(name), name)


def _packets_for(sample: Sequence[Packet], track: Any, converter: Converter | None) -> Iterator[Packet]:
    """The packets for ``track`` that ``sample`` gives; raises only if all of them are damaged."""
    refused: Exception | None = None
    worked = False
    for packet in sample:
        if converter is not None:
            try:
                yield from converter.convert(packet)
                worked = True
            except av.FFmpegError as error:
                refused = error
        elif track.type != "attachment":
            copied: Packet = av.Packet(bytes(packet))
            copied.pts, copied.dts, copied.duration = packet.pts, packet.dts, packet.duration
            copied.time_base, copied.is_keyframe, copied.stream = packet.time_base, packet.is_keyframe, track
            yield copied
    if refused is not None and not worked:
        raise refused
