"""The block manager dies, stops or hangs: hits become misses, and nothing else happens."""

import signal
import time

import pytest

from nodeserve.wire.control import RestartRequest
from nodeserve.wire.kv_control import KvTierStatus, KvTierStatusRequest
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

MANAGER = "block-manager"
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
PROMPT = [7 * place % 250 + 3 for place in range(500)]
NUM_BLOCKS = 31
"""Full blocks of 16 tokens in the prompt but for its last token."""

DETECTED_WITHIN_S = 1.2


@pytest.fixture(scope="module")
def tiered(tiny_model, tmp_path_factory):
    """A node with a host tier, slow enough to be met in the middle of a stream."""
    folder = tmp_path_factory.mktemp("t")
    words = (str(tiny_model), *SIMULATED, "--speedup", "0.5", "--kv-host", "64MiB")
    with daemon(folder, *words) as running:
        yield running.wait_ready()
        assert running.stop() == 0


@pytest.fixture
def node(tiered):
    """The same; each test gets it whole and leaves it so."""
    tiered.wait_until(lambda status: status.state == "ready")
    return tiered


def until(node, what) -> KvTierStatus:
    """Return the first account of the tiers that satisfies ``what``."""
    return node.wait_until(lambda status: status.kv is not None and what(status.kv)).kv


def joined(node) -> KvTierStatus:
    """Wait until every engine uses the tier."""
    return until(node, lambda kv: kv.state == "serving" and len(kv.engines) == len(WORKERS))


def restarted(node, names, hurt=None):
    """Wait until the next incarnation of each process is ready."""
    before = {p.name: p.generation for p in node.status().processes}
    for name in names:
        (hurt or node.kill)(name)
    node.wait_until(
        lambda status: (
            status.state == "ready"
            and all(p.generation > before[p.name] for p in status.processes if p.name in names)
        )
    )


def computed(node, salt):
    """Compute the prompt, and return the answer when its blocks are in the tier."""
    before = joined(node).tiers[0].stores
    answer = node.complete(PROMPT, max_tokens=8, cache_salt=salt)
    until(node, lambda kv: kv.tiers and kv.tiers[0].stores >= before + NUM_BLOCKS)
    return answer["choices"][0]["text"]


def found(node, salt):
    """Ask again; return the answer, and how many tokens of its prompt were not computed."""
    answer = node.complete(PROMPT, max_tokens=8, cache_salt=salt)
    details = answer["usage"]["prompt_tokens_details"] or {}
    return answer["choices"][0]["text"], details.get("cached_tokens", 0)


def test_what_dead_workers_have_computed_is_found_by_the_next(node):
    expected = computed(node, "w")
    restarted(node, WORKERS)
    assert found(node, "w") == (expected, NUM_BLOCKS * 16)
    assert not joined(node).tiers[0].writing


def test_a_killed_block_manager_comes_back_to_what_was_kept(node):
    expected = computed(node, "k")
    workers = {p.name: p.pid for p in node.status().processes if p.name in WORKERS}
    restarted(node, [MANAGER])
    assert {p.name: p.pid for p in node.status().processes if p.name in WORKERS} == workers
    restarted(node, WORKERS)  # so that only the tier can know the prompt
    assert found(node, "k") == (expected, NUM_BLOCKS * 16)


def test_streams_do_not_notice_the_death_of_the_block_manager(node):
    calm = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    before = node.status().requests
    streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(10)
    assert gone(node.kill(MANAGER))
    assert [stream.end()[:2] for stream in streams] == expected
    after = node.status().requests
    assert (after.resumed_requests, after.failed_requests) == (
        before.resumed_requests,
        before.failed_requests,
    )


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_node_without_its_block_manager_is_degraded_and_answers(node, number):
    expected = computed(node, f"n{number}")
    began_s = time.monotonic()
    pid = node.kill(MANAGER, number)
    text, _ = found(node, f"n{number}")
    assert text == expected
    assert gone(pid)
    assert time.monotonic() - began_s < DETECTED_WITHIN_S + 1.0
    status = node.wait_until(lambda status: status.state == "ready")
    assert status.requests.failed_requests == 0


def test_a_block_manager_that_dies_too_often_stays_down_until_it_is_restarted(node):
    for _ in range(6):
        pid = node.process_named(MANAGER).pid
        if pid is None:
            break
        assert gone(node.kill(MANAGER))
        status = node.wait_until(
            lambda status: any(
                p.name == MANAGER and p.state in ("ready", "failed") for p in status.processes
            )
        )
    assert (status.state, status.kv) == ("degraded", None)
    assert status.detail.startswith("block-manager is failed")
    assert found(node, "down")[0]
    reply = node.ask(KvTierStatusRequest())
    assert "block-manager is failed" in reply.error
    reply = node.command(RestartRequest(worker=MANAGER))
    assert (reply.error, "block-manager is ready" in reply.detail) == (None, True)
    node.wait_until(lambda status: status.state == "ready")


def test_a_restart_of_the_block_manager_needs_no_force_and_keeps_what_was_kept(node):
    expected = computed(node, "r")
    reply = node.command(RestartRequest(worker=MANAGER))
    assert reply.error is None
    restarted(node, WORKERS)
    assert found(node, "r") == (expected, NUM_BLOCKS * 16)


def test_workers_that_die_while_the_block_manager_is_gone_are_made_known_to_its_successor(node):
    expected = computed(node, "b")
    restarted(node, [MANAGER, *WORKERS])
    assert not joined(node).tiers[0].writing
    assert found(node, "b") == (expected, NUM_BLOCKS * 16)
