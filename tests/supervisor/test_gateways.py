import asyncio
import socket
import stat

import msgspec
import pytest

from nodeserve.config.node import GatewayKind, Listener, NodeConfig
from nodeserve.engine.shared_counts import SharedCounts
from nodeserve.errors import ConfigError
from nodeserve.gateway.launch import counts_path
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import ProcessReady, ProcessSick
from nodeserve.supervisor import gateways
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.runtime import RuntimeDirectory


def config(tmp_path, **more):
    listener = Listener(
        name="api", socket=str(tmp_path / "api.sock"), gateway=GatewayKind.RUST, **more
    )
    return NodeConfig(
        model="/m",
        served_model_names=("m",),
        runtime_dir=str(tmp_path / "api.sock.d"),
        listeners=(listener,),
        workers=(),
    )


def test_the_socket_is_there_with_its_mode_before_any_gateway(tmp_path):
    held = Gateways(config(tmp_path, mode=0o600), lambda event: None, {})
    mode = (tmp_path / "api.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_a_second_daemon_on_the_same_socket_is_refused(tmp_path):
    held = Gateways(config(tmp_path), lambda event: None, {})
    with pytest.raises(ConfigError, match="already running"):
        Gateways(config(tmp_path), lambda event: None, {})
    held.close()


def test_a_gateway_is_ready_when_it_answers_and_sick_when_it_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(gateways, "PROBE_EVERY_S", 0.01)
    status = ["503 Busy"]

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status[0]}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async def body():
        heard = asyncio.Queue()
        held = Gateways(config(tmp_path), heard.put_nowait, {})
        fd_socket = held._sockets["api"].socket
        server = await asyncio.start_unix_server(answer, sock=fd_socket.dup())
        held.begin_probing("gateway-api", Generation(4))
        await asyncio.sleep(0)
        assert heard.empty()
        status[0] = "200 OK"
        async with asyncio.timeout(10):
            assert await heard.get() == ProcessReady(Generation(4))
            status[0] = "500 Broken"
            sick = await heard.get()
        assert isinstance(sick, ProcessSick)
        assert "500" in sick.cause
        server.close()
        held.close()

    asyncio.run(body())


