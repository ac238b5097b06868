"""Claims about aborted prefill legs that may yet hand over."""

import pytest

from nodeserve.ids import Generation, LegId, RequestId
from nodeserve.router.aborted_prefills import AbortedPrefills
from nodeserve.router.messages import RequestArrived
from nodeserve.router.request_flow import AbortRequested, PrefillPlaced, RequestFlow


def aborted_on(generation):
    flow = RequestFlow(RequestArrived(RequestId(f"r{generation}"), 64, 16))
    flow.handle(PrefillPlaced(Generation(generation)))
    flow.handle(AbortRequested())
    return flow


@pytest.fixture
def three():
    return {LegId(f"r{number}.1"): aborted_on(number) for number in (1, 2, 3)}


def test_each_is_taken_once(three):
    held = AbortedPrefills(3)
    for leg_id, flow in three.items():
        held.remember(leg_id, flow)
    assert [held.take(leg_id) for leg_id in three] == list(three.values())
    assert [held.take(leg_id) for leg_id in three] == [None] * 3


def test_past_the_limit_the_oldest_is_forgotten(three):
    held = AbortedPrefills(2)
    for leg_id, flow in three.items():
        held.remember(leg_id, flow)
    assert list(held.flows()) == list(three.values())[1:]


def test_a_worker_that_is_gone_hands_over_nothing(three):
    held = AbortedPrefills(3)
    for leg_id, flow in three.items():
        held.remember(leg_id, flow)
    held.forget_worker(Generation(2))
    assert [flow.generation for flow in held.flows()] == [1, 3]
