"""The page: a film is dropped, looked at and enhanced in a real browser, and by programs through Gradio's client."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apps.browser import PATIENCE, tab
from tests.apps.conftest import Server
from tests.runtime.clips import make_video
from v2v.runtime.films.journal import journal_folder

gradio_client = pytest.importorskip("gradio_client", reason="the extra web is not installed")
httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")

PHONE, DESK = 390, 1200
FRAMES = 200  # many seconds of work


def only(address: str) -> dict[str, Any]:
    """The newest job of a server."""
    job: dict[str, Any] = httpx.get(f"{address}/jobs").json()[0]
    return job


def until(test: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not test():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_person_drops_a_film_and_the_server_is_killed(
    servers: Callable[..., Server], tmp_path: Path
) -> None:
    film = make_video(tmp_path / "film.mp4", frames=FRAMES, size=(128, 96), sounds=1)
    server = servers("web", tmp_path / "jobs")
    with tab(tmp_path) as page:
        page.open(server.address, DESK)
        page.press("Preview 3 s")
        page.wait_for("document.body.innerText.includes('Choose a video or a picture first.')")
        page.choose_file(film)
        page.wait_for("document.body.innerText.includes('film.mp4')")
        page.type("textarea", "a red <b>fox</b>")
        page.press("Preview 3 s")
        video = "document.querySelector('.v2v-result video')"
        page.wait_for(f"{video} && {video}.readyState >= 2")
        assert page.ask(f"{video}.videoWidth / {video}.videoHeight") > 2  # before and after, side by side
        assert "a red <b>fox</b>" in page.ask("document.querySelector('.v2v-state').innerText")

        page.press("Enhance all like this")
        said = "document.querySelector('.v2v-state').innerText"
        page.wait_for(f"/\\d+ of {FRAMES} frames, \\d+ s left/.test({said})")
        page.press("Cancel")
        page.wait_for(f"{said}.includes('cancelled; what is finished of it is kept')")
        page.press("Go on with it")
        job = tmp_path / "jobs" / only(server.address)["id"]
        until(lambda: journal_folder(job / "result.mp4").joinpath("00000.json").exists())
        assert page.problems == [], "\n".join(page.problems)
        server.stop(signal.SIGKILL)
        server = servers("web", tmp_path / "jobs", "--port", server.address.rpartition(":")[2])
        page.wait_for("document.querySelector('.v2v-result iframe')")  # the page finds it again by itself
        page.problems.clear()  # it could not, for a while
        assert only(server.address)["frames"] == FRAMES
        assert only(server.address)["options"] == {"prompt": "a red <b>fox</b>"}
        rows = "[...document.querySelectorAll('.v2v-runs button')].map((row) => row.innerText.split('\\n').join(' '))"
        assert page.ask(rows) == ["film.mp4 whole done", "film.mp4 preview done"]
        page.press_row(1)
        page.wait_for(f"{video} && !document.querySelector('.v2v-result iframe')")
        assert page.ask("document.querySelector('.v2v-result a').download") == "film-preview.mp4"

        for width in (PHONE, DESK):
            page.open(server.address, width)
            page.wait_for("document.querySelector('.v2v-result iframe')")
            assert page.ask("document.documentElement.scrollWidth") <= width  # nothing sticks out
            outside = (
                "[...document.querySelectorAll('button, input, iframe, p')].filter((e) => e.offsetParent "
            )
            outside += "&& e.getBoundingClientRect().right > innerWidth).length"
            assert page.ask(outside) == 0
        page.press("Delete")
        page.wait_for("document.querySelectorAll('.v2v-runs button').length === 1")
        assert page.problems == [], "\n".join(page.problems)
        assert {address.partition(":")[0] for address in page.addresses} <= {"http", "data", "blob", "about"}
        hosts = {
            address.split("/")[2].split(":")[0] for address in page.addresses if address.startswith("http")
        }
        assert hosts == {"127.0.0.1"}


@pytest.mark.slow
def test_a_program_uses_the_page(servers: Callable[..., Server], film: Path, tmp_path: Path) -> None:
    server = servers("web", tmp_path / "jobs", "--max-upload", "0.001")
    to = gradio_client.Client(server.address, verbose=False)
    sent = gradio_client.handle_file(str(film))
    to.predict(sent, "a fox", "0.5", "", True, api_name="/enhance")
    job = only(server.address)
    assert job["options"] == {"prompt": "a fox", "strength": 0.5, "fast": True}
    assert list((tmp_path / "jobs" / "uploads").rglob("film.mp4"))  # on the disk of the jobs
    to.predict(api_name="/cancel")
    until(lambda: only(server.address)["state"] == "cancelled")
    with pytest.raises(Exception, match="Strength is a number"):
        to.predict(sent, "a fox", "much", "", True, api_name="/enhance")
    (tmp_path / "large.mp4").write_bytes(b"\0" * (3 << 20))
    with pytest.raises(Exception, match=r"413|size|large"):
        to.predict(
            gradio_client.handle_file(str(tmp_path / "large.mp4")), "", "", "", False, api_name="/enhance"
        )
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match=r"(?i)path|file"):
        to.predict(stolen, "", "", "", False, api_name="/enhance")
    assert len(httpx.get(f"{server.address}/jobs").json()) == 1
    assert httpx.get(f"{server.address}/gradio_api/file=/etc/passwd").status_code in (403, 404)
    assert httpx.get(f"{server.address}/gradio_api/file={tmp_path}/jobs/lock").status_code in (403, 404)
    assert server.asked == []


@pytest.mark.slow
def test_the_page_asks_for_the_token(servers: Callable[..., Server], tmp_path: Path) -> None:
    server = servers("web", tmp_path / "jobs", "--token", "open sesame")
    assert httpx.get(server.address).status_code == 401
    assert httpx.post(f"{server.address}/gradio_api/upload").status_code == 401
    with tab(tmp_path) as page:
        page.open(server.link, DESK)
        page.wait_for("document.body.innerText.includes('None yet.')")
        assert "token" not in page.ask("location.href")
        assert page.problems == [], "\n".join(page.problems)
