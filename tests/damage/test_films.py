"""Whatever is in a file, enhancing it neither crashes nor hangs, and leaves a whole output or none."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.damage.films import damaged, originals
from tests.damage.process import Reader, fault_in


@pytest.mark.parametrize("films", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_films_neither_crash_nor_hang_nor_leave_anything(
    stand_in_engines: Path, tmp_path: Path, films: int, trials: int | None
) -> None:
    films = trials or films
    (tmp_path / "whole").mkdir()
    whole = originals(tmp_path / "whole")
    faults, endings = [], Counter[str]()
    with Reader("tests.damage.read_films", stand_in_engines) as reader:
        for number in range(films):
            original, folder = whole[number % len(whole)], tmp_path / str(number)
            folder.mkdir()
            source = damaged(original, folder / original.name, np.random.default_rng(number))
            told = reader(number, source)
            if fault := fault_in(told, (original.name, "out.", f"{folder}/out")):
                faults.append(f"{number} ({original.name}): {fault}")
                print(faults[-1], flush=True)
            else:
                shutil.rmtree(folder)
            endings["whole" if told["ended"] == "whole" else "refused"] += 1
    print(endings)
    assert not faults
    assert min(endings["whole"], endings["refused"]) > films // 20, endings
