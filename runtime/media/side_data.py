"""The crop that a container asks for beside a stream's pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import av.container
import av.logging

from v2v.runtime.media.formats import log_at

_STREAM = re.compile(r"^ *Stream #0:(\d+)", re.MULTILINE)
_CROPPING = re.compile(r"frame cropping: (\d+)/(\d+)/(\d+)/(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Crop:
    """Columns and rows of the stored picture that are not to be shown."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return self != Crop()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is left."""
        return height - self.top - self.bottom, width - self.left - self.right

    def apply(self, pixels: Any) -> Any:
        """``[H, W, C]`` without what is not shown."""
        height, width = pixels.shape[:2]
        return pixels[self.top : height - self.bottom, self.left : width - self.right]


def crop_of(container: av.container.InputContainer, stream: Any, size: tuple[int, int]) -> Crop:
    """What the container, not the codec, says to cut off a stream's pictures of ``size`` (height, width).

    PyAV (18, 19) gives out no side data of streams, but what FFmpeg prints of them.
    """
    with log_at(av.logging.INFO):
        printed: Any = container
        text = str(printed.dumps_format())
    sections = _STREAM.split(text)
    for number, section in zip(sections[1::2], sections[2::2], strict=True):
        if int(number) == stream.index and (match := _CROPPING.search(section)):
            crop = Crop(*(int(value) for value in match.groups()))
            return crop if min(crop.size(*size)) > 0 else Crop()
    return Crop()
