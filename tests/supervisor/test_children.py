import asyncio
import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.supervisor.children import Children, Exit
from tests.support.daemon import gone


def test_a_kill_is_noticed_and_named(run_with_nursery):
    async def body(nursery):
        child = await nursery.fork("sleep")
        nursery.children.send(child.generation, signal.SIGKILL)
        ended_child, ended = await nursery.ending()
        assert ended_child == child
        assert ended == Exit(None, signal.SIGKILL)
        assert ended.exit_code == 137
        assert nursery.children.get(child.generation) is None

    run_with_nursery(body)


def test_a_child_that_dies_at_once_is_still_seen(run_with_nursery):
    async def body(nursery):
        for _ in range(20):
            await nursery.fork("die")
            assert (await nursery.ending())[1].signal is signal.SIGKILL

    run_with_nursery(body)


def test_each_incarnation_knows_where_its_log_begins(run_with_nursery):
    async def body(nursery):
        for _ in range(2):
            child = await nursery.fork("crash")
            await nursery.ending()
            tail = nursery.runtime.log_tail("child", child.log_start, num_lines=100)
            assert tail.count("error: RuntimeError: boom") == 1
        assert child.log_start > 0

    run_with_nursery(body)


def test_the_helpers_of_a_dead_child_are_killed_with_it(run_with_nursery):
    async def body(nursery):
        reader, writer = os.pipe()
        child = await nursery.fork("start_helper_and_sleep", fds=[writer])
        os.close(writer)
        helper = int(os.read(reader, 20))
        pidfd = os.pidfd_open(helper)
        nursery.children.send(child.generation, signal.SIGKILL)
        await nursery.ending()
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, lambda: gone.done() or gone.set_result(None))
        async with asyncio.timeout(10):
            await gone
        asyncio.get_running_loop().remove_reader(pidfd)
        await nursery.children.cleared(child.name)
        await nursery.children.cleared("nobody of that name")
        os.close(pidfd)
        os.close(reader)

    run_with_nursery(body)


def test_a_dead_fork_server_leaves_its_children_alive(run_with_nursery):
    async def body(nursery):
        child = await nursery.fork("sleep")
        server = nursery.children.get(1)
        nursery.children.send(Generation(1), signal.SIGKILL)
        assert (await nursery.ending())[0] == server
        os.kill(child.pid, 0)
        with pytest.raises(PeerError, match="not running"):
            await nursery.fork("sleep")
        nursery.children.send(child.generation, signal.SIGKILL)
        assert (await nursery.ending())[0] == child

    run_with_nursery(body)


def test_no_descriptor_is_left_of_many_children(run_with_nursery):
    async def body(nursery):
        def open_fds():
            return len(list(Path("/proc/self/fd").iterdir()))

        await nursery.fork("leave", spec=b"0")
        await nursery.ending()
        before = open_fds()
        for _ in range(30):
            await nursery.fork("leave", spec=b"0")
            await nursery.ending()
        assert open_fds() == before

    run_with_nursery(body)


@pytest.mark.parametrize(
    ("ended", "code", "text"),
    [
        (Exit(0, None), 0, "exited with code 0"),
        (Exit(78, None), 78, "exited with code 78"),
        (Exit(None, signal.SIGTERM), 143, "killed by SIGTERM"),
        (Exit(None, signal.SIGKILL), 137, "killed by SIGKILL (perhaps out of memory)"),
    ],
)
def test_an_ending_is_described_as_a_shell_would(ended, code, text):
    assert ended.exit_code == code
    assert ended.describe() == text


def test_children_are_taken_over_also_one_that_died_meanwhile(run_with_nursery):
    async def body(nursery):
        lives, dies = await nursery.fork("sleep", name="a"), await nursery.fork("sleep", name="b")
        kept = nursery.children.kept
        for child in nursery.children._children.values():  # this loop sees nothing any more
            asyncio.get_running_loop().remove_reader(child.pidfd)
            os.close(child.pidfd)
        server = nursery.children._forkservers["forkserver"]
        asyncio.get_running_loop().remove_reader(server.fd)
        server._channel.detach()
        os.kill(dies.pid, signal.SIGKILL)
        nursery.children = Children(
            nursery.runtime,
            lambda child: None,
            lambda child, end: nursery.endings.put_nowait((child, end)),
        )
        nursery.children.take_over(kept)
        ended, how = await nursery.ending()
        assert (ended.pid, ended.generation, how.signal) == (dies.pid, dies.generation, 9)
        again = nursery.children.get(lives.generation)
        assert (again.pid, again.started_s) == (lives.pid, lives.started_s)
        more = await nursery.fork("leave", spec=b"3")
        assert (await nursery.ending())[1] == Exit(3, None)
        assert more.pid != lives.pid
        nursery.children.send(lives.generation, signal.SIGKILL)
        assert (await nursery.ending())[0] == again

    run_with_nursery(body)


def test_a_program_is_run_to_its_end_among_children(run_with_nursery):
    async def body(nursery):
        said = os.memfd_create("said")
        code = await nursery.children.run_program(
            [sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(78)"],
            environment=os.environ,
            fds=[said],
        )
        assert code == 78
        assert os.pread(said, 100, 0) == b"no\n"
        os.close(said)

    run_with_nursery(body)


def test_a_program_that_nobody_waits_for_is_killed(run_with_nursery):
    async def body(nursery):
        said = os.memfd_create("said")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await nursery.children.run_program(["sleep", "60"], environment={}, fds=[said])
        os.close(said)
        assert nursery.children._guests == set()

    run_with_nursery(body)


def test_a_child_that_cannot_be_watched_is_not_left_alone(run_with_nursery, monkeypatch):
    async def body(nursery):
        def no_file(pid):
            monkeypatch.undo()
            pids.append(pid)
            raise OSError(errno.EMFILE, "Too many open files")

        pids = []
        monkeypatch.setattr(os, "pidfd_open", no_file)
        with pytest.raises(OSError, match="Too many open files"):
            await nursery.fork("sleep")
        assert await asyncio.to_thread(gone, pids[0])
        assert nursery.children.get(nursery.last) is None

    run_with_nursery(body)
