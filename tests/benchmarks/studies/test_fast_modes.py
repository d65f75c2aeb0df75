"""The price of fast modes: measured against the full run, in the words that a person types."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.stand_ins.arrays import NumpyEngines
from v2v.benchmarks.studies import fast_modes
from v2v.benchmarks.studies.fast_modes import Bench, Mode, measure_all, modes, table
from v2v.benchmarks.studies.gpu_run import psnr
from v2v.core.configs import MODELS
from v2v.device.cpu import CpuDevice
from v2v.runtime.diffusion.settings import Settings, plan


@pytest.fixture
def bench(tmp_path):
    frames = list(np.random.default_rng(0).integers(0, 256, (4, 72, 60, 3), np.uint8))
    common = Settings("a fox", steps=30, guidance=3.0, strength=0.5)
    return Bench(NumpyEngines(tmp_path, reuse=True), CpuDevice(), frames, common)


def test_every_mode_is_held_against_the_full_run(bench):
    told = []
    measured = measure_all(bench, modes(), 1, lambda so_far: told.append(len(so_far)))
    assert told == list(range(1, len(modes()) + 1))
    full, other_seed, *fast = measured
    assert (full.evaluations_in_full, full.evaluations_on_features) == (60, 0)
    assert full.psnr_frames_db is None and full.psnr_latents_db is None
    assert other_seed.evaluations_in_full == 60
    for one in fast:
        assert 0 < one.psnr_frames_db < 80 and 0 < one.psnr_latents_db < 80, one.flags
        assert one.evaluations_in_full < 60 or one.flags == "--solver dpmpp_2m"
    both = {one.flags: one for one in measured}
    assert both["--reuse 2"].evaluations_in_full == both["--reuse 2"].evaluations_on_features == 30
    assert both["--fast"].evaluations_on_features > 0 == both["--fast --reuse 1"].evaluations_on_features


def test_the_same_settings_differ_by_nothing(bench):
    _, again = measure_all(bench, [modes()[0], Mode("the same")], 2, lambda so_far: None)
    assert again.psnr_frames_db == again.psnr_latents_db == math.inf
    assert len(again.samples) == 2 and again.seconds == sum(again.samples) / 2


def test_fast_is_what_v2v_run_makes_of_it():
    model = MODELS["ms-vid2vid-xl"]
    by_name = {mode.flags: mode for mode in modes()}
    for flags, settings in (
        ("--fast", Settings(fast=True)),
        ("--fast --reuse 1", Settings(fast=True, reuse=1)),
    ):
        assert plan(Settings(**by_name[flags].changes), model, (720, 1280), True) == plan(
            settings, model, (720, 1280), True
        )


def test_each_part_of_the_unet_is_timed_alone(bench):
    found = bench.evaluation_seconds(repeats=2)
    assert list(found) == ["unet_full", "unet_outer"] and all(seconds > 0 for seconds in found.values())


def test_differences_are_in_decibels():
    zeros = np.zeros((2, 3))
    assert psnr(zeros + 25.5, zeros, 255.0) == pytest.approx(20.0)


def test_the_table_names_modes_costs_and_differences(bench):
    measured = measure_all(bench, [modes()[0], modes()[-1]], 1, lambda so_far: None)
    rows = [
        replace(measured[0], seconds=28.0),
        replace(measured[1], psnr_latents_db=20.04, psnr_frames_db=30.0),
    ]
    report = {"what": "fakes", "device": "none", "weights": "no", "clip": "4 frames", "date": "2026-01-01"}
    text = table({**report, "modes": [vars(row) for row in rows]})
    assert "| (full run) | 28.0 s | 60 |  |  |" in text
    assert "| `--fast` |" in text and "on features | 20.0 dB | 30.0 dB |" in text


@pytest.mark.slow
@pytest.mark.parametrize("fp8", [False, True], ids=["FP32", "FP8"])
def test_the_full_size_command_rehearsed_with_a_narrow_network(monkeypatch, tmp_path, fp8):
    arguments = ["full-size", "--size", "narrow", "--steps", "2", "-o", str(tmp_path), "--only=--reuse 2"]
    monkeypatch.setattr(sys, "argv", ["fast_modes", *arguments, *["--fp8"] * fp8])
    fast_modes.main()
    written = (tmp_path / "fast-modes.md").read_text()
    assert "; random weights; " in written and "| `--reuse 2` |" in written
    full, reusing = json.loads((tmp_path / "fast-modes.json").read_text())["modes"]
    if fp8:
        assert 15 < full["psnr_latents_db"] < 60, "the full run differs from the one without FP8"
    else:
        assert full["psnr_latents_db"] is None
    assert reusing["psnr_latents_db"] > 10
