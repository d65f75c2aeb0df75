"""A page on a run: where its time went, how sharp and steady the film is before and after, what was kept of it.

It is one file of HTML and SVG that loads nothing and runs no script.
"""

from __future__ import annotations

import platform
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from v2v.core.console import seconds_text
from v2v.core.version import __version__
from v2v.runtime.diffusion.progress import Span
from v2v.runtime.films.compare_page import place_page
from v2v.runtime.films.looks import BothLooks, Looks, curve, thinned
from v2v.runtime.films.observed import Observed, SegmentSeen
from v2v.runtime.media.stream_plan import Fate
from v2v.runtime.media.versions import versions

_WIDTH, _LEFT, _RIGHT, _BOTTOM = 1000, 66, 12, 22  # of a drawing, in its units
_ROW, _PLOT = 26, 170  # heights
_POINTS = 400  # of a curve
_STAGES = {
    "read": "waiting for frames",
    "encode": "encoding into latents",
    "denoise": "denoising",
    "decode": "decoding and handing over to the video encoder",
    "finish": "segments of all workers",
    "write": "joining and writing the film",
}


@dataclass(frozen=True)
class RunFacts:
    """What a page tells of a run, besides what was :class:`Observed`."""

    source: Path
    output: Path
    frames: int
    seconds: float
    settings: Mapping[str, Any]
    fates: Sequence[Fate]
    warnings: Sequence[str]


def write_report(path: Path, facts: RunFacts, observed: Observed) -> None:
    """Write the page.

    Raises:
        MediaError: it cannot be written.
    """
    template = (Path(__file__).parent / "report_page.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=escape(f"{facts.source.name} enhanced"),
        lead=escape(f"{facts.output.name}, made by v2v {__version__}"),
        tiles=_tiles(facts, observed),
        sections="".join(_sections(facts, observed)),
    )
    place_page(path, page)


def _sections(facts: RunFacts, observed: Observed) -> Iterable[str]:
    yield _section("Where the time went", *_time(observed))
    yield _section("Shots and segments", *_shots(observed))
    if observed.looks:
        yield _section("Sharpness", *_curves(observed, 0))
        yield _section("Flicker", *_curves(observed, 1))
    elif observed.segments:
        yield _section(
            "Sharpness and flicker",
            _note("An earlier run made all of the frames, so none was measured here."),
        )
    if facts.fates:
        rows = {f"{fate.index}: {fate.description}": fate.outcome for fate in facts.fates}
        yield _section("Other streams", _table(rows))
    if facts.warnings:
        items = "".join(f"<li>{escape(line)}" for line in facts.warnings)
        yield _section("Warnings", f"<ul>{items}</ul>")
    yield _section("Settings", _table(facts.settings))
    with_versions = {"v2v": __version__, "Python": platform.python_version(), **versions()}
    yield _section("Versions", _table({**with_versions, "system": platform.platform()}))


def _tiles(facts: RunFacts, observed: Observed) -> str:
    shots = sum(not segment.continues for segment in observed.segments)
    told = {
        "frames": facts.frames,
        "size": facts.settings.get("size", ""),
        "this run": seconds_text(facts.seconds),
        "shots": shots or "not known",
        "segments": len(observed.segments) or "not known",
    }
    return "".join(f"<div><b>{escape(str(value))}</b>{escape(name)}</div>" for name, value in told.items())


def _time(observed: Observed) -> Iterable[str]:
    spans = [span for span in observed.spans if span.end > span.begin]
    if not spans:
        yield _note("This run has only finished what an earlier one had made.")
        return
    yield _note(
        "One row for each kind of work, from the begin of the run to its end. The video encoder works in a thread of "
        "its own, beside the next segment."
    )
    end = max(span.end for span in spans)
    kinds = [kind for kind in _STAGES if any(span.stage == kind for span in spans)]
    marks = [
        _rectangle(span, kinds.index(span.stage), end) for kind in kinds for span in _joined(spans, kind, end)
    ]
    height = _ROW * len(kinds)
    names = [
        f'<text x="{_LEFT - 6}" y="{_ROW * row + 17}" text-anchor="end">{kind}</text>'
        for row, kind in enumerate(kinds)
    ]
    ticks = _ticks_across(0, end, height, seconds_text)
    yield _drawing("Time line of the run", height, [*ticks, *names, *marks])
    sums = {kind: sum(span.end - span.begin for span in spans if span.stage == kind) for kind in kinds}
    yield _legend((kind, f"{_STAGES[kind]}: {seconds_text(sums[kind])}") for kind in kinds)


def _joined(spans: Sequence[Span], kind: str, end: float) -> list[Span]:
    """Those of one kind; what stands closer together than a page can show is one."""
    joined: list[Span] = []
    for span in (span for span in spans if span.stage == kind):
        if joined and span.begin - joined[-1].end < end / 2000:
            joined[-1] = Span(kind, span.segment, joined[-1].begin, span.end)
        else:
            joined.append(span)
    return joined


def _rectangle(span: Span, row: int, end: float) -> str:
    x, stop = _across(span.begin, 0, end), _across(span.end, 0, end)
    what = f"{_STAGES[span.stage]}, {seconds_text(span.end - span.begin)}"
    return (
        f'<rect class="{span.stage}" x="{x:.1f}" y="{_ROW * row + 4}" width="{max(stop - x, 1):.1f}" '
        f'height="{_ROW - 8}"><title>{escape(what)}</title></rect>'
    )


