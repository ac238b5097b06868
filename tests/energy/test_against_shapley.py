"""The ledger's rule against the Shapley value, in a small run of scripts/compare_attribution."""

import importlib
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="traces are made with numpy, which comes with vLLM")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("compare_attribution")
    for name in ("compare_attribution", "attribution_sim"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("requests_per_s", [2.0, 8.0])
def test_on_mixed_load_errors_are_within_what_is_claimed(script, requests_per_s):
    load = script.Load(name="small", requests_per_s=requests_per_s, num_requests=160)
    trace, errors = script.compare(load, script.Device())
    ours = errors.pop(script.OURS)
    assert ours.median <= 3.0
    assert ours.p99 <= 10.0
    assert all(error.median > 2 * ours.median for error in errors.values())
    assert script.by_ledger(trace, script.Device()).sum() == pytest.approx(
        trace.truth_j.sum(), rel=0.01
    )


def test_another_device_is_learnt(script):
    load = script.Load(name="small", requests_per_s=8.0, num_requests=400)
    device = script.Device(joules_per_byte=172e-12)
    trace = script.run(load, device)
    error = script.error_of(script.by_ledger(trace, device), trace.truth_j)
    assert error.median <= 3.0


def test_chunks_and_members_are_told_as_an_engine_tells_them(script):
    load = script.Load(name="small", requests_per_s=8.0, num_requests=40)
    trace = script.run(load, script.Device())
    logs = script.logs_of(trace)
    assert [log.seq for log in logs] == list(range(1, len(logs) + 1))
    assert all(one.end_s == other.begin_s for one, other in pairwise(logs))
    chunks = sum(member.tokens for log in logs for run in log.runs for member in run.once)
    assert chunks == trace.prompts.sum()
    assert sum(run.num_steps for log in logs for run in log.runs) == len(trace.steps)


def test_the_variants_are_of_the_load(script):
    load = replace(script.LOADS[1], num_requests=60)
    assert set(script.vary(load)) == set(script.VARIANTS)
