import asyncio
import os
import signal

import msgspec
import pytest

from nodeserve.clock import ManualClock
from nodeserve.errors import ConfigError, PeerError
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor import handover
from nodeserve.supervisor.children import KeptForkServer
from nodeserve.supervisor.reload import SETTLE_S, Outcome, Reload, check_same_vllm, play, rehearse
from nodeserve.wire.control import SayAgain
from tests.supervisor.estates import CONFIG, an_estate

DEADLINE_S = 10
OUTCOME = Outcome(version="0.1.0", config=CONFIG)


def agrees(fds):
    os.write(fds[1], msgspec.msgpack.encode(OUTCOME))
    return 0


def refuses(fds):
    os.write(fds[0], b"nodeserve: node.toml: model is not there\nnodeserve: and more\n")
    return 78


class Here:
    """A reload with a fake node around it."""

    def __init__(self, rehearsal):
        self.estate = an_estate()
        self.estate.children.rehearsal = rehearsal
        self.clock = ManualClock()
        self.woken, self.answers = asyncio.Event(), asyncio.Queue()
        self.reload = Reload(
            self.estate,
            self.clock,
            wake=self.woken.set,
            answer=lambda identity, reply: self.answers.put_nowait((identity, reply)),
        )

    async def due(self):
        self.reload.ask(b"c1")
        async with asyncio.timeout(DEADLINE_S):
            await self.woken.wait()
        assert self.reload.is_due

    async def refusal(self):
        async with asyncio.timeout(DEADLINE_S):
            identity, reply = await self.answers.get()
        assert identity == b"c1"
        assert reply.error.startswith("reload refused, nothing has changed: ")
        return reply


@pytest.mark.parametrize("phase", [NodePhase.STARTING, NodePhase.DRAINING, NodePhase.STOPPING])
async def test_a_node_that_does_not_serve_is_not_reloaded(phase):
    here = Here(agrees)
    here.estate.life.kept.phase = phase
    here.reload.ask(b"c1")
    assert f"the node is {phase}" in (await here.refusal()).error
    assert here.estate.children.num_rehearsals == 0


async def test_what_the_rehearsal_says_against_it_is_told_with_its_code():
    here = Here(refuses)
    here.reload.ask(b"c1")
    reply = await here.refusal()
    assert reply.exit_code == 78
    assert "node.toml: model is not there\nand more" in reply.error
    assert not here.reload.is_due


async def test_a_program_that_cannot_be_started_is_told_and_not_waited_for():
    def gone(_fds):
        raise FileNotFoundError(2, "No such file or directory", "python")

    here = Here(gone)
    here.reload.ask(b"c1")
    assert "No such file or directory: 'python'" in (await here.refusal()).error
    assert not here.reload.is_under_way


async def test_a_second_command_is_refused_and_a_second_signal_comes_next():
    here = Here(refuses)
    here.reload.ask(None)
    here.reload.ask(b"c1")
    assert "under way" in (await here.refusal()).error
    here.reload.ask(None)
    here.reload.ask(None)
    async with asyncio.timeout(DEADLINE_S):
        while here.estate.children.num_rehearsals < 2:  # noqa: ASYNC110  (no event says so)
            await asyncio.sleep(0.001)
    here.reload.close()
    assert here.estate.children.num_rehearsals == 2


async def test_it_waits_for_what_is_on_its_way_but_not_for_ever():
    here = Here(agrees)
    await here.due()
    here.estate.server.is_readable = True
    here.reload.carry_out()
    assert here.reload.is_due
    here.clock.advance(SETTLE_S + 1)
    here.reload.carry_out()
    assert "processes were being started" in (await here.refusal()).error
    assert not here.reload.is_due


async def test_a_node_that_begins_to_end_meanwhile_is_not_reloaded():
    here = Here(agrees)
    await here.due()
    here.estate.life.kept.phase = NodePhase.DRAINING
    here.reload.carry_out()
    assert "the node is draining" in (await here.refusal()).error


async def test_a_listener_that_cannot_be_opened_is_refused_before_anything_changes():
    more = msgspec.structs.replace(CONFIG.listeners[0], name="more", socket="/run/b.sock")
    wider = msgspec.structs.replace(CONFIG, listeners=(*CONFIG.listeners, more))

    def agrees_to_more(fds):
        os.write(fds[1], msgspec.msgpack.encode(Outcome(version="1", config=wider)))
        return 0

    here = Here(agrees_to_more)
    await here.due()
    assert not here.reload.is_imminent
    here.reload.carry_out()
    assert here.reload.is_imminent
    here.reload.carry_out()
    assert not here.reload.is_imminent
    reply = await here.refusal()
    assert (reply.exit_code, "/run/b.sock" in reply.error) == (78, True)
    assert here.estate.server.did == []
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def test_a_dry_run_says_what_would_change_and_changes_nothing():
    here = Here(agrees)
    here.reload.ask(b"c1", dry_run=True)
    async with asyncio.timeout(DEADLINE_S):
        identity, reply = await here.answers.get()
    assert (identity, reply.error) == (b"c1", None)
    assert "no setting has changed" in reply.detail
    assert not here.reload.is_due


async def test_where_the_kernel_refuses_the_supervisor_goes_on(monkeypatch):
    def refused(*_):
        raise OSError("no memory")

    here = Here(agrees)
    await here.due()
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    state = msgspec.structs.replace(an_estate().state(CONFIG, None), control_fd=fds[0])
    state = msgspec.structs.replace(state, lock_fd=fds[1], listeners=[])
    monkeypatch.setattr(os, "execve", refused)
    monkeypatch.setattr(type(here.estate), "state", lambda *_: state)
    here.reload.carry_out()
    assert here.estate.server.did == []  # one more turn, for signals that have come
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    here.reload.carry_out()
    assert "no memory" in (await here.refusal()).error
    assert here.estate.server.did == ["hung up", "picked up"]
    assert here.estate.outbox.sent == [(b"0", SayAgain())]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)


def test_another_vllm_than_the_one_that_runs_is_refused_with_both_releases():
    servers = [KeptForkServer("forkserver", 5, True, "0.1.0", "0.32.0")]
    check_same_vllm(servers, "0.32.0")
    check_same_vllm([KeptForkServer("forkserver", 5, False)], "0.33.0")  # it has loaded neither
    with pytest.raises(ConfigError, match=r"runs 0\.32\.0, and 0\.33\.0 is installed"):
        check_same_vllm(servers, "0.33.0")


async def test_a_rehearsal_plays_on_the_state_and_leaves_it(monkeypatch):
    estate = an_estate()

    def plays(fds):
        errand = handover.Rehearse(state_fd=os.dup(fds[2]), result_fd=os.dup(fds[1]))
        return play(errand, CONFIG)

    estate.children.rehearsal = plays
    outcome = await rehearse(estate.children, estate.state(CONFIG, None))
    assert outcome.config == CONFIG


@pytest.mark.parametrize(
    ("rehearsal", "error", "words"),
    [
        (lambda fds: 1, PeerError, "ended with code 1"),
        (lambda fds: 78, ConfigError, "ended with code 78"),
        (lambda fds: 0, PeerError, "answers otherwise"),
    ],
)
async def test_a_rehearsal_that_fails_says_how(rehearsal, error, words):
    estate = an_estate()
    estate.children.rehearsal = rehearsal
    with pytest.raises(error, match=words):
        await rehearse(estate.children, estate.state(CONFIG, None))
