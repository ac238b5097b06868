"""The ledger that a simulated dispatcher talks to: it looks at what is booked."""

from nodeserve.sim.story import RuleBrokenError
from nodeserve.wire.accounting import (
    EndedRequest,
    LedgerAck,
    RequestsNoted,
    decode_to_ledger,
    encode_message,
)


class SimLedger:
    """One dispatcher's connection; it takes everything and acknowledges it at once."""

    def __init__(self) -> None:
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._legs: set[str] = set()
        self._answers: list[bytes] = []
        self._last_seq = 0

    def send(self, frame: bytes) -> bool:
        """Take a note of requests."""
        message = decode_to_ledger(frame)
        if isinstance(message, RequestsNoted) and message.seq > self._last_seq:
            self._last_seq = message.seq
            self._started.update(request.request_id for request in message.started)
            for request in message.ended:
                self._end(request)
            self._answers.append(encode_message(LedgerAck(seq=message.seq)))
        return True

    def recv(self) -> bytes | None:
        """Return an acknowledgement."""
        return self._answers.pop(0) if self._answers else None

    def close(self) -> None:
        """Stay as it is."""

    def check_end(self) -> None:
        """Check, when all requests have had their end, that it was booked.

        Raises:
            RuleBrokenError: Somebody's energy would stay provisional for ever.
        """
        if left := self._started - self._ended:
            raise RuleBrokenError("every end is booked", f"{sorted(left)} are not")

    def _end(self, request: EndedRequest) -> None:
        legs = {leg.leg_id for leg in request.legs}
        if request.request_id in self._ended or legs & self._legs:
            raise RuleBrokenError("a request is booked once", str(request))
        self._ended.add(request.request_id)
        self._legs |= legs
        own = all(leg_id.rpartition(".")[0] == request.request_id for leg_id in legs)
        if not legs or not own or len(legs) != len(request.legs):
            raise RuleBrokenError("a request is booked with its own legs", str(request))
        is_lost = request.outcome in {"abort", "error"}
        scrapped = [leg.is_scrap for leg in request.legs]
        if all(scrapped) is not is_lost or (request.output_tokens == 0 and not is_lost):
            raise RuleBrokenError("what was answered is of use, other things not", str(request))
