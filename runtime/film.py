"""A whole film from file to file: segment by segment, each kept when it is done, joined at the end.

However long the film, memory holds one segment. However the run ends, the same command goes on behind the last
finished segment and gives the same bytes as a run that was never disturbed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from v2v.engine.manifest import v2v_version
from v2v.engine.store import EngineSet
from v2v.runtime import folders
from v2v.runtime.background import ahead, behind
from v2v.runtime.encoding import Encoding, SegmentEncoder
from v2v.runtime.folders import FolderWriter
from v2v.runtime.journal import Journal
from v2v.runtime.pipeline import PARITY_FRAMES, Plan, Progress, Report, VideoToVideo
from v2v.runtime.video import Timestamp, VideoReader, VideoWriter, writing

# Decoded frames that wait for the engines, and enhanced ones that wait for the encoder.
_AHEAD = 8


@dataclass(frozen=True)
class Target:
    """Where a film goes and how it is written there."""

    path: Path
    encoding: Encoding
    overwrite: bool = False
    restart: bool = False  # do not go on with what an earlier run has left
    note: str = ""  # kept in the file's comment


def enhance_film(
    v2v: VideoToVideo,
    reader: VideoReader,
    target: Target,
    plan: Plan,
    progress: Callable[[Progress], None] = lambda told: None,
) -> int:
    """Enhance what ``reader`` gives into ``target``; returns the number of frames.

    Raises:
        MediaError: the output cannot be written.
        JournalError: an earlier run of other settings left its work beside the output.
        NumericalError: a latent or a picture became NaN or Inf.
    """
    total = reader.info.frames
    report = Report(progress, min(total or PARITY_FRAMES, PARITY_FRAMES) if plan.parity else total)
    stamps: list[Timestamp] = []
    with (
        writing(target.path),
        Journal(
            target.path, facts_of(reader.path, plan, v2v.engine_set, target), restart=target.restart
        ) as journal,
        closing(ahead(reader.frames(), _AHEAD)) as frames,
    ):
        carry = None
        for segment in v2v.segments(frames, reader.cuts, parity=plan.parity):
            stamps += [reader.timestamps.popleft() for _ in segment.frames]
            if journal.finished(segment.index):
                carry = journal.carry(segment.index)
                report.frames_done += len(segment.frames)
                continue
            pictures, carry = v2v.enhance(segment, plan, carry, report)
            encoder = SegmentEncoder(journal.partial(segment.index), target.encoding)
            with encoder, behind(encoder.write, _AHEAD) as write:
                for picture in pictures:
                    write(picture)
                    report.frames_done += 1
            journal.finish(segment.index, encoder.result, carry)
        with _writer(target, reader, parity=plan.parity) as writer:
            writer.join(journal.segments(), stamps)
        journal.discard()
    return len(stamps)


def _writer(target: Target, reader: VideoReader, *, parity: bool) -> VideoWriter | FolderWriter:
    if target.encoding.makes_folder:
        return FolderWriter(target.path, reader.path, target.note)
    return VideoWriter(
        target.path,
        reader,
        overwrite=target.overwrite,
        note=target.note,
        encoding=target.encoding,
        parity=parity,
    )


def facts_of(source: Path, plan: Plan, engine_set: EngineSet, target: Target) -> dict[str, str]:
    """Everything that decides what a run gives, by the names that a person knows it by."""
    settings = {f"--{name.replace('_', '-')}": value for name, value in asdict(plan).items()}
    encoding = {f"--{name}": getattr(target.encoding, name) for name in ("codec", "crf", "preset")}
    facts = {
        "input": fingerprint(source),
        "engine set": engine_set.name,
        "version of v2v": v2v_version(),
        **settings,
        **encoding,
    }
    return {name: str(value) for name, value in facts.items()}


def fingerprint(path: Path) -> str:
    """Size and digest of a file's beginning and end: enough to notice another file without reading all of it."""
    if path.is_dir():
        return folders.fingerprint(path)
    block = 1 << 20
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(block))
        file.seek(max(size - block, 0))
        digest.update(file.read(block))
    return f"{path.name}, {size} bytes, sha256 {digest.hexdigest()[:16]}"
