"""A session gives out what it has as it goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.benchmarks import made
from v2v.benchmarks import session
from v2v.benchmarks.session import SessionPlan, run_session
from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.core.errors import V2VError


@pytest.fixture
def two_subjects(monkeypatch):
    """The second of two subjects is what the test says; nothing is measured for real."""
    first = made.results().measured[0]
    outcomes = [first]

    def in_fresh_process(work, *arguments, tell, take=None):
        if work is not session.measure:
            raise V2VError("not here")
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        take(outcome)
        return outcome

    class Subject:
        def __init__(self, name, kind):
            self.name, self.kind, self.device = name, kind, "cpu"

    monkeypatch.setattr(session, "in_fresh_process", in_fresh_process)
    monkeypatch.setattr(
        session, "openers", lambda plan: [Subject("eager", "eager"), Subject("set", "engines")]
    )
    return first, outcomes


def run(keep):
    recipe = SimpleNamespace(model=MODELS["small"], window=window_for(MODELS["small"], (80, 72), 8))
    measured = SimpleNamespace(manifest=SimpleNamespace(recipe=recipe))
    plan = SessionPlan(
        sets=(measured,), baselines=(), device=None, weights=None, repeats=1, steps=None, sweeps=()
    )
    return run_session(plan, "v2v-bench", lambda name: lambda text, share: None, keep)


def test_what_is_measured_is_kept_when_the_session_is_cut_off(two_subjects):
    first, outcomes = two_subjects
    outcomes.append(KeyboardInterrupt())
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(kept.append)
    assert [results.measured for results in kept] == [(first,)]


def test_what_fails_is_listed_beside_what_was_measured(two_subjects):
    first, outcomes = two_subjects
    outcomes.append(V2VError("no memory"))
    results = run(lambda so_far: None)
    assert results.measured == (first,)
    assert [failed.reason for failed in results.failed] == ["no memory"]
