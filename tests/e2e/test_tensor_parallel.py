"""Workers of one rank and of two hand over to each other, share a tier, die and end as a whole.

On real vLLM in float32, with the default settings for what counts as stuck.
"""

import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeserve.wire.control import DrainRequest
from tests.e2e.asking import OUTPUT_TOKENS, ask, prompts
from tests.e2e.conftest import REAL
from tests.e2e.streams import Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.timeout(150)]

ASKED = (0, 5, 8, 12, 16, 19)
"""Which of the prompts: within a block and over several steps."""


STORING_TRIES = 10


@contextmanager
def pair(model, folder, tp_prefill, tp_decode, *more):
    """A node that hands every prompt over, with a temporary directory of its own."""
    config, temporary = folder / "node.toml", folder / "tmp"
    config.write_text("[router]\nlocal_prefill_tokens = 0\n")
    temporary.mkdir()
    words = ("--config", str(config), "--prefill", "1", "--decode", "1")
    words += ("--tp-prefill", str(tp_prefill), "--tp-decode", str(tp_decode), *more, *REAL)
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("TMPDIR", str(temporary))
        # Else the first step of several ranks compiles something, which takes longer than the test.
        environ.setenv("TORCHDYNAMO_DISABLE", "1")
        with daemon(folder, str(model), *words) as node:
            node.wait_ready()
            yield node


def answers_as_one_engine(node, reference):
    answers = [ask(node, prompts()[number], salt="unequal") for number in ASKED]
    assert [a.token_ids for a in answers] == [reference[number].token_ids for number in ASKED]
    handoffs = node.status().requests.handoffs
    assert (handoffs.completed, handoffs.failed, handoffs.leased) == (len(ASKED), 0, 0)


def family(pid):
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def ranks(pids):
    return [pid for pid in pids if "Worker_TP" in Path(f"/proc/{pid}/comm").read_text()]


def shared_inodes(pids):
    """Return what these processes have mapped of shared memory."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {int(line.split()[4]) for line in lines if "/dev/shm/" in line}


def named_inodes():
    with os.scandir("/dev/shm") as entries:
        return {entry.inode() for entry in entries}


def left_in(folder):
    """Return what a process that is killed now would leave outside the runtime directory."""
    return [path.name for path in folder.iterdir() if not stat.S_ISDIR(path.lstat().st_mode)]


def test_one_rank_hands_over_to_two_of_which_one_dies_in_a_stream(tiny_model, tmp_path, reference):
    with pair(tiny_model, tmp_path, 1, 2) as node:
        answers_as_one_engine(node, reference)
        assert [process.tp for process in node.status().processes if process.role] == [1, 2]
        before = node.process_named("decode-0")
        pids = family(before.pid)
        shared = shared_inodes(pids)
        assert len(shared) > 2
        assert not shared & named_inodes()
        assert left_in(tmp_path / "tmp") == []

        more = {"max_tokens": OUTPUT_TOKENS, "temperature": 0, "cache_salt": "dies"}
        stream = Stream(node, node.model, prompts()[12], **more)
        stream.wait_for(4)
        os.kill(ranks(pids)[1], signal.SIGKILL)
        assert stream.end()[0] == reference[12].token_ids
        assert node.status().requests.resumed_requests == 1
        assert all(gone(pid) for pid in pids)
        after = node.wait_until(lambda status: status.state == "ready")
        assert next(p for p in after.processes if p.name == "decode-0").restarts == 1
        assert node.stop() == 0
    assert left_in(tmp_path / "tmp") == []


def test_two_ranks_hand_over_to_one(tiny_model, tmp_path, reference):
    with pair(tiny_model, tmp_path, 2, 1) as node:
        answers_as_one_engine(node, reference)
        pids = family(node.process.pid)
        assert len(ranks(pids)) == 2
        assert node.stop() == 0
    assert all(gone(pid) for pid in pids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.toml", "tmp"]
    assert left_in(tmp_path / "tmp") == []


@pytest.fixture
def hybrid_model(tmp_path_factory):
    """Every other layer has a sliding window; other prompts come to other tokens."""
    folder = tmp_path_factory.mktemp("hybrid")
    program = (
        "import sys; from tests.support.tiny_model import make; make(sys.argv[1], "
        "layer_types=['full_attention', 'sliding_attention'] * 2, sliding_window=100)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], timeout=120, check=True)
    return folder


def test_one_rank_loads_from_the_tier_what_two_have_stored_of_a_model_with_windows(
    hybrid_model, tmp_path
):
    prompt = prompts()[17]
    num_blocks = len(prompt) // 32
    with pair(hybrid_model, tmp_path, 2, 1, "--kv-host", "64MiB") as node:
        node.wait_until(lambda status: status.kv is not None and len(status.kv.engines) == 2)
        first = ask(node, prompt, salt="tier")
        for _ in range(STORING_TRIES):
            if node.status().kv.tiers[0].stores >= num_blocks:
                break
            # On a busy machine the block manager is given up before it has answered; what is not
            # stored is offered again.
            assert ask(node, prompt, salt="tier").token_ids == first.token_ids
        before = node.process_named("decode-0").generation
        node.kill("decode-0")
        node.wait_until(
            lambda status: (
                status.state == "ready"
                and any(
                    engine.worker == "decode-0" and engine.generation > before
                    for engine in status.kv.engines
                )
            )
        )
        assert node.command(DrainRequest(worker="prefill-0", force=True)).error is None
        loaded = ask(node, prompt, salt="tier")
        assert loaded.token_ids == first.token_ids
        assert (first.cached_tokens, loaded.cached_tokens) == (0, num_blocks * 32)
        assert node.stop() == 0
