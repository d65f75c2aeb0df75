"""A change is called one only where the spreads do not touch."""

from __future__ import annotations

import dataclasses

import pytest

from tests.benchmarks import made
from v2v.benchmarks.compare import Change, compare
from v2v.benchmarks.results import Figure, ResultsError


def verdict(old, new, unit="s"):
    return Change("a set", "a quantity", unit, Figure(old), Figure(new)).verdict


def test_slower_and_faster_beyond_the_spread():
    assert verdict((1.0, 1.01, 1.02), (1.2, 1.21, 1.22)) == "slower"
    assert verdict((1.2, 1.21, 1.22), (1.0, 1.01, 1.02)) == "faster"


def test_medians_apart_within_the_spread_are_no_change():
    assert verdict((1.0, 1.0, 1.3), (1.0, 1.2, 1.3)) == "same"


def test_a_steady_machine_is_not_believed_to_a_hundredth():
    assert verdict((1.0, 1.0, 1.0), (1.01, 1.01, 1.01)) == "same"
    assert verdict((1.0, 1.0, 1.0), (1.05, 1.05, 1.05)) == "slower"


def test_what_was_measured_once_must_differ_by_more():
    assert verdict((1.0,), (1.15,)) == "same"
    assert verdict((1.0,), (1.3,)) == "slower"


def test_memory_gets_larger_not_slower():
    assert verdict((1e9,), (2e9,), "B") == "larger"
    assert verdict((2e9,), (1e9,), "B") == "smaller"


def test_microseconds_are_not_compared():
    assert verdict((2e-6, 2e-6), (8e-6, 8e-6)) == "same"


def test_a_slower_unet_is_found_and_named_with_the_run_that_it_slows():
    found = compare(made.results(made.measured(unet=0.1)), made.results(made.measured(unet=0.15)))
    assert {change.quantity for change in found.worse} == {"UNet evaluation", "whole run"}
    assert found.worse[0].quantity == "UNet evaluation"
    assert found.worse[0].ratio == pytest.approx(1.5)


def test_the_same_results_hold_no_change():
    found = compare(made.results(), made.results())
    assert {change.verdict for change in found.changes} == {"same"}
    assert found.differences == ()
    assert len(found.changes) > 20


def test_points_of_sweeps_are_compared():
    old, new = (made.results(made.measured(sweeps=(made.sweep(each=each),))) for each in (0.2, 0.4))
    assert {c.quantity for c in compare(old, new).worse} == {"1 steps", "5 steps", "10 steps"}


def test_other_machines_and_versions_are_told():
    machine = dataclasses.replace(made.MACHINE, driver="590.2", versions={"numpy": "2.0", "torch": "2.12"})
    found = compare(made.results(), made.results(machine=machine))
    assert found.differences == ("driver: 580.1 -> 590.2", "torch: 2.11 -> 2.12")


def test_subjects_in_one_file_only_are_listed():
    both, other = made.measured(), made.measured("TensorRT fp16 (cuda)", backend="tensorrt")
    found = compare(made.results(both), made.results(both, other))
    assert (found.only_old, found.only_new) == ((), ("TensorRT fp16 (cuda)",))


def test_runs_of_other_clips_are_not_compared():
    longer = dataclasses.replace(
        made.measured(), clip=dataclasses.replace(made.CLIP, steps=made.CLIP.steps * 2)
    )
    with pytest.raises(ResultsError, match="no measurement in common"):
        compare(made.results(made.measured()), made.results(longer))
