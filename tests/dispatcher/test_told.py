"""Claims about what the supervisor's words mean."""

import math

import pytest

from nodeserve.clock import ManualClock
from nodeserve.dispatcher import told
from nodeserve.dispatcher.bookings import Bookings
from nodeserve.perf_model.request_cost import TYPICAL
from nodeserve.wire.control import AttachGateway
from nodeserve.wire.spawn import TenantSpec
from tests.dispatcher.fakes import spec_in


class Ports:
    def __init__(self, port):
        self.port = port

    def ledger(self):
        return self.port


def test_requests_cost_what_a_typical_model_does_where_nothing_is_known(tmp_path):
    assert told.router_config(spec_in(tmp_path)).cost == TYPICAL
    known = spec_in(tmp_path, prompt_token_s=1e-5, output_token_s=1e-3, max_queued_requests=5)
    config = told.router_config(known)
    assert (config.cost.prompt_token_s, config.cost.output_token_s) == (1e-5, 1e-3)
    assert config.max_queued_requests == 5


def test_without_a_ledger_nothing_is_booked(tmp_path):
    spec, clock = spec_in(tmp_path), ManualClock()
    assert not isinstance(told.bookings(spec, clock, Ports(None)), Bookings)
    assert isinstance(told.bookings(spec, clock, Ports(object())), Bookings)


@pytest.mark.parametrize(("given", "meant"), [(math.inf, None), (5.0, 5.0)])
def test_a_listener_without_a_timeout_waits_for_ever(given, meant):
    tenant = TenantSpec(priority=3, queue_timeout_s=given)
    message = AttachGateway(
        name="gateway-api", generation=4, input_address="", output_address="", tenant=tenant
    )
    listener = told.listener(message)
    assert (listener.listener, listener.priority) == ("gateway-api", 3)
    assert listener.queue_timeout_s == meant
