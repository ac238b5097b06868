"""Claims about the dispatcher's account of itself."""

from nodeserve.dispatcher.metrics import NodeStats
from nodeserve.dispatcher.status import build_status
from nodeserve.dispatcher.traces import Traces
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.ids import Generation, RequestId
from nodeserve.router.messages import LegKind, RequestArrived, WorkerAttached, WorkerDraining
from nodeserve.router.router import Router, RouterConfig
from nodeserve.wire import control
from nodeserve.wire.kinds import Role
from nodeserve.wire.status import HandoffStats, ListenerLoad, WorkerLoad
from tests.dispatcher.fakes import encode, stats
from tests.dispatcher.test_worker_link import attach


def test_status_is_what_the_router_the_engines_and_the_counters_say() -> None:
    router, traces, worker = Router(RouterConfig()), Traces(), Worker(attach(7))
    router.handle(WorkerAttached(Generation(7), Role.AGGREGATED, 10, 16, 4), now_s=0.0)
    router.handle(RequestArrived(RequestId("r1"), 20, 5, listener="chat"), now_s=0.0)
    router.handle(WorkerDraining(Generation(7)), now_s=0.0)
    NodeStats().take(worker.gauges, encode(stats(3, 2, 0.5)), dict.fromkeys(LegKind, 0))
    worker.prompt_tokens, worker.generation_tokens = 20, 9
    traces.counters.stale_outputs = 4
    traces.counters.rejected_frames = 2
    traces.counters.handoffs_failed = 1
    status = build_status(5, {7: worker}, router, traces, other_rejected_frames=3, now_s=0.0)
    assert status == control.DispatcherStatus(
        call_id=5,
        workers=(
            WorkerLoad(
                generation=7,
                role=Role.AGGREGATED,
                running=3,
                waiting=2,
                queued_prefill_tokens=20,
                kv_usage=0.5,
                num_gpu_blocks=10,
                draining=True,
                prompt_tokens=20,
                generation_tokens=9,
            ),
        ),
        running_requests=1,
        rejected_frames=5,
        stale_outputs=4,
        handoffs=HandoffStats(failed=1),
        listeners=(ListenerLoad(name="chat", running=1, gpu_s=0.008),),
    )
    assert control.decode(control.encode(status)) == status
