"""A response is found by the id that its client got, whatever the gateways make of it."""

from contextlib import closing

import pytest

from nodeserve.errors import ConfigError, RequestError
from nodeserve.ledger.database import open_to_read
from nodeserve.ledger.response import find_requests, read_response
from tests.ledger.books import ended, leg, started

WIRE_IDS = {
    1: "cmpl-996bc7b0-74e58af0",  # rust
    2: "cmpl-my-id_1-dae01c60",  # rust, with an X-Request-Id
    3: "chatcmpl-1b631502-f76cd1aa",  # rust
    4: "0_cmpl-bd7ed6030202f70e-0-874cdbbd",  # python, n=2
    5: "1_cmpl-bd7ed6030202f70e-0-874cdbbd",
    6: "cmpl-9aa461c371f8b159-0-8994067c",  # python, two prompts
    7: "cmpl-9aa461c371f8b159-1-9b00e325",
    8: "0_chatcmpl-a0d1bef7bfb2ea9f-b033df8c",  # python, n=2
    9: "1_chatcmpl-a0d1bef7bfb2ea9f-b033df8c",
    10: "resp_b53666ad09db1068_0-9a8841ac",  # python
    11: "chatcmpl-batch_0-9a8841ac",  # python, two conversations
    12: "chatcmpl-batch_1-9a8841ad",
    13: "cmpl-my-0-dae01c61",  # python, with an X-Request-Id
    14: "chatcmpl-my-a2ed6e48",
    15: "cmpl-12345678-0-a2ed6e48",
}
"""As seen at the dispatcher behind vLLM 0.32's servers."""


@pytest.fixture
def seen(books):
    notes = [ended(number, wire_id=wire_id) for number, wire_id in WIRE_IDS.items()]
    books.book(notes=[books.noted(ended=notes)])
    return books


def found(books, response_id):
    with closing(open_to_read(books.path)) as connection:
        requests = find_requests(connection, response_id)
    return [int(request.request_id.removeprefix("d9-")) for request in requests]


@pytest.mark.parametrize(
    ("response_id", "numbers"),
    [
        ("cmpl-996bc7b0", [1]),
        ("cmpl-my-id_1", [2]),
        ("my-id_1", [2]),
        ("chatcmpl-1b631502", [3]),
        ("cmpl-bd7ed6030202f70e", [4, 5]),
        ("cmpl-9aa461c371f8b159", [6, 7]),
        ("chatcmpl-a0d1bef7bfb2ea9f", [8, 9]),
        ("resp_b53666ad09db1068", [10]),
        ("chatcmpl-batch", [11, 12]),
        ("chatcmpl-batch_1", [12]),
        ("my", [13, 14]),
        ("cmpl-my", [13]),
        ("my-id", []),
        ("cmpl-my-id", []),
        ("cmpl-12345678", [15]),
        ("cmpl-996bc7b", []),
        ("cmpl-", []),
        ("chatcmpl-batch_1-9a8841ad", [12]),
        ("", []),
        ("%", []),
    ],
)
def test_the_clients_id_finds_its_requests_and_no_other(seen, response_id, numbers):
    assert found(seen, response_id) == numbers


def test_figures_are_by_role_and_provisional_until_settled(books):
    books.book(opened=[books.opened(0), books.opened(1)])
    books.book(
        books.settled({("d9-1.1", "prefill"): 100}, index=0),
        books.settled({("d9-1.2", "decode"): 300, ("d9-1.3", "aggregated"): 7}, index=1),
        notes=[books.noted(started=[started(1)])],
    )
    one = read_response(books.path, "cmpl-1")
    assert (one.prefill_mj, one.decode_mj, one.aggregated_mj, one.scrap_mj) == (100, 300, 7, 0)
    assert (one.total_mj, one.is_settled, one.requests[0].outcome) == (407, False, None)
    legs = (leg("d9-1.1", role="prefill"), leg("d9-1.2"), leg("d9-1.3", is_scrap=True))
    books.book(notes=[books.noted(ended=[ended(1, legs=legs)])], until_s=20.0)
    one = read_response(books.path, "cmpl-1")
    assert (one.total_mj, one.aggregated_mj, one.scrap_mj, one.is_settled) == (407, 0, 7, True)
    assert one.requests[0].meters == {"GPU-0": 100, "GPU-1": 307}


def test_what_was_not_metered_is_unknown_and_what_never_ran_is_nothing(books):
    notes = [ended(1, wire_id="0_cmpl-x-0-0123abcd"), ended(2, legs=(), output_tokens=0)]
    books.book(notes=[books.noted(ended=notes)])
    assert read_response(books.path, "cmpl-x").total_mj is None
    assert read_response(books.path, "cmpl-2").total_mj == 0


def test_a_gap_in_its_time_says_that_figures_may_be_too_low(books):
    books.book(opened=[books.opened()])
    books.book(books.settled({"d9-1.1": 100}, begin_s=1.0))
    books.book(books.settled({}, quarantine_mj=50, cause="#down", begin_s=2.0))
    notes = [ended(1, ended_s=10.0), ended(2, ended_s=1.0)]
    books.book(notes=[books.noted(ended=notes)])
    assert read_response(books.path, "cmpl-1").requests[0].gaps == ("#down",)
    assert read_response(books.path, "cmpl-2").requests[0].gaps == ()


def test_an_unknown_response_and_a_ledger_that_is_not_there_are_told_apart(books, tmp_path):
    with pytest.raises(RequestError, match="knows no response cmpl-no"):
        read_response(books.path, "cmpl-no")
    with pytest.raises(ConfigError, match="is not there"):
        read_response(tmp_path / "no.db", "cmpl-no")
