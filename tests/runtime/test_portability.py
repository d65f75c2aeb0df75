"""Nothing on the way from a video to a video needs what Windows and macOS do not have.

They are not here to try. What they lack is taken away from Python, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.clips import make_video
from tests.stand_ins.command import Run

# What Windows lacks and only our code might use; and it opens no folder, replaces no folder, and tells of signals
# through sockets alone.
WITHOUT = """
import os, signal, socket, stat, sys

for module, names in (
    (os, "O_NOFOLLOW sync statvfs killpg mkfifo getloadavg"),
    (signal, "SIGHUP SIGKILL SIGPIPE alarm"),
):
    for name in names.split():
        delattr(module, name)
sys.modules.update(dict.fromkeys(("resource", "termios"), None))

opened, flags_of, rename = os.open, {}, os.rename

def open_(path, flags, mode=0o777, *, dir_fd=None):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, flags, mode, dir_fd=dir_fd)

def rename_(source, target, **given):
    if os.path.isdir(target):
        raise FileExistsError(17, "File exists", source, target)
    return rename(source, target, **given)

set_fd = signal.set_wakeup_fd

def set_wakeup_fd(fd, **given):
    assert fd == -1 or stat.S_ISSOCK(os.fstat(fd).st_mode), "Windows takes sockets alone"
    return set_fd(fd, **given)

os.open, os.rename, signal.set_wakeup_fd = open_, rename_, set_wakeup_fd
"""


@pytest.mark.parametrize("output", ["out.mp4", "pictures/"])
def test_a_film_is_made_without_what_other_systems_lack(
    run: Run, stand_in_engines: Path, tmp_path: Path, output: str
) -> None:
    film = make_video(tmp_path / "in.mp4", frames=24, sounds=1)
    settings = ("--engines", stand_in_engines, "--scale", 2, "--steps", 1)
    made, expected = (f"{tmp_path}/{folder}/{output}" for folder in ("made", "expected"))
    for path in (made, expected):
        Path(path).parent.mkdir()
        if output.endswith("/"):
            Path(path).mkdir()
    assert run(film, "-o", expected, *settings).code == 0
    command = f"{WITHOUT}\nsys.argv[0] = 'v2v-run'\nfrom v2v.runtime.start import main\nmain()"
    given = map(str, (film, "-o", made, *settings))
    done = subprocess.run([sys.executable, "-c", command, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(Path(made)) == content(Path(expected))


def content(path: Path) -> list[bytes]:
    return [each.read_bytes() for each in (sorted(path.iterdir()) if path.is_dir() else [path])]
