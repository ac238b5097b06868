"""Answers to utility calls: vLLM's engine methods that front ends use, and nodeserve's own."""

from dataclasses import dataclass

import msgspec

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.handoffs import SIMULATED
from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.errors import InvalidTransitionError


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call returned, or with ``failure`` why it returned nothing."""

    value: object = None
    failure: str | None = None


def answer(call: wire.UtilityCall, scheduler: Scheduler, now_s: float) -> Answer:
    """Carry out a utility call.

    ``nodeserve_release`` takes a list of lease ids and unpins their blocks;
    ``nodeserve_kv_stats`` returns the counters of ``Handoffs.stats`` and ``Tier.stats``;
    ``nodeserve_pools`` and ``nodeserve_probe`` say where KV lies and how fast it comes here, as
    modelled.
    """
    match call.method:
        case "get_supported_tasks":
            return Answer(["generate"])
        case "is_sleeping" | "is_scheduler_paused":
            return Answer(value=False)
        case "reset_prefix_cache":
            return Answer(scheduler.clear_prefix_cache())
        case "reset_mm_cache" | "reset_encoder_cache":
            return Answer()
        case "list_loras":
            return Answer([])
        case "nodeserve_kv_stats":
            return Answer(scheduler.handoffs.stats() | scheduler.tier.stats())
        case "nodeserve_pools":
            return Answer([{"transport": SIMULATED}])
        case "nodeserve_probe":
            return Answer(scheduler.handoffs.probe())
        case "nodeserve_release":
            return _release(call.args, scheduler, now_s)
        case _:
            return Answer(failure=f"the simulated engine has no method {call.method}")


def _release(args: list[object], scheduler: Scheduler, now_s: float) -> Answer:
    try:
        (lease_ids,) = msgspec.convert(args, tuple[list[int]])
        scheduler.handoffs.release(lease_ids, now_s)
    except (msgspec.ValidationError, InvalidTransitionError) as error:
        return Answer(failure=str(error))
    return Answer()
