"""A report is one page that needs nothing else, a summary, and a folder that is never lost."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from tests.benchmarks import made
from v2v.benchmarks import report
from v2v.benchmarks.report import check_output, page, size_text, summary, time_text, write
from v2v.benchmarks.results import Failed, Results, ResultsError


class Parsed(HTMLParser):
    """The page's elements, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


def test_the_page_loads_nothing():
    text = page(made.results())
    for _, attributes in Parsed(text).elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"@import|url\(", text)
    policy = next(a["content"] for _, a in Parsed(text).elements if "Content-Security-Policy" in a.values())
    assert "default-src 'none'" in policy


def test_the_page_holds_all_the_results():
    results = made.results()
    assert json.loads(Parsed(page(results)).scripts[0]) == json.loads(results.to_json())


def test_no_name_breaks_out_of_the_page():
    nasty = "</script><script>alert(1)</script><!--"
    results = made.results(made.measured(nasty), failed=(Failed(nasty, nasty),))
    scripts = Parsed(page(results)).scripts
    assert len(scripts) == 2
    assert json.loads(scripts[0])["failed"][0]["reason"] == nasty


def test_the_summary_names_device_weights_date_and_figures():
    text = summary(made.results())
    for said in ("Some GPU, driver 580.1", "random weights", "2026-01-02", "v2v-bench a-set"):
        assert said in text
    row = next(line for line in text.splitlines() if line.startswith("| ONNX Runtime"))
    assert "2.58 s (2.56 s to 2.60 s)" in row
    assert "100 ms" in row
    assert "11.2 GiB" in row
    assert "Not measured: TensorRT fp16 (cuda): it does not run here" in text


def test_the_three_files_appear_together(tmp_path):
    folder = tmp_path / "report"
    write(made.results(), folder, overwrite=False)
    assert {path.name for path in folder.iterdir()} == {"report.html", "summary.md", "results.json"}
    assert Results.read(folder) == made.results()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_is_replaced_only_when_asked(tmp_path):
    folder = tmp_path / "report"
    write(made.results(), folder, overwrite=False)
    with pytest.raises(ResultsError, match="--overwrite"):
        check_output(folder, overwrite=False)
    write(made.results(repeats=9), folder, overwrite=True)
    assert Results.read(folder).repeats == 9
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path):
    folder = tmp_path / "report"
    write(made.results(), folder, overwrite=False)
    (folder / "diary.txt").write_text("dear diary")
    with pytest.raises(ResultsError, match=r"diary\.txt"):
        write(made.results(), folder, overwrite=True)
    assert (folder / "diary.txt").read_text() == "dear diary"


def test_a_report_survives_a_failure_to_replace_it(tmp_path, monkeypatch):
    folder = tmp_path / "report"
    write(made.results(), folder, overwrite=False)

    def fail(results):
        raise OSError("disk full")

    monkeypatch.setattr(report, "summary", fail)
    with pytest.raises(OSError, match="disk full"):
        write(made.results(repeats=9), folder, overwrite=True)
    assert Results.read(folder).repeats == 3
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_file_or_a_missing_folder_is_refused_by_name(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ResultsError, match="not a folder"):
        check_output(file, overwrite=True)
    with pytest.raises(ResultsError, match="create it first"):
        check_output(tmp_path / "no" / "where", overwrite=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3e-5, "30.0 µs"), (0.0123, "12.3 ms"), (1.114, "1.11 s"), (70.6, "70.6 s"), (725, "12 min 05 s")],
)
def test_times_for_people(seconds, text):
    assert time_text(seconds) == text


def test_sizes_for_people():
    assert size_text(11.8 * 2**30) == "11.8 GiB"
    assert size_text(350 * 2**20) == "350 MiB"
