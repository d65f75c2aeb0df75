"""A real browser, driven from the command line."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import escape

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Runs before the page's own script and notes everything that goes wrong in it.
_WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push(`loads ${event.blockedURI}`));
</script>"""

# Runs behind it, once everything is drawn: what a person would see is wrong with the layout.
_LOOK = """<script>
const MARKS = "svg.plot rect, svg.plot circle, svg.plot path";
setTimeout(function look(tries = 0) {
  const empty = document.querySelector("svg.plot") && !document.querySelector(MARKS);
  if (empty && tries < 15) return setTimeout(look, 200, tries + 1);  // it is being drawn anew, on a busy machine
  const inner = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const overlaps = [], outside = [];
  for (const plot of document.querySelectorAll("svg.plot")) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([name, box], k) => {
      const beside = box.left < frame.left - 1 || box.right > frame.right + 1;
      if (beside || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) outside.push(name);
      for (const [other, second] of texts.slice(k + 1)) if (inner(box, second)) overlaps.push(`${name} | ${other}`);
    });
  }
  const found = {
    problems, overlaps, outside, width: innerWidth,
    drawn: document.documentElement.dataset.drawn, title: document.title,
    sideways: document.documentElement.scrollWidth - innerWidth,
    headings: [...document.querySelectorAll("h2")].map((h) => h.textContent),
    plots: document.querySelectorAll("svg.plot").length,
    marks: document.querySelectorAll(MARKS).length,
    text: document.querySelector("main").innerText,
  };
  const note = document.createElement("pre");
  note.id = "found";
  note.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(note);
}, 500);
</script>"""


def browser():
    """Path of a browser; skips the test where there is none."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser found: apt-get install chromium")
    return found


# Browsers have a least window width that is wider than a phone; a frame has none.
_FRAME = """<!DOCTYPE html><iframe width="{width}" height="1000" style="border: 0" srcdoc="{page}"></iframe>
<script>
setInterval(() => {{
  const note = document.querySelector("iframe").contentDocument.getElementById("found");
  if (note && !document.getElementById("found")) document.body.append(document.importNode(note, true));
}}, 100);
</script>"""


def look_at(html, folder, width=1100):
    """Open a page and tell what is seen: title, headings, text, problems, overlapping labels."""
    watched = html.replace("<title>", _WATCH + "<title>", 1).replace("</body>", _LOOK + "</body>")
    page = folder / f"page-{width}.html"
    page.write_text(_FRAME.format(width=width, page=escape(watched, quote=True)), encoding="utf-8")
    command = [
        browser(),
        "--headless",
        *_QUIET,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1300,1100",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    note = re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)
    assert note, f"the page did not finish: {done.stderr[-2000:]}"
    return json.loads(base64.b64decode(note[1]))
