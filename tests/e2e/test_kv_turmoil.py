"""KV below the GPUs on real vLLM: it is found there, and no death changes an answer.

The tiers are small and shared by two workers, so that blocks are evicted, promoted and stored by
one while another reads. Answers are those of one engine without any tier, token by token.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeserve.wire.control import RestartRequest
from tests.e2e.asking import ask, prompts
from tests.e2e.conftest import REAL
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

WORKERS = ("aggregated-0", "aggregated-1")
HOST, DISK = "16MiB", "256MiB"
"""The host tier holds 120 blocks of 128 KiB; all the prompts together are 290."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("disk")
    made.chmod(0o700)
    return made


def words(tiny_model, directory, *more):
    tiers = ("--kv-host", HOST, "--kv-disk", f"{directory}:{DISK}")
    return (str(tiny_model), "--aggregated", "2", *tiers, *more, *REAL)


@pytest.fixture(scope="module")
def tiered(tiny_model, directory, tmp_path_factory):
    with daemon(tmp_path_factory.mktemp("tiered"), *words(tiny_model, directory)) as node:
        node.wait_ready()
        yield node
        assert node.stop() == 0


def kv(node):
    """Return what ``nodeserve kv --json`` says, as an operator sees it."""
    argv = [
        sys.executable,
        "-m",
        "nodeserve.cli.main",
        "kv",
        "--json",
        "--socket",
        str(node.socket),
    ]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)


def tier(node, name):
    return next(one for one in kv(node)["tiers"] if one["name"] == name)


def until(node, what, within_s=30.0):
    """Return the first account of the tiers of which ``what`` is true."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if what(said := kv(node)):
            return said
        time.sleep(0.05)  # the account has no event to wait for
    raise AssertionError(f"never came true: {said}")


def forget_gpu_caches(node):
    """Start both workers anew, so that whatever is found is found below them."""
    for name in WORKERS:
        assert node.command(RestartRequest(worker=name)).error is None


def new_prompt(length, seed):
    rng = random.Random(seed)
    return [rng.randrange(5, 260) for _ in range(length)]


def test_a_restarted_worker_finds_what_was_computed_before_it(tiered):
    prompt = new_prompt(1000, 1)
    first = ask(tiered, prompt, salt="once")
    until(tiered, lambda said: said["tiers"][0]["used_slots"] >= 31)
    forget_gpu_caches(tiered)
    again = ask(tiered, prompt, salt="once")
    assert (first.cached_tokens, again.cached_tokens) == (0, 992)
    assert again.token_ids == first.token_ids


def test_evicted_blocks_come_back_from_disk(tiered, reference):
    salt = "disk"
    answers = [ask(tiered, prompt, salt=salt) for prompt in prompts()]
    assert [a.token_ids for a in answers] == [a.token_ids for a in reference]
    until(tiered, lambda said: said["tiers"][0]["evictions"] > 0)
    forget_gpu_caches(tiered)
    before = tier(tiered, "disk")["hits"]
    answers = [ask(tiered, prompt, salt=salt) for prompt in prompts()]
    assert [a.token_ids for a in answers] == [a.token_ids for a in reference]
    assert tier(tiered, "disk")["hits"] > before


def test_listeners_salts_are_kept_apart(tiered):
    prompt = new_prompt(500, 2)
    ask(tiered, prompt, salt="one tenant")
    forget_gpu_caches(tiered)
    assert ask(tiered, prompt, salt="another").cached_tokens == 0


@pytest.mark.timeout(300)
def test_nothing_that_dies_in_the_middle_changes_an_answer(tiered, reference):
    """Load on both workers while the block manager and the workers are killed by turns."""
    victims = ["block-manager", "aggregated-0", "block-manager", "aggregated-1"]
    rng = random.Random(3)

    def asked(number):
        which = number % len(reference)
        answer = ask(tiered, prompts()[which], salt=f"turmoil {number % 3}")
        return answer.token_ids == reference[which].token_ids

    with ThreadPoolExecutor(4) as threads:
        coming = [threads.submit(asked, number) for number in range(4 * len(reference))]
        for victim in victims:
            time.sleep(rng.uniform(0.5, 2.0))  # anywhere in the load
            assert gone(tiered.kill(victim))
            tiered.wait_until(lambda status: all(one.state == "ready" for one in status.processes))
        assert all(answer.result() for answer in coming)


def test_a_stopped_block_manager_is_replaced_and_nobody_waits_for_it(tiered, reference):
    tiered.kill("block-manager", signal.SIGSTOP)
    answers = [ask(tiered, prompt, salt="stopped") for prompt in prompts()[:5]]
    assert [a.token_ids for a in answers] == [a.token_ids for a in reference[:5]]
    tiered.wait_until(lambda status: all(one.state == "ready" for one in status.processes))


@pytest.mark.timeout(300)
def test_a_restarted_node_finds_on_disk_what_it_had_and_believes_no_flipped_bit(
    tiny_model, tmp_path, reference
):
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    chosen = [12, 14, 16, 18]  # 128, 257, 512 and 1,000 tokens
    for run in ("cold", "warm", "flipped"):
        folder = tmp_path / run
        folder.mkdir()
        with daemon(folder, *words(tiny_model, disk)) as node:
            node.wait_ready()
            answers = [ask(node, prompts()[number], salt="kept") for number in chosen]
            assert [a.token_ids for a in answers] == [reference[n].token_ids for n in chosen]
            cached = sum(answer.cached_tokens for answer in answers)
            if run == "cold":
                assert cached == 0
                until(node, lambda said: said["tiers"][1]["used_slots"] >= 60)
            if run == "warm":
                assert cached == sum(len(prompts()[n]) // 32 * 32 for n in chosen) - 2
            if run == "flipped":
                assert cached < 1800
                assert tier(node, "disk")["corrupt"] > 0
            assert node.stop() == 0
        if run == "warm":
            flip_bits(disk)
    shutil.rmtree(disk)


def flip_bits(disk):
    """Change a bit in every 64 KiB of what lies on disk."""
    for path in disk.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 20:
            with path.open("r+b") as file:
                for at in range(40_000, path.stat().st_size, 1 << 16):
                    file.seek(at)
                    (byte,) = file.read(1) or b"\0"
                    file.seek(at)
                    file.write(bytes([byte ^ 4]))
