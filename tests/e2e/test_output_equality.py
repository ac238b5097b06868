"""Whatever happens between prefill and decode, a client gets the tokens of one engine.

All on real vLLM in float32, where tokens do not depend on what else is in the batch.
"""

import signal
import time
from pathlib import Path

import pytest

from nodeserve.wire.control import RoleRequest
from nodeserve.wire.kinds import Role
from tests.e2e.asking import ask, asking, prompts, stopped
from tests.e2e.conftest import LEASE_TTL_S, REAL
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

LOCAL_PROMPTS = 3
"""Of the prompts so many are shorter than what the default settings hand over."""


def handoffs(node):
    """Return how many handoffs were loaded and how many were computed again."""
    counted = node.status().requests.handoffs
    return counted.completed, counted.failed


def tokens(answers):
    return [answer.token_ids for answer in answers]


def test_a_pair_answers_as_one_engine_does(pair, reference):
    completed, failed = handoffs(pair)
    answers = [ask(pair, prompt, salt="sequential") for prompt in prompts()]
    assert tokens(answers) == tokens(reference)
    assert answers == reference
    assert handoffs(pair) == (completed + len(answers), failed)


def test_many_at_once_are_answered_as_one_by_one(pair, reference):
    completed, failed = handoffs(pair)
    with asking(pair, prompts(), salt="at once") as coming:
        assert tokens(answer.result() for answer in coming) == tokens(reference)
    assert handoffs(pair) == (completed + len(coming), failed)


def test_what_leases_no_longer_cover_is_computed_again(pair, reference):
    chosen = [*range(9, 20), 20]  # as many as may be prefilled ahead of a decode worker
    early, late = [[prompts()[number] for number in part] for part in (chosen[:-1], chosen[-1:])]
    completed, failed = handoffs(pair)
    with stopped(pair, "decode-0"), asking(pair, early, salt="late") as coming:
        pair.wait_until(lambda status: status.requests.handoffs.leased == len(early))
        time.sleep(LEASE_TTL_S)  # the end of a lease shows nowhere before somebody looks
        with asking(pair, late, salt="late") as last:
            # The owner looks when a request comes.
            pair.wait_until(lambda status: status.requests.handoffs.leased == len(chosen))
            pair.kill("decode-0", signal.SIGCONT)
            answers = [answer.result() for answer in (*coming, *last)]
    assert tokens(answers) == tokens(reference[number] for number in chosen)
    assert [a.prompt_tokens for a in answers] == [reference[n].prompt_tokens for n in chosen]
    after = handoffs(pair)
    assert sum(after) == completed + failed + len(chosen)
    assert after[1] >= failed + len(early)


def test_a_prefill_worker_may_die_after_its_first_handoff(pair, reference):
    """The decode worker cannot open the pool of a process that has ended."""
    _, failed = handoffs(pair)
    restart_prefill(pair)
    assert answer_without_prefill_worker(pair, 19, "first").token_ids == reference[19].token_ids
    assert handoffs(pair)[1] == failed + 1


def test_a_prefill_worker_may_die_after_a_later_handoff(pair, reference):
    """The decode worker has the pool mapped, and may still load from it."""
    before = sum(handoffs(pair))
    ask(pair, prompts()[8], salt="mapped")
    assert answer_without_prefill_worker(pair, 20, "mapped").token_ids == reference[20].token_ids
    assert sum(handoffs(pair)) == before + 2


def restart_prefill(node):
    """Let the prefill worker be one that no decode worker has met."""
    before = node.process_named("prefill-0").generation
    node.kill("prefill-0")
    node.wait_until(lambda status: is_back(status, before))


def is_back(status, before):
    return any(
        process.name == "prefill-0" and process.state == "ready" and process.generation > before
        for process in status.processes
    )


def answer_without_prefill_worker(node, number, salt):
    """Kill the prefill worker between a prompt's handoff and its load."""
    generation = node.process_named("prefill-0").generation
    with asking(node, [prompts()[number]], salt=salt) as coming, stopped(node, "decode-0"):
        node.wait_until(lambda status: status.requests.handoffs.leased == 1)
        assert gone(node.kill("prefill-0"))
        node.wait_until(lambda status: status.requests.handoffs.leased == 0)
    node.wait_until(lambda status: is_back(status, generation))
    return coming[0].result()


def test_four_workers_answer_as_one_engine_does(four, reference):
    answers = [ask(four, prompt, salt="sequential") for prompt in prompts()]
    assert answers == reference
    assert handoffs(four) == (len(answers) - LOCAL_PROMPTS, 0)


def test_four_workers_answer_many_at_once_as_one_by_one(four, reference):
    completed, failed = handoffs(four)
    with asking(four, prompts(), salt="at once") as coming:
        assert tokens(answer.result() for answer in coming) == tokens(reference)
    assert handoffs(four) == (completed + len(coming) - LOCAL_PROMPTS, failed)
    traces = four.status().requests.recent[-len(coming) :]
    assert {"prefill-0", "prefill-1"} <= {trace.prefill_worker for trace in traces}
    assert {"decode-0", "decode-1"} == {trace.decode_worker for trace in traces}


def test_roles_change_under_load_and_no_token_does(four, reference):
    generations = {process.name: process.generation for process in four.status().processes}
    with asking(four, prompts(), salt="roles") as coming:
        for worker, role in (("decode-1", Role.PREFILL), ("prefill-1", Role.DECODE)):
            four.wait_until(lambda status: status.requests.running_requests > 1)
            assert four.command(RoleRequest(worker=worker, role=role)).error is None
        assert tokens(answer.result() for answer in coming) == tokens(reference)
    assert four.process_named("decode-1").role is Role.PREFILL
    assert generations == {p.name: p.generation for p in four.status().processes}


def have_arrived(requests):
    return requests.queued_requests + requests.running_requests + requests.finished_requests


def test_a_node_that_drains_finishes_its_answers_and_leaves_nothing(
    tiny_model, tmp_path, reference
):
    shared = set(Path("/dev/shm").iterdir())
    words = (str(tiny_model), "--prefill", "1", "--decode", "1", *REAL)
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        pids = node.pids()
        with asking(node, prompts(), salt="drained") as coming:
            node.wait_until(lambda status: have_arrived(status.requests) == len(coming))
            node.process.send_signal(signal.SIGTERM)
            assert tokens(answer.result() for answer in coming) == tokens(reference)
        assert node.process.wait(60) == 0
    assert all(gone(pid, 1) for pid in pids)
    assert list(tmp_path.iterdir()) == []
    assert set(Path("/dev/shm").iterdir()) <= shared
