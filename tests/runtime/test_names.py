"""A path is a file, whatever it looks like; a pipe is read to its end first; a folder gives all of its videos."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest

from tests.runtime.clips import make_video, packets, picture, times
from tests.runtime.test_cli_places import make_folder
from tests.stand_ins.command import SAMPLE, Run, start
from v2v.core.errors import UsageError
from v2v.runtime.films.batch import is_batch, plan_jobs

FAST = ("--scale", 1, "--steps", 1)

ODD = (
    *(
        "Movie: Part 2",
        "http:",
        "concat:a|b",
        "pipe:0",
        "100%d",
        "-i",
        "a\nb",
        " ",
        "~",
        "$HOME",
        "[x]*?",
        "file:a",
    ),
    *("\u00e9" * 125, os.fsdecode(b"\xff\xfe")),
)


@pytest.mark.parametrize("stem", ODD)
def test_a_name_is_a_name(
    run: Run, stand_in_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    source = make_video(tmp_path / "in.mp4", frames=2, sounds=1).rename(f"{stem}.mp4")
    output = Path("out") / f"{stem}.mp4"
    page = Path("out") / f"{stem[:50]}.html"
    done = run("--engines", stand_in_engines, *FAST, "-o", output, "--compare", page, "--", source)
    assert done.code == 0, done.err
    assert times(output.absolute()) == times(source.absolute())
    assert packets(output.absolute(), "audio") == packets(source.absolute(), "audio")
    assert sorted(Path("out").iterdir()) == sorted([output, page])


@pytest.mark.parametrize("stem", ["Movie: Part 2", "100%d"])
def test_a_folder_of_pictures_has_a_name_too(
    run: Run, stand_in_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "50%d: off"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    make_folder(tmp_path / stem, 3)
    assert run(stem, "-o", f"{stem}-out/", "--engines", stand_in_engines, *FAST).code == 0
    assert len(list(Path(f"{stem}-out").glob("*.png"))) == 3


@pytest.mark.parametrize("kind", ["fifo", "dev-stdin", "dev-fd"])
def test_a_pipe_with_a_name_is_read_to_its_end(stand_in_engines: Path, tmp_path: Path, kind: str) -> None:
    film, temporary = make_video(tmp_path / "film.ts", frames=5), tmp_path / "temporary"
    temporary.mkdir()
    options = ("-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *FAST)
    more = {"env": {**os.environ, "TMPDIR": str(temporary)}}
    if kind == "fifo":
        os.mkfifo(tmp_path / "pipe.ts")
        threading.Thread(
            target=lambda: shutil.copyfile(film, tmp_path / "copy") and feed(tmp_path, film)
        ).start()
        process = start(tmp_path / "pipe.ts", *options, **more)
    else:
        cat = subprocess.Popen(["cat", film], stdout=subprocess.PIPE)
        assert cat.stdout is not None
        if kind == "dev-stdin":
            process = start("/dev/stdin", *options, stdin=cat.stdout, **more)
        else:
            number = cat.stdout.fileno()
            process = start(f"/dev/fd/{number}", *options, pass_fds=[number], **more)
        cat.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(times(tmp_path / "out.mp4")) == 5
    assert list(temporary.glob("v2v-*")) == []


def feed(folder: Path, film: Path) -> None:
    (folder / "pipe.ts").write_bytes(film.read_bytes())


def test_a_file_as_standard_input_is_a_file(stand_in_engines: Path, tmp_path: Path) -> None:
    with SAMPLE.open("rb") as film:
        process = start(
            *("/dev/stdin", "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *FAST, "--end", 1),
            stdin=film,
        )
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_devices_are_refused_at_once(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    for name in ("/dev/zero", "/dev/null", "/dev/tty"):
        done = run(name, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines)
        assert done.code == 2
        assert f"INPUT {name} is a device" in done.err


def test_a_pipe_among_many_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    make_video(tmp_path / "a.mp4", frames=1)
    with pytest.raises(UsageError, match="is a pipe, which stands for a single video"):
        plan_jobs([str(tmp_path / "pipe.mp4"), str(tmp_path / "a.mp4")], tmp_path / "out", "h264", "", None)


def test_no_room_for_what_comes_in_is_told(stand_in_engines: Path, tmp_path: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 8; trap "" XFSZ; exec "$@"', "bash", sys.executable, "-c"]
    script = "from v2v.runtime.cli import main; main()"
    done = subprocess.run(
        [*limited, script, "-", "-o", str(tmp_path / "out.mp4"), "--engines", str(stand_in_engines)],
        input=bytes(1 << 16),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"what comes in by the pipe cannot be kept in" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_standard_stream_that_is_closed_is_told(
    stand_in_engines: Path, tmp_path: Path, stream: str
) -> None:
    closing = {"stdin": "<&-", "stdout": ">&-"}[stream]
    arguments = {"stdin": f"- -o {tmp_path}/out.mp4", "stdout": f"{SAMPLE} -o -"}[stream]
    command = f"{sys.executable} -c 'from v2v.runtime.cli import main; main()' {arguments} {closing}"
    done = subprocess.run(
        f"{command} --engines {stand_in_engines}", shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "is closed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_full_standard_output_is_told(stand_in_engines: Path, tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mp4", frames=2)
    for options in (("-o", "-"), ("-o", tmp_path / "out.mp4", "--json")):
        with Path("/dev/full").open("w") as full:
            process = start(film, *options, "--engines", stand_in_engines, *FAST, stdout=full)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert "the standard output" in err
        assert "No space left" in err
        assert "Traceback" not in err


def muxed(path: Path, container: str) -> Path:
    """A video whose name need not say what it is."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream("mpeg4" if container == "3gp" else "mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        output.mux(stream.encode(None))
    return path


