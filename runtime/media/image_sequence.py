"""Videos as folders of pictures: read in the natural order of their names, written as numbered PNG files."""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from v2v.core.abort import removed_on_abort
from v2v.core.errors import V2VError
from v2v.core.files import sync, sync_tree
from v2v.runtime.media.encoding import EncodedSegment
from v2v.runtime.media.errors import warn
from v2v.runtime.media.names import numbered_url
from v2v.runtime.media.streams import open_media

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
RATE = Fraction(25)  # pictures per second where the user names none
SETTINGS = "settings.json"  # beside the pictures: what made them


class FolderError(V2VError):
    """A folder of pictures cannot be read or written; the message names it, the cause and the way out."""


def is_picture(path: Path) -> bool:
    """Whether a file is one by its name; hidden ones are none, as what macOS puts beside each (``._frame.png``)."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def pictures_in(folder: Path, *, tell: bool = False) -> list[Path]:
    """The pictures in ``folder``, frame 2 before frame 10; of several kinds the one that there is most of.

    ``tell``: warn of the others.

    Raises:
        FolderError: there are none.
    """
    pictures = [path for path in folder.iterdir() if is_picture(path)]
    if not pictures:
        raise FolderError(
            f"{folder} is a folder without pictures; give a video file, or a folder of {', '.join(PICTURES)}"
        )
    (kind, _), *others = Counter(path.suffix.lower() for path in pictures).most_common()
    if others and tell:
        left_out = ", ".join(f"{count} {ending}" for ending, count in others)
        warn(f"{folder}: only its {kind} files are used, not the others ({left_out})")
    return sorted((path for path in pictures if path.suffix.lower() == kind), key=_natural)


@contextmanager
def opened_folder(folder: Path, rate: Fraction) -> Iterator[av.container.InputContainer]:
    """Open ``folder`` as a video of ``rate`` pictures per second.

    Raises:
        FolderError: it holds no pictures.
        av.FFmpegError: the first one is none.
    """
    pictures = pictures_in(folder, tell=True)
    ending = pictures[0].suffix.lower()
    with tempfile.TemporaryDirectory(prefix="v2v-") as links, removed_on_abort(Path(links)):
        for number, path in enumerate(
            pictures
        ):  # FFmpeg reads numbered files in order, whatever they are named
            (Path(links) / f"{number:08d}{ending}").symlink_to(path.resolve())
        options = {"framerate": f"{rate.numerator}/{rate.denominator}", "start_number": "0"}
        with av.open(
            numbered_url(Path(links), f"%08d{ending}"), format="image2", options=options
        ) as container:
            yield container


def fingerprint(folder: Path) -> str:
    """Names, sizes and times of the pictures: enough to notice other ones without reading them."""
    return str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in pictures_in(folder)])


def check_folder(path: Path) -> None:
    """Find out before the work whether ``path`` may become a folder of pictures.

    A folder that holds something is never replaced: what else is in it cannot be known to be unwanted.

    Raises:
        FolderError: there is no folder to make it in, a file of that name, or a folder that holds something.
    """
    if not path.parent.is_dir():
        raise FolderError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if path.exists() and not path.is_dir():
        raise FolderError(f"cannot write pictures into {path}: it is a file; choose another name with -o")
    if path.is_dir() and any(path.iterdir()):
        raise FolderError(
            f"cannot write pictures into {path}: the folder is not empty; choose another, or empty it yourself"
        )


class FolderWriter:
    """Writes enhanced pictures as ``000001.png`` and so on, into a folder that appears when it is finished.

    ``profile`` is the ICC profile of the pictures' colours; ``partial`` is where to write until then, on the same
    disk, instead of a folder beside ``path``; ``complete`` is called when all is on the disk, before the folder gets
    its name.

    Raises:
        FolderError: :func:`check_folder` refuses the place, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        source: Path,
        note: str = "",
        profile: bytes | None = None,
        *,
        partial: Path | None = None,
        complete: Callable[[], None] = lambda: None,
    ) -> None:
        check_folder(path)
        self.path, self._note, self._complete = path, note, complete
        self._profile = b"" if profile is None else _profile_chunk(profile)
        try:
            if partial is None:
                partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".part", dir=path.parent))
            else:
                shutil.rmtree(partial, ignore_errors=True)  # of a run that was ended here
                partial.mkdir()
            self._partial = partial
        except OSError as error:
            raise FolderError(
                f"cannot write {path}: {error.strerror}; choose another place with -o"
            ) from error
        self._cleanup = ExitStack()
        self._cleanup.callback(shutil.rmtree, self._partial, ignore_errors=True)
        self._cleanup.enter_context(removed_on_abort(self._partial))
        if source.is_file():
            with open_media(source) as film:
                if len(film.streams) > 1:
                    warn(f"{path}: a folder of pictures has no place for the sound and the rest of {source}")

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._cleanup:
            if kind is None:
                if self._note:
                    (self._partial / SETTINGS).write_text(self._note + "\n", encoding="utf-8")
                self._partial.chmod(0o755)
                if hasattr(os, "sync"):
                    os.sync()  # thousands of files: one wait for all
                else:
                    sync_tree(self._partial)
                self._complete()
                self._publish()
                sync(self.path.parent)

    def _publish(self) -> None:
        """Take the place of an empty folder, never of a full one."""
        try:
            self._partial.rename(self.path)
        except FileExistsError:  # Windows replaces no folder
            self.path.rmdir()
            self._partial.rename(self.path)

    def join(self, segments: Sequence[EncodedSegment], stamps: Sequence[Any]) -> None:
        """Write every picture of every segment: a packet of the PNG codec is a PNG file."""
        first = 1
        for segment in segments:
            with segment.open() as container:
                for packet, picture in zip(segment.packets(container), segment.order, strict=True):
                    png = bytes(packet)
                    png = png[:_AFTER_HEADER] + self._profile + png[_AFTER_HEADER:]
                    (self._partial / f"{first + picture:06d}.png").write_bytes(png)
            first += len(segment.order)


_LARGEST_PROFILE = 1 << 24  # bytes
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AFTER_HEADER = len(_SIGNATURE) + 12 + 13  # bytes of a PNG file's signature and its first chunk


def profile_in(folder: Path) -> bytes | None:
    """The ICC profile of the first picture in ``folder``, if that is a PNG file and has one."""
    with pictures_in(folder)[0].open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            return None
        while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
            content = file.read(struct.unpack(">I", header[:4])[0])
            file.read(4)  # its checksum
            if header[4:] == b"iCCP":
                try:
                    packed = content.split(b"\0", 1)[1][1:]
                    return zlib.decompressobj().decompress(packed, _LARGEST_PROFILE)
                except (IndexError, zlib.error):
                    return None
    return None


def _profile_chunk(profile: bytes) -> bytes:
    """An ICC profile as PNG keeps it (PNG specification, 11.3.2.3), to follow the header."""
    content = b"iCCP" + b"ICC profile" + b"\0\0" + zlib.compress(profile)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _natural(path: Path) -> list[Any]:
    """Sorts numbers inside names by their value."""
    parts = re.split(r"(\d+)", path.name)
    return [*(int(part) if index % 2 else part.lower() for index, part in enumerate(parts)), path.name]
