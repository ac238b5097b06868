"""Claims about what a leg is told."""

from typing import Any, cast

import pytest

from nodeserve.dispatcher.codecs import Codecs
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.records import ClientRequest, Leg
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.errors import InvariantError
from nodeserve.ids import LeaseId, LegId, RequestId
from nodeserve.router.messages import LegKind
from nodeserve.wire.engine_core import RESUMED
from nodeserve.wire.engine_outputs import Handoff
from tests.dispatcher.fakes import FIELDS, decode, encode, request
from tests.dispatcher.test_worker_link import attach


@pytest.fixture
def codecs() -> Codecs:
    return Codecs(FIELDS, "xgrammar")


def leg_of(codecs: Codecs, kind: LegKind) -> Leg:
    add = codecs.requests.decode(encode(request("a")))
    asked = ClientRequest(RequestId("d1-1"), "a", cast("GatewayLink", None), add, [], 10, 0.0)
    asked.handoff = Handoff(10, LeaseId(5), 10, 4096, {"lease_id": 5})
    asked.prefill_stats = {"num_cached_tokens": 3}
    worker = Worker(attach(7))
    return Leg(LegId("d1-1.1"), kind, asked, worker, "a", [], asked.sent, worker.role)


def told(codecs: Codecs, leg: Leg, lease: int | None = None) -> list[Any]:
    assert leg.request.add is not None
    lease_id = None if lease is None else LeaseId(lease)
    fields: list[Any] = decode(codecs.payload(leg, leg.request.add, lease_id))
    assert fields[0] == "d1-1.1"
    return fields


@pytest.mark.parametrize("kind", [LegKind.WHOLE, LegKind.PREFILL])
def test_leg_that_computes_the_prompt_forgets_the_handoff(codecs: Codecs, kind: LegKind) -> None:
    leg = leg_of(codecs, kind)
    told(codecs, leg)
    assert leg.request.handoff is None
    assert leg.request.prefill_stats is None


def test_resumed_leg_is_told_what_was_sent_and_keeps_how_it_began(codecs: Codecs) -> None:
    leg = leg_of(codecs, LegKind.WHOLE)
    leg.request.sent.extend([4, 5])
    assert told(codecs, leg)[3]["extra_args"] == {RESUMED: [4, 5]}
    assert leg.request.prefill_stats == {"num_cached_tokens": 3}


def test_decode_leg_pulls_only_the_lease_that_its_request_holds(codecs: Codecs) -> None:
    leg = leg_of(codecs, LegKind.DECODE)
    params = told(codecs, leg, 5)[3]["extra_args"]["kv_transfer_params"]
    assert params == {"lease_id": 5}
    with pytest.raises(InvariantError, match="lease 6 without its handoff"):
        told(codecs, leg, 6)
