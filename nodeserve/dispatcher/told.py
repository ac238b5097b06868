"""What the supervisor's words mean to the router and to the bookings."""

import math

from nodeserve.bus.ledger_client import LedgerClient
from nodeserve.clock import Clock, unix_now_s
from nodeserve.dispatcher.bookings import Bookings, Unbooked
from nodeserve.dispatcher.ports import Ports
from nodeserve.perf_model.request_cost import TYPICAL, RequestCost
from nodeserve.router.messages import ListenerChanged
from nodeserve.router.router import RouterConfig
from nodeserve.wire.control import AttachGateway
from nodeserve.wire.spawn import DispatcherSpec


def router_config(spec: DispatcherSpec) -> RouterConfig:
    """Return the router's settings."""
    cost = TYPICAL
    if spec.prompt_token_s is not None and spec.output_token_s is not None:
        cost = RequestCost(spec.prompt_token_s, spec.output_token_s)
    return RouterConfig(
        local_prefill_tokens=spec.local_prefill_tokens,
        max_queued_requests=spec.max_queued_requests,
        cost=cost,
    )


def bookings(spec: DispatcherSpec, clock: Clock, ports: Ports) -> Unbooked:
    """Return what notes requests for the ledger, where the node has one."""
    port = ports.ledger()
    if port is None:
        return Unbooked()
    client = LedgerClient(port)
    return Bookings(client, clock, unix_now_s, generation=spec.generation, model=spec.model)


def listener(message: AttachGateway) -> ListenerChanged:
    """Return what the listener of a gateway may take."""
    tenant = message.tenant
    return ListenerChanged(
        listener=message.listener or message.name,
        priority=tenant.priority,
        weight=tenant.weight,
        max_running=tenant.max_running_requests,
        max_queued=tenant.max_queued_requests,
        queue_timeout_s=tenant.queue_timeout_s if math.isfinite(tenant.queue_timeout_s) else None,
    )
