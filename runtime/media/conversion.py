"""Streams that a container cannot hold as they are, made into ones that it can: sound, and subtitles that are text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.codec
import av.container
from av.audio.resampler import AudioResampler
from av.subtitles.subtitle import SubtitleSet

from v2v.runtime.media.clock import Packet

_MILLISECOND = Fraction(1, 1000)
_ROUNDING = Fraction(1, 20)  # seconds by which stamps of sound may be off
_SHOWN = 3000  # milliseconds that a subtitle is shown which does not say for how long
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_BITS_A_CHANNEL = 96_000  # a second: enough that nobody hears the difference
_LOSSLESS = ("pcm_", "flac", "alac", "wavpack", "truehd", "mlp", "tta", "ape", "shorten", "tak", "als", "dst")
_SHORT_FORMATS = ("u8", "u8p", "s16", "s16p")  # samples that 16 bits hold


def wanted_codec(stream: Any, container_format: str) -> str | None:
    """FFmpeg's name of what ``stream`` becomes in a format that does not take it; None: nothing is known."""
    context = stream.codec_context
    if context is None:
        return None
    if stream.type == "audio":
        if container_format != "matroska":
            return "aac"
        return "flac" if context.name.startswith(_LOSSLESS) else "libopus"
    if stream.type == "subtitle" and context.codec.text_sub:
        return "mov_text" if container_format != "matroska" else "subrip"
    return None


def is_unusual(stream: Any, container_format: str) -> bool:
    """Whether FFmpeg can put ``stream`` into a format in a way that few players know."""
    context = stream.codec_context
    return container_format == "mp4" and context is not None and context.name.startswith("pcm_")


class SoundConverter:
    """Decodes the packets of a stream and encodes them anew as a track of ``output``.

    Raises:
        av.FFmpegError, ValueError: there is no way to encode it.
    """

    def __init__(self, stream: Any, output: av.container.OutputContainer, codec: str) -> None:
        context = stream.codec_context
        channels = max(context.channels, 1)
        add: Any = output.add_stream
        self.track = add(codec, rate=_rate(context.sample_rate, codec))
        self.track.layout = context.layout.name if channels > 2 else ("mono", "stereo")[channels - 1]
        if codec == "flac":
            self.track.format = "s16" if context.format.name in _SHORT_FORMATS else "s32"
        else:
            self.track.bit_rate = channels * min(_BITS_A_CHANNEL, 6 * self.track.rate)
        self.track.codec_context.flags |= av.codec.context.Flags.bitexact
        self._resampler: AudioResampler | None = None
        self._next: int | None = None  # the place of the next sample in the film

    def convert(self, packet: Packet) -> Iterator[Packet]:
        """The packets of the track that one packet of the stream gives.

        Raises:
            av.FFmpegError, ValueError: it is damaged.
        """
        yield from self._encoded(packet.decode())

    def flush(self, mark: Packet) -> Iterator[Packet]:
        """The rest; ``mark`` is the empty packet that ends the stream."""
        yield from self._encoded(mark.decode())
        if self._resampler is not None:
            for frame in self._resampler.resample(None):
                for placed in self._in_place(frame):
                    yield from self.track.encode(placed)
        yield from self.track.encode(None)

    def _encoded(self, frames: Iterable[Any]) -> Iterator[Packet]:
        for frame in frames:
            for fitting in self._resampled(frame):
                for placed in self._in_place(fitting):
                    yield from self.track.encode(placed)

    def _in_place(self, frame: Any) -> Iterator[Any]:
        """Place ``frame`` right behind the samples before it; small differences are rounding, a gap becomes silence."""
        rate = self.track.rate
        if frame.pts is not None:
            sample = round(frame.pts * frame.time_base * rate)
            if self._next is None:
                self._next = sample
            while sample - self._next > _ROUNDING * rate:
                silence = _silence(frame, min(sample - self._next, rate))
                silence.pts, silence.time_base = self._next, Fraction(1, rate)
                self._next += silence.samples
                yield silence
        frame.pts, frame.time_base = self._next or 0, Fraction(1, rate)
        self._next = (self._next or 0) + frame.samples
        yield frame

    def _resampled(self, frame: Any) -> list[Any]:
        resampled: list[Any] = []
        for _ in range(2):
            if self._resampler is None:
                self._resampler = AudioResampler(self.track.format, self.track.layout, self.track.rate)
            try:
                return resampled + list(self._resampler.resample(frame))
            except ValueError:  # the sound has changed its form
                resampled, self._resampler = list(self._resampler.resample(None)), None
        return resampled


class SubtitleConverter:
    """Turns text subtitles of one format into another, for a track of ``output``.

    Raises:
        av.FFmpegError, ValueError: there is no way to encode it.
    """

    def __init__(self, stream: Any, output: av.container.OutputContainer, codec: str) -> None:
        stream.codec_context.open(strict=False)
        add: Any = output.add_stream
        self.track = add(codec)
        self.track.codec_context.subtitle_header = stream.codec_context.subtitle_header
        self.track.codec_context.time_base = self.track.time_base = _MILLISECOND

    def convert(self, packet: Packet) -> Iterator[Packet]:
        """The packets of the track that one packet of the stream gives.

        Raises:
            av.FFmpegError, ValueError: it is damaged.
        """
        start = packet.dts if packet.pts is None else packet.pts
        begin = round(start * packet.time_base / _MILLISECOND)
        duration = round((packet.duration or 0) * packet.time_base / _MILLISECOND) or _SHOWN
        for subtitle in packet.decode():
            text = getattr(subtitle, "ass", b"")
            if text:
                encoded = self.track.codec_context.encode_subtitle(
                    SubtitleSet.create(text, 0, duration, begin)
                )
                encoded.stream, encoded.time_base = self.track, _MILLISECOND
                encoded.is_keyframe = True
                yield encoded

    def flush(self, mark: Packet) -> Iterator[Packet]:
        """Nothing is left."""
        return iter(())


def _silence(like: Any, samples: int) -> Any:
    frame = av.AudioFrame(like.format.name, like.layout.name, samples)
    frame.sample_rate = like.sample_rate
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame


def _rate(rate: int, codec: str) -> int:
    if codec == "libopus":
        return 48000
    return rate if codec != "aac" or rate in _AAC_RATES else 48000
