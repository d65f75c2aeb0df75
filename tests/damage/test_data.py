"""Whatever is in a journal, an engine set, weights, results or prompts: they are read, or refused by name."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="weights are read by PyTorch")

from tests.damage.data import KINDS
from tests.damage.process import Reader, fault_in


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data_is_read_or_refused_by_name(
    stand_in_engines: Path, tmp_path: Path, kind: str, trials: int | None
) -> None:
    (tmp_path / "whole").mkdir()
    whole = KINDS[kind].make(tmp_path / "whole", stand_in_engines)
    faults, endings = [], Counter[str]()
    with Reader("tests.damage.read_data", kind) as reader:
        assert reader(0, whole)["ended"] == "whole"
        for number in range(trials or 60):
            folder = Path(shutil.copytree(whole.parent, tmp_path / str(number)))
            spoilt = folder / whole.name
            KINDS[kind].spoil(spoilt, np.random.default_rng(number))
            told = reader(number, spoilt)
            if fault := fault_in(told, (str(folder), whole.name, "--")):
                faults.append(f"{number}: {fault}")
                print(faults[-1], flush=True)
            else:
                shutil.rmtree(folder)
            endings["whole" if told["ended"] == "whole" else "refused"] += 1
    print(kind, endings)
    assert not faults
