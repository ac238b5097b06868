"""A client that goes away leaves nothing behind, wherever its request was; on real vLLM."""

import pytest

from tests.e2e.asking import Connection, ask, prompts, stopped

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

LONG = prompts()[20]
MAX_SEQS = 8


def is_empty(status):
    """Whether nobody waits, nothing runs, and no KV block is held."""
    requests = status.requests
    return (
        (requests.queued_requests, requests.running_requests, requests.handoffs.leased) == (0, 0, 0)
        and all(load.running == load.waiting == 0 for load in requests.workers)
        and all(load.kv_usage == 0 for load in requests.workers)
    )


def aborted(node):
    return node.status().requests.aborted_requests


def still_answers(node, reference, salt):
    return ask(node, prompts()[10], salt=salt).token_ids == reference[10].token_ids


def test_leaving_while_prefilling(pair, reference):
    before = aborted(pair)
    with stopped(pair, "prefill-0"):
        client = Connection(pair, LONG, cache_salt="prefilling")
        pair.wait_until(lambda status: status.requests.running_requests == 1)
        client.leave()
        pair.wait_until(lambda status: status.requests.aborted_requests == before + 1)
    pair.wait_until(is_empty)
    assert still_answers(pair, reference, "after prefilling")


def test_leaving_in_the_middle_of_a_prefill(pair, reference):
    before = aborted(pair)
    clients = [Connection(pair, LONG, cache_salt=f"middle {n}") for n in range(4)]
    pair.wait_until(lambda status: status.requests.running_requests == len(clients))
    for client in clients:
        client.leave()
    pair.wait_until(lambda status: status.requests.aborted_requests == before + len(clients))
    pair.wait_until(is_empty)
    assert still_answers(pair, reference, "after the middle")


def test_leaving_while_queued(pair, reference):
    before = aborted(pair)
    with stopped(pair, "prefill-0"):
        running = [Connection(pair, prompts()[8], cache_salt="queued") for _ in range(MAX_SEQS)]
        pair.wait_until(lambda status: status.requests.running_requests == MAX_SEQS)
        waiting = [Connection(pair, prompts()[8], cache_salt="queued") for _ in range(3)]
        pair.wait_until(lambda status: status.requests.queued_requests == len(waiting))
        for client in waiting:
            client.leave()
        pair.wait_until(lambda status: status.requests.queued_requests == 0)
        assert aborted(pair) == before + len(waiting)
    for client in running:
        client.wait_for(b"[DONE]")
        client.leave()
    pair.wait_until(is_empty)
    assert aborted(pair) == before + len(waiting)
    assert still_answers(pair, reference, "after queued")


def test_leaving_between_prefill_and_decode(pair, reference):
    before = aborted(pair)
    with stopped(pair, "decode-0"):
        client = Connection(pair, LONG, cache_salt="between")
        pair.wait_until(lambda status: status.requests.handoffs.leased == 1)
        client.leave()
        pair.wait_until(lambda status: status.requests.handoffs.leased == 0)
        assert aborted(pair) == before + 1
    pair.wait_until(is_empty)
    assert still_answers(pair, reference, "after between")


def test_leaving_while_decoding(pair, reference):
    before = aborted(pair)
    client = Connection(pair, prompts()[15], max_tokens=1500, cache_salt="decoding")
    client.wait_for(b"data: ")
    client.leave()
    pair.wait_until(lambda status: status.requests.aborted_requests == before + 1)
    pair.wait_until(is_empty)
    assert pair.status().requests.recent[-1].output_tokens < 1500
    assert still_answers(pair, reference, "after decoding")