@pytest.mark.parametrize(("busy", "probes"), [(False, 3), (True, 9)])
def test_a_gateway_that_computes_may_leave_more_probes_waiting(tmp_path, monkeypatch, busy, probes):
    monkeypatch.setattr(gateways, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(gateways, "PROBE_DEADLINE_S", 0.02)
    asked = []

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.append(writer)
        if len(asked) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            writer.close()

    async def body():
        heard = asyncio.Queue()
        clock = asyncio.get_running_loop()
        held = Gateways(
            config(tmp_path), heard.put_nowait, {}, busy_s=lambda _: clock.time() if busy else 0.0
        )
        server = await asyncio.start_unix_server(answer, sock=held._sockets["api"].socket.dup())
        held.begin_probing("gateway-api", Generation(4))
        async with asyncio.timeout(10):
            assert await heard.get() == ProcessReady(Generation(4))
            assert isinstance(await heard.get(), ProcessSick)
        assert len(asked) == 1 + probes
        for writer in asked:
            writer.close()
        server.close()
        held.close()

    asyncio.run(body())


def test_a_gateway_is_not_sick_because_its_sockets_file_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(gateways, "PROBE_EVERY_S", 0.01)
    asked = asyncio.Event()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def body():
        heard = asyncio.Queue()
        held = Gateways(config(tmp_path), heard.put_nowait, {})
        fd_socket = held._sockets["api"].socket
        server = await asyncio.start_unix_server(answer, sock=fd_socket.dup())
        held.begin_probing("gateway-api", Generation(4))
        async with asyncio.timeout(10):
            assert await heard.get() == ProcessReady(Generation(4))
            [path] = held.paths.values()
            path.rename(tmp_path / "away")
            await asyncio.sleep(0.2)  # several probes
            (tmp_path / "away").rename(path)
            asked.clear()
            await asked.wait()
        assert heard.empty()
        server.close()
        held.close()

    asyncio.run(body())


def test_who_connects_to_a_draining_node_is_refused_not_cut_off(tmp_path):
    async def body():
        held = Gateways(config(tmp_path), lambda event: None, {})
        held.stop_accepting()
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(str(tmp_path / "api.sock"))
        held.close()

    asyncio.run(body())


def test_a_dead_gateways_internal_sockets_are_removed(tmp_path):
    async def body():
        a_config = config(tmp_path)
        runtime = RuntimeDirectory(tmp_path / "api.sock.d")
        held = Gateways(a_config, lambda event: None, {})
        with held.internal_listeners(runtime, Generation(3)):
            assert len(list(runtime.path.glob("gw-3-*.sock"))) == 2
        message = held.attach_message("gateway-api", Generation(3))
        assert message.input_address == f"ipc://{runtime.path}/gw-3-in.sock"
        [listener] = a_config.listeners
        assert (message.listener, message.tenant) == (listener.name, listener.tenant)
        left = SharedCounts(counts_path(runtime.path, listener), 0, 1)
        left.begin()
        held.forget("gateway-api", Generation(3))
        assert left.in_flight == 0
        assert list(runtime.path.glob("gw-3-*.sock")) == []
        held.close()
        runtime.close(keep_logs=False)

    asyncio.run(body())


class Elsewhere(socket.socket):
    """A TCP socket that says that it is in another network namespace, where nobody can ask it."""

    def getsockopt(self, *which):
        return b"elsewhere" if which[1] == 71 else super().getsockopt(*which)


def test_a_gateway_that_cannot_be_asked_is_ready_when_the_dispatcher_says_so(tmp_path):
    async def body():
        activated = Elsewhere()
        activated.bind(("127.0.0.1", 0))
        activated.listen()
        given = config(tmp_path)
        host, port = activated.getsockname()
        there = msgspec.structs.replace(given.listeners[0], socket=None, host=host, port=port)
        heard = asyncio.Queue()
        given = msgspec.structs.replace(given, listeners=(there,))
        held = Gateways(given, heard.put_nowait, {"api": activated})
        held.begin_probing("gateway-api", Generation(4))
        held.said_to_serve("gateway-api", Generation(4))
        assert heard.get_nowait() == ProcessReady(Generation(4))
        held.close()

    asyncio.run(body())


def test_of_a_gateway_that_can_be_asked_the_dispatchers_word_is_not_enough(tmp_path):
    heard = []
    held = Gateways(config(tmp_path), heard.append, {})
    held.said_to_serve("gateway-api", Generation(4))
    assert heard == []
    held.close()


def test_listeners_are_taken_over_by_name_and_new_ones_bound(tmp_path):
    first = Gateways(config(tmp_path), lambda event: None, {})
    kept = first.kept
    assert [held.name for held in kept] == ["api"]
    more = Listener(name="more", socket=str(tmp_path / "more.sock"), gateway=GatewayKind.RUST)
    wider = msgspec.structs.replace(config(tmp_path), listeners=(*config(tmp_path).listeners, more))
    second = Gateways(wider, lambda event: None, {}, kept)
    assert second.http_fd(wider.listeners[0]) == kept[0].fds[0]
    assert (tmp_path / "more.sock").exists()
    first._sockets["api"].socket.detach()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_of_the_service_manager_is_taken_over_and_left_in_its_place(tmp_path):
    with socket.socket(socket.AF_UNIX) as managers:
        managers.bind(str(tmp_path / "api.sock"))
        managers.listen()
        first = Gateways(config(tmp_path), lambda event: None, {"api": managers.dup()})
        second = Gateways(config(tmp_path), lambda event: None, {}, first.kept)
        first._sockets["api"].socket.detach()
        second.close()
        assert (tmp_path / "api.sock").exists()
