"""The page on a run: complete, escaped, with the figures that can be known, and refused where it has no place."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.browser import look_at
from tests.runtime.clips import make_video
from tests.stand_ins.command import Run
from v2v.runtime.films.journal import journal_folder
from v2v.runtime.films.looks import BothLooks, Looks, curve, thinned

QUICK = ("--steps", 1, "--scale", 2)


class Read(HTMLParser):
    """What stands on a page: its headings, texts, drawings by class."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, str]] = []  # tag, class
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        said = dict(attributes)
        self.tags.append((tag, said.get("class") or ""))
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def count(self, tag: str, kind: str) -> int:
        """Elements of a class."""
        return sum(tag == each and kind in classes.split() for each, classes in self.tags)


def moving(count: int) -> list[Any]:
    rng = np.random.default_rng(3)
    shots = [np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2)]
    return [np.roll(shots[2 * n // count], n, 1) for n in range(count)]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_video(tmp_path / "<in>&.mkv", pictures=moving(60), sounds=1)


def test_everything_of_a_run_is_on_the_page(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = run(
        *(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *QUICK),
        *("--report", page, "--prompt", "<script>alert('x')</script>"),
    )
    assert done.code == 0, done.err
    seen = Read(page)
    assert seen.loads == ["data:,"]
    assert not [tag for tag, _ in seen.tags if tag == "script"]
    assert "<in>&.mkv enhanced" in seen.text
    assert "<script>alert('x')</script>" in seen.text
    for title in (
        "Where the time went",
        "Shots and segments",
        "Sharpness",
        "Flicker",
        "Other streams",
        "Warnings",
    ):
        assert title in seen.texts
    for stage in ("read", "encode", "denoise", "decode", "write"):
        assert seen.count("rect", stage) >= 1
    assert seen.count("rect", "shot") > 2
    assert seen.count("line", "cut") == 2  # one cut, in two drawings
    assert seen.count("path", "before") == seen.count("path", "after") == 2
    assert "random numbers" in seen.text  # what the run has warned of
    assert "libavcodec" in seen.text
    assert not re.search(r"\$[a-z]", page.read_text(encoding="utf-8"))


def test_the_film_is_the_same_with_and_without_a_page(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    common = ("--engines", stand_in_engines, *QUICK, "--codec", "ffv1")
    assert run(film, "-o", tmp_path / "a.mkv", *common).code == 0
    assert run(film, "-o", tmp_path / "b.mkv", *common, "--report", tmp_path / "page.html").code == 0
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_of_a_run_that_went_on_the_page_tells_what_this_one_has_made(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, out = tmp_path / "page.html", tmp_path / "out.mkv"
    common = (film, "-o", out, "--engines", stand_in_engines, *QUICK, "--report", page)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("v2v.runtime.media.writer.VideoWriter.join", stop)
        run(*common)
    assert not page.exists()
    *_, last = sorted(journal_folder(out).glob("*.json.part")) or sorted(journal_folder(out).glob("0*.json"))
    last.unlink()
    assert run(*common).code == 0
    seen = Read(page)
    made_earlier = seen.count("rect", "earlier")
    assert made_earlier == seen.count("rect", "shot") - 1
    assert f"An earlier run had finished {made_earlier} of" in seen.text
    assert seen.count("path", "after") == 2


def test_workers_measure_too(run: Run, stand_in_engines: Path, film: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    common = (film, "--engines", stand_in_engines, *QUICK, "--workers", 2)
    assert run(*common, "-o", tmp_path / "out.mkv", "--report", page).code == 0
    seen = Read(page)
    assert seen.count("rect", "finish") >= 1
    assert seen.count("path", "after") == 2


def test_a_page_without_a_place_is_refused_before_the_work(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for arguments, why in (
        (("-o", tmp_path / "out.mkv", "--report", film), "the input itself"),
        (("-o", tmp_path / "out.mkv", "--report", tmp_path / "out.mkv"), "-o itself"),
        (("-o", tmp_path / "out.mkv", "--report", tmp_path / "mine.html"), "already exists"),
        (("-o", tmp_path / "out.mkv", "--report", tmp_path / "no" / "page.html"), "no folder"),
        (
            ("-o", tmp_path / "a.mkv", "--report", tmp_path / "p.html", "--compare", tmp_path / "p.html"),
            "itself",
        ),
        (("-o", "-", "--report", tmp_path / "page.html"), "--report is on one video"),
    ):
        done = run(film, *arguments, "--engines", stand_in_engines, *QUICK)
        assert done.code == 2
        assert why in done.err
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["<in>&.mkv", "mine.html"]


@pytest.mark.parametrize("width", [1100, 390])
def test_in_a_browser_nothing_overlaps_or_runs_out_of_the_page(
    run: Run, stand_in_engines: Path, film: Path, tmp_path: Path, width: int
) -> None:
    page = tmp_path / "page.html"
    run(film, "-o", tmp_path / "out.mp4", "--engines", stand_in_engines, *QUICK, "--report", page)
    html = (
        page.read_text(encoding="utf-8")
        .replace("script-src", "")
        .replace("default-src 'none'", "default-src * 'unsafe-inline'")
    )
    seen = look_at(html, tmp_path, width)
    assert seen["problems"] == []
    assert seen["overlaps"] == []
    assert seen["outside"] == []
    assert seen["sideways"] <= 0
    assert seen["plots"] == 4


def grey(levels: Any) -> Any:
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, 2)


def test_sharpness_is_the_mean_step_and_survives_no_blur() -> None:
    steps = np.zeros((32, 32), np.uint8)
    steps[:, ::2] = 100
    looks = BothLooks()
    looks.add(grey(np.full((16, 16), 50)), grey(steps))
    assert looks.before.sharpness == [0]
    assert looks.after.sharpness[0] == pytest.approx(50)  # 100 across, 0 down


def test_sixteen_bits_are_measured_in_the_same_levels() -> None:
    steps = np.zeros((32, 32), np.uint8)
    steps[:, ::2] = 100
    looks = BothLooks()
    looks.add(grey(steps), grey(steps).astype(np.uint16) * 257)
    assert looks.after.sharpness[0] == pytest.approx(looks.before.sharpness[0], rel=1e-5)


def film_of(levels: list[int]) -> Looks:
    looks = Looks()
    for level in levels:
        looks.add(np.full((16, 16), level, np.float32))
    return looks


def test_flicker_is_what_leaves_the_mean_of_the_neighbours_across_segments_too() -> None:
    levels = [10, 20, 30, 30, 60, 30, 30, 10]
    whole = curve([(False, film_of(levels))])[1]
    assert whole == [None, 0, 5, 15, 30, 15, 10, None]
    for at in range(2, 7):
        parts = [(False, film_of(levels[:at])), (True, film_of(levels[at:]))]
        assert curve(parts)[1] == whole


def test_there_is_no_flicker_over_a_cut() -> None:
    assert curve([(False, film_of([1, 1, 1])), (False, film_of([200, 200, 200]))])[1] == [
        None,
        0,
        None,
        None,
        0,
        None,
    ]


def test_a_long_curve_is_thinned_to_means() -> None:
    assert thinned([1.0, 3.0, None, 5.0, None, None], 3) == [(0.5, 2.0), (2.5, 5.0), (4.5, None)]
