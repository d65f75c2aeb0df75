"""Whatever is in a file, reading it neither crashes nor hangs, and copying it leaves a whole output or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.clips import make_video

SECONDS = 10.0  # that one file may take
ROOT = Path(__file__).parents[3]

# In a process of its own: a crash inside FFmpeg would take the test run with it.
WORKER = """
import json, sys, time, warnings
from pathlib import Path
from v2v.core.errors import V2VError
from v2v.runtime.media.reader import VideoReader
from v2v.runtime.media.writer import VideoWriter

warnings.simplefilter("ignore")
for line in sys.stdin:
    source = Path(line.strip())
    target, began, frames = source.with_name("out.mkv"), time.monotonic(), 0
    try:
        with VideoReader(source) as reader, VideoWriter(target, reader) as writer:
            for frame in reader.frames():
                writer.write(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
                frames += 1
        ended = "whole"
    except V2VError as error:
        ended = str(error)
    left = sorted(path.name for path in source.parent.iterdir() if path != source)
    target.unlink(missing_ok=True)
    print(json.dumps([ended, frames, time.monotonic() - began, left]), flush=True)
"""


def originals(folder: Path) -> list[bytes]:
    return [
        make_video(
            folder / "a.mp4", frames=12, sounds=1, container_options={"movflags": "+faststart"}
        ).read_bytes(),
        make_video(folder / "b.mkv", frames=12, sounds=1, options={"g": "1"}).read_bytes(),
        make_video(folder / "c.avi", frames=6, codec="mpeg4").read_bytes(),
        make_video(folder / "d.ts", frames=12, sounds=1).read_bytes(),
        make_video(folder / "e.mkv", frames=6, codec="ffv1", options={}).read_bytes(),
        make_video(
            folder / "f.webm", frames=6, codec="libvpx-vp9", options={"crf": "30", "b": "0"}
        ).read_bytes(),
    ]


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bytes, wipe out or repeat a stretch, cut off the end, or damage the header alone."""
    data = bytearray(content)
    kind = random.integers(5)
    start = int(random.integers(len(data)))
    stop = start + int(random.integers(1, 2000))
    if kind == 0:
        for place in random.integers(len(data), size=random.integers(1, 200)):
            data[place] = random.integers(256)
    elif kind == 1:
        data[start:stop] = bytes(len(data[start:stop]))
    elif kind == 2:
        data[start:start] = data[start:stop]
    elif kind == 3:
        del data[start:]
    else:
        for place in random.integers(min(1500, len(data)), size=random.integers(1, 12)):
            data[place] = random.integers(256)
    return bytes(data)


@pytest.mark.parametrize("files", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_files_neither_crash_nor_hang_nor_leave_anything(tmp_path: Path, files: int) -> None:
    random = np.random.default_rng(5)
    contents = originals(tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        endings: dict[str, int] = {"whole": 0, "refused": 0}
        for number in range(files):
            source = folder / f"{number}.bin"
            source.write_bytes(damage(contents[number % len(contents)], random))
            worker.stdin.write(f"{source}\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            assert answer, f"file {number} ended the process with code {worker.wait()}"
            ended, frames, seconds, left = json.loads(answer)
            assert seconds < SECONDS, f"file {number}: {ended}"
            if ended == "whole":
                assert left == ["out.mkv"]
                assert frames > 0
            else:
                assert left == [], f"file {number}: {ended}"
                assert source.name in ended or "out.mkv" in ended, ended
            endings["whole" if ended == "whole" else "refused"] += 1
            source.unlink()
        worker.stdin.close()
    assert min(endings.values()) > files // 20, endings
