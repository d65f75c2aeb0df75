"""The page that compares before and after plays both videos in step in a real browser."""

from __future__ import annotations

import base64
import json
import queue
import re
import shutil
import subprocess
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import av
import numpy as np
import pytest

from tests.runtime.clips import color_tags, make_video
from tests.runtime.media.test_deinterlacing import make_interlaced
from v2v.runtime.films.compare_page import check_page, write_page
from v2v.runtime.media.errors import MediaError

# Plays, seeks and drags as a person would, then reports what the page shows.
_VISITOR = """<script>
const told = { problems: [] };
addEventListener("error", (event) => told.problems.push(event.message));
const until = (test) => new Promise((done) => {
  const look = () => (test() ? done() : setTimeout(look, 50));
  look();
});
const colour = (video) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  return [...context.getImageData(10, 10, 1, 1).data];
};
addEventListener("load", async () => {
  const id = (name) => document.getElementById(name);
  const [before, after, stage] = [id("before"), id("after"), id("stage")];
  const shown = (video) => video.readyState >= 2 && colour(video)[3] === 255;  // a busy browser paints later
  await until(() => shown(before) && shown(after));
  told.sizes = [before.videoWidth, before.videoHeight, after.videoWidth, after.videoHeight];
  told.colours = [colour(before).slice(0, 3), colour(after).slice(0, 3)];
  told.text = document.body.innerText;
  id("play").click();
  const apart = () => Math.abs(before.currentTime - after.currentTime);
  await until(() => after.currentTime > 0.3 && apart() < 0.2);  // a busy browser catches up
  told.apart = apart();
  id("play").click();
  id("seek").value = 0.5;
  id("seek").dispatchEvent(new Event("input"));
  await until(() => !after.seeking && !before.seeking);
  told.seeked = [before.currentTime, after.currentTime, after.duration];
  const box = stage.getBoundingClientRect();
  const at = { bubbles: true, pointerId: 1, buttons: 1, clientX: box.left + box.width / 4, clientY: box.top + 5 };
  stage.setPointerCapture = () => {};
  stage.dispatchEvent(new PointerEvent("pointerdown", at));
  told.cut = getComputedStyle(stage).getPropertyValue("--cut");
  told.clip = getComputedStyle(before).clipPath;
  const names = performance.getEntriesByType("resource").map((entry) => entry.name);
  told.outside = names.filter((name) => !name.startsWith("data:") && !name.endsWith("favicon.ico"));
  fetch("/told", { method: "POST", body: JSON.stringify(told) });
});
</script>"""


def visit(page: str, folder):
    """Open ``page`` in a browser and return what the visitor saw."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser found: apt-get install chromium")
    answers: queue.Queue[str] = queue.Queue()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if self.path == "/":
                self.wfile.write(page.replace("<title>", _VISITOR + "<title>", 1).encode())

        def do_POST(self):
            answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ]
        flags += ["--disable-background-networking", "--disable-component-update"]
        flags += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder / 'profile'}"]
        process = subprocess.Popen(
            [browser, *flags, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return json.loads(answers.get(timeout=90))
        except queue.Empty:
            pytest.fail("the page did not get as far as its visitor's report")
        finally:
            process.kill()
            process.wait()
            server.shutdown()


def flat(colour, count, height, width):
    return [np.full((height, width, 3), colour, np.uint8)] * count


def test_both_videos_play_in_step_behind_a_slider(tmp_path):
    before = make_video(tmp_path / "before.mkv", pictures=flat((200, 30, 30), 12, 48, 64), sounds=1)
    after = make_video(tmp_path / "after.mp4", pictures=flat((30, 30, 200), 12, 96, 128))
    page = tmp_path / "page.html"
    write_page(page, before, after, {"seed": 666, "prompt": "<b>a fox</b>"})
    seen = visit(page.read_text(encoding="utf-8"), tmp_path)
    assert seen["problems"] == []
    assert seen["sizes"] == [128, 96, 128, 96]
    assert np.abs(np.array(seen["colours"]) - [[200, 30, 30], [30, 30, 200]]).max() < 12
    assert "<b>a fox</b>" in seen["text"]
    assert "666" in seen["text"]
    assert seen["apart"] < 0.2
    first, second, duration = seen["seeked"]
    assert first == pytest.approx(duration / 2, abs=0.1)
    assert second == pytest.approx(duration / 2, abs=0.1)
    assert float(seen["cut"].strip("%")) == pytest.approx(25, abs=1)
    assert seen["clip"] != "none"
    assert seen["outside"] == []
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_videos_of_ten_bits_are_shown_with_eight_and_hdr_ones_keep_their_tags(tmp_path):
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    pictures = flat((200, 30, 30), 3, 48, 64)
    before = make_interlaced(tmp_path / "before.mov", codec="prores_ks", pix_fmt="yuv422p10le")
    after = make_video(tmp_path / "after.mp4", pictures=pictures, colors=tags, pix_fmt="yuv420p10le")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_page(tmp_path / "page.html", before, after, {})
    found = []
    for number, text in enumerate(
        re.findall(r"base64,([A-Za-z0-9+/=]{500,})", (tmp_path / "page.html").read_text())
    ):
        video = tmp_path / f"{number}.mp4"
        video.write_bytes(base64.b64decode(text))
        with av.open(str(video)) as opened:
            found.append((opened.streams.video[0].pix_fmt, color_tags(video)))
    assert sorted(found) == [("yuv420p", (2, 2, 6, 1)), ("yuv420p", (9, 16, 9, 1))]


def test_an_existing_page_is_not_replaced_unasked(tmp_path):
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(MediaError, match="already exists"):
        check_page(tmp_path / "page.html", overwrite=False)
    check_page(tmp_path / "page.html", overwrite=True)
    with pytest.raises(MediaError, match="no folder"):
        check_page(tmp_path / "missing" / "page.html", overwrite=True)


def test_what_a_person_has_typed_is_no_markup(tmp_path):
    name = "<i>a&b.mkv"
    before = make_video(tmp_path / name, pictures=flat((200, 30, 30), 2, 48, 64))
    write_page(tmp_path / "page.html", before, before, {"prompt": "<script>alert('x')</script> & \"y\""})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;a&amp;b.mkv before and after" in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;y&quot;" in page
    assert name not in page
    assert "alert('" not in page


def test_what_a_killed_run_has_left_of_a_page_is_replaced_and_a_link_not_followed(tmp_path):
    before = make_video(tmp_path / "in.mkv", pictures=flat((200, 30, 30), 2, 48, 64))
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".page.html.v2v-part").symlink_to(tmp_path / "victim")
    write_page(tmp_path / "page.html", before, before, {})
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "page.html", "victim"]
