"""The service: jobs by HTTP, for those who may, in bounded memory; a killed service loses nothing."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import v2v
from tests.apps.browser import PATIENCE
from tests.apps.conftest import Server
from v2v.apps.jobs import JobQueue, Limits
from v2v.runtime.films.journal import journal_folder

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

from starlette.testclient import TestClient  # noqa: E402

from v2v.apps.guard import Guard  # noqa: E402
from v2v.apps.service import JOBS, make_service  # noqa: E402

HERE = "http://localhost"
LARGEST = 1 << 20


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[JobQueue]:
    """A queue that nobody works on."""
    with JobQueue(tmp_path / "jobs", lanes=(), limits=Limits(upload=LARGEST, waiting=3)) as queue:
        yield queue


def client(queue: JobQueue, token: str | None = None, root: Path | None = None, base: str = HERE) -> Any:
    guarded = Guard(make_service(queue, root), token, (JOBS,), LARGEST, queue.has_room)
    return TestClient(guarded, base_url=base)


def upload(to: Any, source: Path, **options: Any) -> Any:
    with source.open("rb") as file:
        return to.post(JOBS, files={"file": (source.name, file)}, data=options)


def test_a_film_is_uploaded_followed_and_downloaded(
    servers: Callable[..., Server], film: Path, stand_in_engines: Path, tmp_path: Path
) -> None:
    """The service is killed in the middle; the next one makes the bytes that an uninterrupted run makes."""
    server = servers("serve", tmp_path / "jobs")
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as to:
        made = upload(to, film, prompt="a red fox", steps=2, scale=2.0)
        assert made.status_code == 201, made.text
        job = made.json()
        assert (job["name"], job["options"]) == (
            "film.mp4",
            {"prompt": "a red fox", "steps": 2, "scale": 2.0},
        )
        assert to.get(f"{JOBS}/{job['id']}/result").status_code == 409
        end = time.monotonic() + PATIENCE
        while (
            not journal_folder(tmp_path / "jobs" / job["id"] / "result.mp4").joinpath("00000.json").exists()
        ):
            assert time.monotonic() < end
            time.sleep(0.02)
    server.stop(signal.SIGKILL)
    server = servers("serve", tmp_path / "jobs")
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as to:
        with to.stream("GET", f"{JOBS}/{job['id']}/events") as stream:
            told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert told[-1]["state"] == "done", told[-1]
        shares = [now["progress"]["fraction"] for now in told if now["progress"]["fraction"] is not None]
        assert shares == sorted(shares)
        assert all(share > 0 for share in shares)  # what was finished is not made again
        whole = to.get(told[-1]["result"])
        v2v.enhance(film, tmp_path / "own.mp4", "a red fox", engines=stand_in_engines, steps=2, scale=2.0)
        assert whole.content == (tmp_path / "own.mp4").read_bytes()
        assert whole.headers["content-disposition"] == 'attachment; filename="film-enhanced.mp4"'
        part = to.get(told[-1]["result"], headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        page = to.get(f"{JOBS}/{job['id']}/compare")
        assert "<video" in page.text
        assert page.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
        assert to.delete(f"{JOBS}/{job['id']}").status_code == 204
        assert to.get(JOBS).json() == []
    assert server.stop() == 143
    assert server.asked == []


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({}, 422, "give either a file or the path"),
        ({"path": "clip.mp4"}, 422, "started without --root"),
        ({"path": "clip.mp4", "steps": "many"}, 422, "steps: "),
        ({"path": "clip.mp4", "prompt": "x" * 20000}, 400, "maximum size"),
        ({f"field{n}": "x" for n in range(100)}, 400, "Too many fields"),
    ],
)
def test_bad_forms_are_answered(idle: JobQueue, form: dict[str, str], status: int, message: str) -> None:
    answer = client(idle).post(JOBS, data=form, files={"nothing": b""} if form else None)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    assert idle.jobs() == []


def test_bad_requests_are_answered(idle: JobQueue, clip: Path) -> None:
    to = client(idle)
    assert to.get(f"{JOBS}/{'0' * 16}").status_code == 404
    assert to.get(f"{JOBS}/..%2f..%2fetc%2fpasswd/result").status_code == 404
    assert to.post(f"{JOBS}/none/cancel").json() == {
        "error": "there is no such job; it may have been deleted"
    }
    assert to.put(JOBS).status_code == 405
    assert to.post(
        JOBS, content=b"--x\r\nnonsense", headers={"Content-Type": "multipart/form-data"}
    ).is_client_error
    assert to.get(JOBS, params={"limit": "all"}).json()["error"].startswith("limit: ")
    job = upload(to, clip).json()
    assert to.post(f"{JOBS}/{job['id']}/resume").status_code == 409
    assert to.post(f"{JOBS}/{job['id']}/cancel").json()["state"] == "cancelled"
    assert upload(to, clip, strength="0.5", fast="true").json()["options"] == {"strength": 0.5, "fast": True}
    for _ in range(2):
        assert upload(to, clip).status_code == 201
    full = upload(to, clip)
    assert (full.status_code, full.json()) == (507, {"error": "3 jobs are waiting already; try again later"})


def test_uploads_are_bounded_whether_they_tell_their_length_or_not(idle: JobQueue) -> None:
    to = client(idle)
    told = to.post(JOBS, files={"file": ("large.mp4", b"\0" * 3 * LARGEST)})
    assert (told.status_code, "too large" in told.json()["error"]) == (413, True)

    def untold() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        for _ in range(48):
            yield b"\0" * (LARGEST >> 4)

    answer = to.post(JOBS, content=untold(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413
    small = to.post(f"{JOBS}/{'0' * 16}/cancel", content=b"\0" * 2 * LARGEST)
    assert small.status_code == 413
    assert list(idle.uploads.iterdir()) == []
    assert idle.jobs() == []


def test_paths_lead_nowhere_but_into_the_root(idle: JobQueue, clip: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "films").mkdir(parents=True)
    (root / "films" / "clip.mp4").hardlink_to(clip)
    (root / "way-out.mp4").symlink_to(clip)
    to = client(idle, root=root)
    for path in ("films/../../jobs/lock", str(clip), "way-out.mp4", "films", "none.mp4", "\0", "/etc/passwd"):
        answer = to.post(JOBS, data={"path": path})
        assert (answer.status_code, "no such file" in answer.json()["error"]) == (422, True), path
    job = to.post(JOBS, data={"path": "films/clip.mp4"}).json()
    assert job["name"] == "clip.mp4"
    assert idle.path_of(idle.get(job["id"]), "source") == root / "films" / "clip.mp4"


def test_a_token_opens_the_service_and_nothing_else_does(idle: JobQueue) -> None:
    to = client(idle, "open sesame", base="http://films.example")
    assert to.get(JOBS).status_code == 401
    assert to.get(JOBS, headers={"Authorization": "Bearer close"}).status_code == 401
    assert to.get(JOBS, params={"token": "opensesame"}, follow_redirects=False).status_code == 401
    assert to.get(JOBS, headers={"Authorization": "Bearer open sesame"}).json() == []
    assert to.get("/docs", params={"token": "open sesame"}).status_code == 200  # and the browser knows it now
    assert to.get(JOBS).json() == []


def test_pages_of_others_are_not_obeyed(idle: JobQueue, clip: Path) -> None:
    assert (
        client(idle, base="http://evil.example").get(JOBS).status_code == 403
    )  # a name that leads to this machine
    to = client(idle)
    form = {"files": {"file": ("clip.mp4", clip.read_bytes())}}
    assert to.post(JOBS, **form, headers={"Origin": "http://evil.example"}).status_code == 403
    assert to.post(JOBS, **form, headers={"Origin": "null"}).status_code == 403
    assert idle.jobs() == []
    assert to.post(JOBS, **form, headers={"Origin": HERE}).status_code == 201


def test_the_manual_needs_nothing_from_elsewhere(idle: JobQueue) -> None:
    to = client(idle)
    page = to.get("/docs").text
    assert "POST /jobs" in page
    assert "Denoising steps." in page
    assert "http" not in page.replace("Jobs by HTTP", "")
    assert "/jobs/{job_id}/events" in to.get("/openapi.json").json()["paths"]


def test_it_says_where_it_listens_and_asks_others_for_a_token(
    servers: Callable[..., Server], tmp_path: Path
) -> None:
    server = servers("serve", tmp_path / "jobs", "--host", "0.0.0.0")
    link = server.link
    assert link.startswith("http://localhost:")
    assert "?token=" in link
    assert httpx.get(link.partition("?")[0] + "jobs").status_code == 401
    with httpx.Client(follow_redirects=True) as to:
        assert to.get(link.replace("/?", "/docs?")).status_code == 200
        assert to.get(link.partition("?")[0] + "jobs").json() == []
    assert (tmp_path / "jobs" / "token").stat().st_mode & 0o77 == 0
    token = link.partition("?token=")[2]
    server.stop()
    again = servers("serve", tmp_path / "jobs", "--host", "0.0.0.0")
    assert again.link.endswith(f"?token={token}")  # browsers know it still


@pytest.mark.slow
def test_twenty_clients_lose_nothing_and_memory_stays_flat(
    servers: Callable[..., Server], clip: Path, tmp_path: Path
) -> None:
    server = servers("serve", tmp_path / "jobs", "--max-upload", "0.25")
    problems: list[str] = []
    finished: list[str] = []

    def visit(number: int) -> None:
        try:
            with httpx.Client(base_url=server.address, timeout=300) as to:
                for turn in range(2):
                    job = upload(to, clip, prompt=f"client {number}, turn {turn}", steps=1).json()
                    with to.stream("GET", f"{JOBS}/{job['id']}/events") as stream:
                        for line in stream.iter_lines():
                            if line.startswith("data: "):
                                last = json.loads(line[6:])
                    assert (last["state"], last["options"]["prompt"]) == (
                        "done",
                        f"client {number}, turn {turn}",
                    )
                    assert to.get(last["result"]).content[4:8] == b"ftyp"
                    finished.append(job["id"])
                    for _ in range(10):
                        assert to.post(JOBS, data={"path": "x"}).status_code == 422
                        assert to.get(f"{JOBS}/{number}").status_code == 404
                        assert len(to.get(JOBS).json()) >= 1
        except Exception as error:
            problems.append(f"client {number}: {error!r}")

    with httpx.Client(base_url=server.address, timeout=300) as to:
        job = upload(to, clip, steps=1).json()
        with to.stream("GET", f"{JOBS}/{job['id']}/events") as stream:
            stream.read()
        before = server.memory
        clients = [threading.Thread(target=visit, args=(number,)) for number in range(20)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert problems == []
        assert len(set(finished)) == 40
        assert len(to.get(JOBS).json()) == 41
        assert server.memory - before < 48 << 20

        def large() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
            for _ in range(200):
                yield b"\0" * (1 << 20)
            yield b"\r\n--x--\r\n"

        sent = to.post(JOBS, content=large(), headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert sent.status_code == 201
        assert server.memory - before < 64 << 20
