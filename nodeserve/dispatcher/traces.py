"""What the dispatcher remembers of finished requests, and how long things took of late."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from nodeserve.dispatcher.bookings import Unbooked
from nodeserve.dispatcher.records import ClientRequest
from nodeserve.router.messages import FailRequest
from nodeserve.wire.status import Quantiles, RequestTrace

NUM_TRACES: Final = 256
WINDOW_S: Final = 60.0
MAX_SAMPLES: Final = 2048


class SlidingQuantiles:
    """A latency over the last ``WINDOW_S`` seconds, or the last ``MAX_SAMPLES`` samples.

    Adding costs one append; sorting is left to who asks.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)

    def add(self, seconds: float, *, now_s: float) -> None:
        """Take in one measurement."""
        self._samples.append((now_s, seconds))

    def quantiles(self, *, now_s: float) -> Quantiles:
        """Return count, p50 and p99 by nearest rank, in ms."""
        since_s = now_s - WINDOW_S
        values = sorted(value for at_s, value in self._samples if at_s >= since_s)
        if not values:
            return Quantiles(window_s=WINDOW_S)
        last = len(values) - 1
        return Quantiles(
            count=len(values),
            p50_ms=values[round(last * 0.50)] * 1000,
            p99_ms=values[round(last * 0.99)] * 1000,
            window_s=WINDOW_S,
        )


@dataclass(slots=True)
class Counters:
    """Counts since the dispatcher started."""

    finished_requests: int = 0
    failed_requests: int = 0
    aborted_requests: int = 0
    resumed_requests: int = 0
    rejected_frames: int = 0
    stale_outputs: int = 0
    handoffs_completed: int = 0
    handoffs_failed: int = 0
    handoff_bytes: int = 0


class Traces:
    """The last requests and the recent latencies.

    Attributes:
        bookings: What the ledger is told.
    """

    def __init__(self, bookings: Unbooked | None = None) -> None:
        self.bookings = bookings or Unbooked()
        self.counters = Counters()
        self.ttft = SlidingQuantiles()
        self.itl = SlidingQuantiles()
        self.handoff = SlidingQuantiles()
        self._recent: deque[RequestTrace] = deque(maxlen=NUM_TRACES)

    @property
    def recent(self) -> tuple[RequestTrace, ...]:
        """The last finished requests, oldest first."""
        return tuple(self._recent)

    def finished(
        self,
        request: ClientRequest,
        finish: str,
        *,
        now_s: float,
        failure: FailRequest | None = None,
    ) -> None:
        """Book a request's end.

        ``finish`` is a name of vLLM's FinishReason, ``failure`` why we have failed the request.
        """
        match finish:
            case "error":
                self.counters.failed_requests += 1
            case "abort":
                self.counters.aborted_requests += 1
            case _:
                self.counters.finished_requests += 1
        self.bookings.ended(request, finish)
        first_s = request.first_output_s
        self._recent.append(
            RequestTrace(
                request_id=request.wire_id,
                listener=request.gateway.listener,
                prompt_tokens=request.prompt_tokens,
                cached_tokens=request.cached_tokens,
                output_tokens=request.output_tokens,
                finish=finish,
                error=None if failure is None else failure.reason,
                exit_code=0 if failure is None else failure.exit_code,
                prefill_worker=request.prefill_worker,
                decode_worker=request.decode_worker,
                handoff_bytes=request.handoff.num_bytes if request.handoff else 0,
                handoff_ms=request.handoff_s * 1000,
                ttft_ms=(first_s - request.arrived_s) * 1000 if first_s is not None else 0.0,
                total_ms=(now_s - request.arrived_s) * 1000,
                resumed=request.resumed,
            )
        )
