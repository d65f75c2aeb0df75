"""Results survive being written and read, and a file that is none is named."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import made
from v2v.benchmarks.results import FORMAT, Figure, Results, ResultsError


def test_what_is_written_is_read_back(tmp_path):
    results = made.results()
    file = tmp_path / "results.json"
    file.write_text(results.to_json())
    assert Results.read(file) == results
    assert Results.read(tmp_path) == results


def test_a_figure_says_its_median_and_where_the_middle_80_percent_lie():
    figure = Figure(tuple(float(k) for k in range(1, 12)))
    assert (figure.low, figure.median, figure.high) == (2, 6, 10)


def test_the_file_holds_median_and_spread_for_other_readers():
    data = json.loads(made.results().to_json())
    run = data["measured"][0]["run"]
    assert run["low"] < run["median"] < run["high"]
    assert len(run["samples"]) == 3
    assert data["format"] == FORMAT


def test_fields_of_a_newer_version_are_passed_over(tmp_path):
    data = json.loads(made.results().to_json())
    data["news"] = data["machine"]["news"] = data["measured"][0]["stages"][0]["news"] = 1
    file = tmp_path / "results.json"
    file.write_text(json.dumps(data))
    assert Results.read(file) == made.results()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "not a file of v2v-bench's results"),
        ("[]", "not a file of v2v-bench's results"),
        ('{"a": 1}', "missing required field `format`"),
        (f'{{"format": {FORMAT + 1}}}', "update v2v"),
        (f'{{"format": {FORMAT}}}', "is damaged"),
    ],
)
def test_a_file_of_something_else_is_named_with_the_cause(tmp_path, text, says):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ResultsError, match=says) as told:
        Results.read(file)
    assert str(file) in str(told.value)


def test_measurements_without_a_stage_that_reports_tell_are_refused(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(made.results().to_json().replace("VAE decode", "VAE decoded"))
    with pytest.raises(ResultsError, match="measurements without VAE decode"):
        Results.read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"results\.json: no such file"):
        Results.read(tmp_path)
