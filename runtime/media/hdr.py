"""The HDR metadata of a film: the mastering display and the light levels of its content.

Static metadata (SMPTE ST 2086, CTA-861.3) is one statement for the whole film and stays true of the enhanced one.
Dynamic metadata (HDR10+, Dolby Vision) describes each picture's own numbers, which the model has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

PQ, HLG = 16, 18
"""Transfer characteristics of H.273 that make a video HDR."""

# Names of FFmpeg's side data -> what people call it.
_DYNAMIC = {
    "DOVI_METADATA": "Dolby Vision",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid",
}


@dataclass(frozen=True)
class MasteringDisplay:
    """The display that a film was graded on: chromaticities (x, y) and luminances in cd/m2."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    darkest: Fraction
    brightest: Fraction


@dataclass(frozen=True)
class ContentLight:
    """Light levels of the content in cd/m2: its brightest pixel, and its brightest picture's average."""

    maximum: int
    average: int


@dataclass(frozen=True)
class StaticMetadata:
    """What holds for the whole film, as far as it is stated."""

    display: MasteringDisplay | None = None
    light: ContentLight | None = None

    def __bool__(self) -> bool:
        return self.display is not None or self.light is not None


UNSTATED = StaticMetadata()


def static_metadata_of(side_data: Mapping[str, bytes]) -> StaticMetadata:
    """Read what was decoded beside a frame; a display that is described in part alone counts as not described."""
    return StaticMetadata(
        _display_of(side_data.get("MASTERING_DISPLAY_METADATA")),
        _light_of(side_data.get("CONTENT_LIGHT_LEVEL")),
    )


def dynamic_metadata_of(side_data: Mapping[str, bytes]) -> list[str]:
    """What people call the metadata of a frame that is true of this frame alone."""
    return sorted({_DYNAMIC[name] for name in side_data.keys() & _DYNAMIC.keys()})


def _display_of(data: bytes | None) -> MasteringDisplay | None:
    if data is None:
        return None
    # libavutil's AVMasteringDisplayMetadata: ten rationals, then whether colours and luminances are set
    *numbers, has_colors, has_luminance = struct.unpack("=22i", data[:88])
    if not (has_colors and has_luminance and all(numbers[1::2])):
        return None
    values = [Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    red, green, blue, white = ((values[n], values[n + 1]) for n in (0, 2, 4, 6))
    return MasteringDisplay(red, green, blue, white, darkest=values[8], brightest=values[9])


def _light_of(data: bytes | None) -> ContentLight | None:
    if data is None:
        return None
    maximum, average = struct.unpack("=2I", data[:8])
    return ContentLight(maximum, average) if maximum or average else None


def encoder_parameters(library: str, metadata: StaticMetadata) -> dict[str, str] | None:
    """``metadata`` as parameters of an encoder's own, or None if it cannot be told: x264, x265 and SVT-AV1 can."""
    display, light = metadata.display, metadata.light
    if library == "libsvtav1":
        parameters = {"mastering-display": display and _in_units(display), "content-light": _pair(light)}
    elif library in ("libx264", "libx265"):
        name = {"libx264": "cll", "libx265": "max-cll"}[library]
        parameters = {"mastering-display": display and _in_steps(display), name: _pair(light)}
        if library == "libx265":
            parameters["master-display"] = parameters.pop("mastering-display")
    else:
        return None
    return {name: text for name, text in parameters.items() if text}


def _pair(light: ContentLight | None) -> str | None:
    return None if light is None else f"{light.maximum},{light.average}"


def _in_steps(display: MasteringDisplay) -> str:
    """As ST 2086 counts: chromaticities in steps of 0.00002, luminances of 0.0001."""
    points = {"G": display.green, "B": display.blue, "R": display.red, "WP": display.white}
    primaries = "".join(f"{name}({round(x * 50000)},{round(y * 50000)})" for name, (x, y) in points.items())
    return f"{primaries}L({round(display.brightest * 10000)},{round(display.darkest * 10000)})"


def _in_units(display: MasteringDisplay) -> str:
    """As plain numbers."""
    points = {"G": display.green, "B": display.blue, "R": display.red, "WP": display.white}
    primaries = "".join(f"{name}({float(x):.5f},{float(y):.5f})" for name, (x, y) in points.items())
    return f"{primaries}L({float(display.brightest):.4f},{float(display.darkest):.4f})"
