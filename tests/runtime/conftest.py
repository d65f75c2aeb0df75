"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stand_ins import command


@pytest.fixture(scope="session")
def stand_in_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an engine set that runs in no time."""
    return command.build_engines(tmp_path_factory.mktemp("stand-in-engines"))


@pytest.fixture(scope="session")
def first_stage_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an engine set that makes films of pictures, in no time too."""
    return command.build_first_stage(tmp_path_factory.mktemp("first-stage-engines"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[command.Run]:
    """``v2v-run``, called with its arguments."""
    with command.in_process(monkeypatch, capfd) as call:
        yield call
