"""A film's memory does not grow with its length."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from v2v.benchmarks.studies.memory import Curve, main, measure

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.mark.slow
def test_three_times_the_film_takes_the_same_memory() -> None:
    short, long = (measure(seconds, (64, 48), 8, "h264", 0.1) for seconds in (15, 45))
    assert (short.frames, long.frames) == (375, 1125)
    assert long.peak < short.peak + 8
    assert long.peak < 2048


def test_the_measured_film_of_thirty_minutes_stays_flat_and_under_two_gigabytes() -> None:
    found = json.loads((RESULTS / "memory-30-minutes.json").read_text(encoding="utf-8"))
    assert found["frames"] == 30 * 60 * 25
    assert found["peak_mib"] < 2048
    curve = Curve(
        [tuple(sample) for sample in found["samples"]], found["peak_mib"], found["frames"], found["seconds"]
    )
    assert curve.growth * 45 < 8  # MiB over the whole film
    assert curve.growth == pytest.approx(found["growth_mib_per_1000_frames"], abs=0.02)


def test_growth_is_noticed() -> None:
    leaking = Curve([(n, n * 10, 100 + n) for n in range(100)], 200, 1000, 100)
    assert leaking.growth == pytest.approx(100)


def test_the_curve_is_written_as_json_and_as_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "--minutes",
            "0.05",
            "--size",
            "64x48",
            "--frames",
            "4",
            "--interval",
            "0.05",
            "-o",
            str(tmp_path / "m"),
        ]
    )
    assert "75 frames" in capsys.readouterr().out
    told = json.loads((tmp_path / "m.json").read_text())
    assert told["frames"] == 75
    assert told["samples"][-1][1] == 75
    assert ET.parse(tmp_path / "m.svg").getroot().find("{*}polyline") is not None