def _shots(observed: Observed) -> Iterable[str]:
    segments = observed.segments
    if not segments:
        yield _note("An earlier run has made the film, and nothing is kept of how it was cut.")
        return
    earlier = sum(segment.made_earlier for segment in segments)
    text = "Each block is a segment, and its colour changes with the shot."
    if earlier:
        text += f" An earlier run had finished {earlier} of {len(segments)} segments; they are pale."
    yield _note(text)
    first, last = _ends(segments)
    shot, blocks = -1, []
    for segment in segments:
        shot += not segment.continues
        x, stop = (_across(place, first, last) for place in (segment.first, segment.first + segment.frames))
        kinds = f"shot{' odd' if shot % 2 else ''}{' earlier' if segment.made_earlier else ''}"
        what = f"segment {segment.index}: frames {segment.first} to {segment.first + segment.frames - 1}"
        blocks.append(
            f'<rect class="{kinds}" x="{x:.1f}" y="4" width="{max(stop - x - 1, 0.5):.1f}" height="{_ROW - 8}">'
            f"<title>{what}</title></rect>"
        )
    yield _drawing("Shots and segments", _ROW, [*_ticks_across(first, last, _ROW, _frame_text), *blocks])


_MEANINGS = (
    "The mean step between neighbouring pixels, in levels of 255; noise counts as detail. Source and result are "
    "measured on copies of one size, at most 640 pixels along a side: finer detail is not seen.",
    "How much the brightness of blocks differs from the mean of the frames before and after, in levels of 255. What "
    "moves flickers too, but as much in the source as in the result.",
)


def _curves(observed: Observed, which: int) -> Iterable[str]:
    """Sharpness (0) or flicker (1) along the film, before and after."""
    yield _note(_MEANINGS[which])
    first, last = _ends(observed.segments)
    runs = list(_measured_runs(observed))
    lines = {
        name: [(start, curve(_parts(part, name))[which]) for start, part in runs]
        for name in ("before", "after")
    }
    values = [value for each in lines.values() for _, line in each for value in line if value is not None]
    top = max(values, default=0.0) * 1.1 or 1.0
    marks = [
        f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_PLOT}"><title>a cut</title></line>'
        for segment in observed.segments
        if not segment.continues and segment.first > first
        for x in [_across(segment.first, first, last)]
    ]
    marks += _ticks_across(first, last, _PLOT, _frame_text) + _ticks_up(top)
    for name, each in lines.items():
        paths = [_path(line, start, first, last, top) for start, line in each]
        marks.append(f'<path class="{name}" d="{"".join(paths)}"/>')
    yield _drawing(("Sharpness", "Flicker")[which], _PLOT, marks)
    means = {}
    for name, each in lines.items():
        there = [value for _, line in each for value in line if value is not None]
        means[name] = (
            f"{name}: {sum(there) / len(there):.2f} on average" if there else f"{name}: nothing to see"
        )
    yield _legend(means.items())


def _measured_runs(observed: Observed) -> Iterable[tuple[int, list[tuple[SegmentSeen, BothLooks]]]]:
    """Segments that follow one another and were measured, with the number of their first frame."""
    for measured, group in groupby(observed.segments, lambda segment: segment.index in observed.looks):
        if measured:
            segments = list(group)
            yield segments[0].first, [(segment, observed.looks[segment.index]) for segment in segments]


def _parts(segments: Iterable[tuple[SegmentSeen, BothLooks]], name: str) -> Iterable[tuple[bool, Looks]]:
    for segment, looks in segments:
        yield segment.continues, looks.before if name == "before" else looks.after


def _path(values: Sequence[float | None], start: int, first: int, last: int, top: float) -> str:
    pieces, pen = [], "M"
    for place, value in thinned(values, _POINTS):
        if value is None:
            pen = "M"
            continue
        x, y = _across(start + place + 0.5, first, last), _PLOT * (1 - value / top)
        pieces.append(f"{pen}{x:.1f} {y:.1f}" + ("h0.1" if pen == "M" else ""))
        pen = "L"
    return "".join(pieces)


def _ends(segments: Sequence[SegmentSeen]) -> tuple[int, int]:
    return segments[0].first, segments[-1].first + segments[-1].frames


def _across(value: float, first: float, last: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - first) / max(last - first, 1e-9)


def _ticks_across(first: float, last: float, height: int, text: Callable[[float], str]) -> list[str]:
    ticks = []
    for part in range(5):
        value = first + (last - first) * part / 4
        x, anchor = _across(value, first, last), ("start", "middle", "middle", "middle", "end")[part]
        ticks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height + 3}"/>')
        ticks.append(f'<text x="{x:.1f}" y="{height + 17}" text-anchor="{anchor}">{text(value)}</text>')
    return ticks


def _ticks_up(top: float) -> list[str]:
    ticks = []
    for part in range(4):
        y = _PLOT * (1 - part / 4)
        ticks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        ticks.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:.2g}</text>')
    return ticks


def _frame_text(number: float) -> str:
    return f"frame {number:.0f}"


def _drawing(title: str, height: int, marks: Iterable[str]) -> str:
    return (
        f'<div class="wide"><svg class="plot" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 -6 {_WIDTH} {height + _BOTTOM + 6}">{"".join(marks)}</svg></div>'
    )


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="{name}"></i>{escape(text)}' for name, text in entries)
    return f'<ul class="legend">{items}</ul>'


def _section(title: str, *content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{''.join(content)}\n"


def _note(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _table(rows: Mapping[str, Any]) -> str:
    cells = (f"<tr><th>{escape(str(name))}<td>{escape(str(value))}" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"