def test_a_folder_gives_whatever_holds_a_video_and_nothing_hidden(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for name, container in (
        *(("c.3gp", "3gp"), ("d.vob", "vob"), ("e.MTS", "mpegts"), ("f.mxf", "mxf"), ("g.asf", "asf")),
        *(("h.ts", "mpegts"), ("i.what", "matroska"), ("j", "mov"), ("k.mod", "mpegts"), ("l.tod", "mpegts")),
    ):
        muxed(films / name, container)
    make_video(films / ".hidden.mp4", frames=1)
    (films / "._c.3gp").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    (films / "damaged.mp4").write_bytes(b"not a video")
    (films / "notes.txt").write_text("not a video either")
    (films / "art.nfo").write_text("\x1b[31mletters\n" * 50)
    (films / "data.bin").write_bytes(bytes(range(256)) * 100)
    (films / "subtitles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    with av.open(str(films / "song.mka"), "w", format="matroska") as output:
        output.add_stream("pcm_s16le", rate=8000)
        output.start_encoding()
    assert is_batch([str(films)], None)
    jobs = plan_jobs([str(films)], out, "h264", "", None)
    found = [
        "c.3gp",
        "d.vob",
        "damaged.mp4",
        "e.MTS",
        "f.mxf",
        "g.asf",
        "h.ts",
        "i.what",
        "j",
        "k.mod",
        "l.tod",
    ]
    assert [job.source.name for job in jobs] == found
    assert {job.output.suffix for job in jobs} == {".mkv", ".mp4"}


def test_what_surely_is_no_video_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in (".txt", ".jpg", ".mp3", ".json", ".py", ".m3u8", ".zip"):
        (tmp_path / f"a{ending}").write_text("x")
    monkeypatch.setattr("v2v.runtime.films.batch.open_media", lambda path: pytest.fail(f"opened {path}"))
    assert not is_batch([str(tmp_path)], None)


def test_hidden_pictures_are_none(run: Run, stand_in_engines: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 3)
    (folder / "._frame 0.png").write_bytes(b"\x00\x05\x16\x07")
    done = run(folder, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *FAST)
    assert done.code == 0, done.err
    assert "damaged" not in done.err
    assert [float(time) for time in times(tmp_path / "out.mp4")] == [0, 0.04, 0.08]
