"""Sees what vLLM's scheduler plans and what of it has ended, and records that.

Works for both of vLLM's loops: with asynchronous scheduling a step is planned before the one
before it has ended, but they end in order. Source: vllm/v1/engine/core.py, ``step`` and
``step_with_batch_queue`` (0.32).
"""

from typing import Any

from nodeserve.clock import Clock
from nodeserve.engine.step_log import StepRecorder
from nodeserve.wire.accounting import Member


class StepWatch:
    """Stands between vLLM's engine core and its scheduler.

    Who computes one token is in the batch, whoever computes more is not: to a step's cost the
    last token of a prompt is like a token of an answer.
    """

    def __init__(self, recorder: StepRecorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock
        self._batch: set[str] = set()

    def install(self, scheduler: Any) -> None:
        """Look on from now on whenever ``scheduler`` plans a step or takes its outputs."""
        schedule, update = scheduler.schedule, scheduler.update_from_output

        def watched_schedule(*args: Any, **named: Any) -> Any:
            planned = schedule(*args, **named)
            self.planned(planned)
            return planned

        def watched_update(planned: Any, *args: Any, **named: Any) -> Any:
            self.ended(planned)
            return update(planned, *args, **named)

        scheduler.schedule = watched_schedule
        scheduler.update_from_output = watched_update

    def planned(self, planned: Any) -> None:
        """Take note of a SchedulerOutput whose step begins now."""
        if planned.total_num_scheduled_tokens:
            self._recorder.began(self._clock.now_s())

    def ended(self, planned: Any) -> None:
        """Take note that the step of a SchedulerOutput is over."""
        if not planned.total_num_scheduled_tokens:
            return
        now_s = self._clock.now_s()
        counts: dict[str, int] = planned.num_scheduled_tokens
        if planned.total_num_scheduled_tokens == len(counts) and counts.keys() == self._batch:
            self._recorder.ended(now_s)
            return
        batch = {leg_id for leg_id, count in counts.items() if count == 1}
        contexts = _contexts(planned)
        before, self._batch = self._batch, batch
        self._recorder.ended(
            now_s,
            joined=[Member(leg_id, 1, contexts.get(leg_id, 0)) for leg_id in batch - before],
            left=list(before - batch),
            once=[
                Member(leg_id, count, contexts.get(leg_id, 0))
                for leg_id, count in counts.items()
                if count != 1
            ],
        )


def _contexts(planned: Any) -> dict[str, int]:
    """Return how many tokens of each request had been computed before the step."""
    cached = planned.scheduled_cached_reqs
    found = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    found.update((new.req_id, new.num_computed_tokens) for new in planned.scheduled_new_reqs)
    return found
