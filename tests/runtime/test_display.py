"""What a run tells a person about its time."""

from __future__ import annotations

import pytest

import v2v.runtime.display as display
from v2v.runtime.diffusion.progress import Progress

ADVICE = "; try a part first"


def now(seconds_left: float | None, is_measured: bool = True) -> Progress:
    return Progress("encode", 0, 1, 10, 0, 100, 0.01, 1.0, seconds_left, is_measured)


def told(capfd: pytest.CaptureFixture[str], *signs: Progress, quiet: bool = False) -> str:
    with display.Display(quiet, ADVICE) as shown, shown.following("film.mkv") as show:
        for sign in signs:
            show(sign)
    return capfd.readouterr().err


def test_how_long_it_takes_is_said_once_and_how_to_look_before_if_that_is_long(capfd) -> None:
    err = told(capfd, now(None), now(3000.0, is_measured=False), now(1500.0), now(1400.0))
    assert err.count("will take") == 1
    assert f"film.mkv: will take about 25 min{ADVICE}" in err


def test_a_short_run_gets_no_advice_and_a_very_short_one_no_line(capfd) -> None:
    err = told(capfd, now(60.0))
    assert "about 60 s" in err
    assert ADVICE not in err
    assert "will take" not in told(capfd, now(5.0))
    assert "will take" not in told(capfd, now(1500.0), quiet=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "10 s"), (97, "95 s"), (719, "12 min"), (19200, "5 h 20 min")]
)
def test_estimates_are_told_in_round_figures(seconds: float, text: str) -> None:
    assert display.about(seconds) == text
