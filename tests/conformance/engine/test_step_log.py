"""What every engine tells the ledger, whichever it is."""

import itertools

import pytest

from tests.conformance.engine.conftest import DECODE, PREFILL
from tests.conformance.engine.conftest import ledger as ledger_address
from tests.support.step_telling import HeardLedger


@pytest.fixture(scope="module")
def ledger(node):
    heard = HeardLedger(ledger_address(node))
    yield heard
    heard.close()


def prompt(start: int, length: int) -> list[int]:
    """A prompt of bytes that no other test's begins like."""
    return [start, *[3 + (start * 31 + index * 7) % 240 for index in range(length - 1)]]


def heard(ledger, generation, request_id, num_tokens):
    """Wait until so many tokens of a request were computed, and return each step's."""
    while sum(tokens for tokens, _ in ledger.computed(generation, request_id)) < num_tokens:
        ledger.hear()
    return ledger.computed(generation, request_id)


def test_every_token_is_computed_once_behind_all_before_it(node, ledger):
    asked = {node.add(PREFILL, prompt(10 + n, 40 * n), 30): 40 * n + 29 for n in range(1, 6)}
    for request_id in asked:
        node.finish(request_id)
    for request_id, num_tokens in asked.items():
        steps = heard(ledger, PREFILL, request_id, num_tokens)
        assert [context for _, context in steps] == [
            sum(tokens for tokens, _ in steps[:at]) for at in range(len(steps))
        ]
        assert sum(tokens for tokens, _ in steps) == num_tokens
        assert steps[0][0] > 1


def test_a_pulled_prompt_is_computed_where_it_was_prefilled(node, ledger):
    asked = prompt(20, 100)
    handoff = node.prefill(PREFILL, asked)
    decoding = node.add(DECODE, asked, 10, **handoff)
    node.finish(decoding)
    node.release(handoff)
    decoded = heard(ledger, DECODE, decoding, 10)
    assert sum(tokens for tokens, _ in decoded) == 10
    assert decoded[0] == (1, 99)


def test_an_engine_says_who_it_is_and_that_it_is_idle(node, ledger):
    while DECODE not in ledger.hellos:
        ledger.hear()
    assert ledger.hellos[DECODE].work.token_flops > 0
    node.whole(DECODE, prompt(30, 20), 3)
    until = len(ledger.logs.get(DECODE, ())) + 3
    while len(ledger.logs.get(DECODE, ())) < until or ledger.logs[DECODE][-1].runs:
        ledger.hear()
    logs = ledger.logs[DECODE]
    for before, after in itertools.pairwise(logs):
        assert (after.seq, after.begin_s) == (before.seq + 1, before.end_s)
        assert all(before.begin_s < run.end_s <= before.end_s for run in before.runs)
        assert sum(run.busy_s for run in before.runs) <= before.end_s - before.begin_s + 1e-6
