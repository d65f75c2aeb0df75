"""The page, in a real headless browser."""

from __future__ import annotations

import dataclasses

import pytest

from tests.benchmarks import made
from tests.benchmarks.browser import look_at
from v2v.benchmarks.report import page

SECTIONS = [
    "Against the baselines",
    "Where the time goes",
    "Timeline of a run",
    "Roofline",
    "Scaling",
    "Engine sets and baselines",
    "How this was measured",
]

pytestmark = pytest.mark.slow  # a browser that shares its core with another test draws too late


@pytest.mark.parametrize("width", [1100, 375])
def test_everything_is_drawn_and_no_label_covers_another(tmp_path, width):
    seen = look_at(page(made.results()), tmp_path, width)
    assert seen["problems"] == []
    assert seen["width"] == width
    assert seen["drawn"] == "yes"
    assert seen["headings"] == SECTIONS
    assert seen["plots"] == 5  # timeline, roofline, three sweeps
    assert seen["marks"] > 30
    assert seen["overlaps"] == []
    assert seen["outside"] == []


def test_a_phone_shows_it_without_scrolling_sideways(tmp_path):
    assert look_at(page(made.results()), tmp_path, 375)["sideways"] <= 0


def test_the_figures_carry_their_labels(tmp_path):
    text = look_at(page(made.results()), tmp_path)["text"]
    for said in (
        "Some GPU",
        "driver 580.1",
        "torch 2.11",
        "random",
        "2026-01-02 03:04 UTC",
        "2.50× as fast as PyTorch eager",
        "The weights are random numbers",
        "TensorRT fp16 (cuda): it does not run here",
        "11.2 GiB",
    ):
        assert said in text, said


def test_published_weights_carry_no_warning(tmp_path):
    found = made.measured()
    found = dataclasses.replace(found, subject=dataclasses.replace(found.subject, weights="published"))
    text = look_at(page(made.results(found, failed=())), tmp_path)["text"]
    assert "published weights" in text
    assert "random numbers" not in text


def test_a_session_of_one_engine_set_without_extras_is_drawn_too(tmp_path):
    found = dataclasses.replace(made.measured(), build=None, gpu_bytes=None, timeline=())
    seen = look_at(page(made.results(found, work=(), ceilings=(), failed=())), tmp_path)
    assert seen["problems"] == []
    assert seen["drawn"] == "yes"
    assert "Roofline" not in seen["headings"]
