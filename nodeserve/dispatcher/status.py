"""The dispatcher's account of itself, for the supervisor and the command line."""

from collections.abc import Mapping

from nodeserve.dispatcher.traces import Traces
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.router.router import Router
from nodeserve.router.tenant import TenantSnapshot
from nodeserve.wire.control import DispatcherStatus
from nodeserve.wire.status import HandoffStats, ListenerLoad, WorkerLoad


def build_status(
    call_id: int,
    attached: Mapping[int, Worker],
    router: Router,
    traces: Traces,
    *,
    other_rejected_frames: int,
    now_s: float,
) -> DispatcherStatus:
    """Return the answer to ReportStatus.

    ``other_rejected_frames`` are those that ``traces`` has not counted itself.
    """
    counters = traces.counters
    loads = []
    num_leases = 0
    for view in router.views():
        num_leases += view.leases
        worker = attached.get(view.generation)
        if worker is None:
            continue
        loads.append(
            WorkerLoad(
                generation=view.generation,
                role=worker.role,
                running=worker.gauges.running,
                waiting=worker.gauges.waiting,
                queued_prefill_tokens=view.queued_prefill_tokens,
                kv_usage=worker.gauges.kv_usage,
                num_gpu_blocks=worker.gauges.num_blocks,
                draining=view.draining,
                prompt_tokens=worker.prompt_tokens,
                generation_tokens=worker.generation_tokens,
            )
        )
    return DispatcherStatus(
        call_id=call_id,
        workers=tuple(loads),
        queued_requests=router.queued_count,
        running_requests=router.running_count,
        finished_requests=counters.finished_requests,
        failed_requests=counters.failed_requests,
        aborted_requests=counters.aborted_requests,
        resumed_requests=counters.resumed_requests,
        rejected_frames=counters.rejected_frames + other_rejected_frames,
        stale_outputs=counters.stale_outputs,
        ttft=traces.ttft.quantiles(now_s=now_s),
        itl=traces.itl.quantiles(now_s=now_s),
        handoffs=HandoffStats(
            completed=counters.handoffs_completed,
            failed=counters.handoffs_failed,
            bytes=counters.handoff_bytes,
            leased=num_leases,
            latency=traces.handoff.quantiles(now_s=now_s),
        ),
        recent=traces.recent,
        listeners=tuple(map(_listener, router.tenants())),
    )


def _listener(tenant: TenantSnapshot) -> ListenerLoad:
    return ListenerLoad(
        name=tenant.name,
        running=tenant.running,
        queued=tenant.queued,
        refused=tenant.refused,
        expired=tenant.expired,
        gpu_s=round(tenant.gpu_s, 3),
    )
