import asyncio
import inspect
import os
from pathlib import Path

import pytest

from nodeserve.ids import Generation
from nodeserve.supervisor.children import Children
from nodeserve.supervisor.forkserver import ForkRequest
from nodeserve.supervisor.kernel import become_subreaper
from nodeserve.supervisor.runtime import RuntimeDirectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end in a loop as the supervisor's."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


class Nursery:
    """Real children of the test process, and a queue of their endings."""

    def __init__(self, runtime):
        become_subreaper()
        self.runtime = runtime
        self.endings = asyncio.Queue()
        self.births = []
        self.children = Children(
            runtime,
            self.births.append,
            lambda child, end: self.endings.put_nowait((child, end)),
        )
        self.last = 1

    async def start(self):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        await self.children.start_forkserver(
            "forkserver",
            Generation(1),
            modules=["tests.supervisor.entries"],
            environment=environment,
        )

    async def fork(self, function, *, name="child", spec=b"", fds=(), **more):
        self.last += 1
        request = ForkRequest(
            name=name, entry=f"tests.supervisor.entries:{function}", spec=spec, **more
        )
        return await self.children.fork("forkserver", Generation(self.last), request, fds)

    async def ending(self, deadline_s=10):
        async with asyncio.timeout(deadline_s):
            return await self.endings.get()

    async def close(self):
        self.children.send(Generation(1), 15)
        while self.children.get(1) is not None:
            await self.ending()
        self.children.close()


@pytest.fixture
def run_with_nursery(tmp_path):
    """Run an async test body that takes a Nursery."""

    def run(body):
        async def with_nursery():
            runtime = RuntimeDirectory(tmp_path / "d")
            nursery = Nursery(runtime)
            await nursery.start()
            try:
                await body(nursery)
            finally:
                await nursery.close()
                runtime.close(keep_logs=False)

        asyncio.run(with_nursery())

    return run
