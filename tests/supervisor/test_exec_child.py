import os

import msgspec

from nodeserve.supervisor.exec_child import ExecSpec
from nodeserve.supervisor.forkserver import ForkRequest


def test_the_program_gets_its_fds_from_3_on_and_only_its_own_environment(run_with_nursery):
    async def body(nursery):
        reader, writer = os.pipe()
        spec = ExecSpec(
            argv=("/bin/sh", "-c", 'echo "$A,$HOME" >&4; ls /proc/self/fd | wc -l >&4'),
            environment={"A": "1", "PATH": "/usr/bin:/bin"},
        )
        request = ForkRequest(
            name="gateway",
            entry="nodeserve.supervisor.exec_child:run",
            spec=msgspec.msgpack.encode(spec),
        )
        await nursery.children.fork("forkserver", 99, request, [2, writer])
        os.close(writer)
        _, ended = await nursery.ending()
        assert ended.code == 0
        lines = os.read(reader, 100).decode().split()
        os.close(reader)
        assert lines[0] == "1,"
        assert int(lines[1]) <= 6  # 0 to 4, and the directory that ls reads

    run_with_nursery(body)
