from types import SimpleNamespace

from nodeserve.dispatcher.records import ClientRequest
from nodeserve.ids import RequestId


def request(number: int) -> ClientRequest:
    return ClientRequest(
        request_id=RequestId(f"d1-{number}"),
        wire_id="a",
        gateway=SimpleNamespace(),
        add=None,
        aux=[],
        prompt_tokens=3,
        arrived_s=0.0,
    )


def test_no_two_requests_share_what_was_sent() -> None:
    first, second = request(1), request(2)
    first.sent.extend([7, 151_935])
    assert list(first.sent) == [7, 151_935]
    assert list(second.sent) == []


def test_requests_are_told_apart_even_with_the_same_fields() -> None:
    assert request(1) != request(1)
