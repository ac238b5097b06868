"""The HTTP probe tells a gateway that serves from one that is merely there."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nodeserve.gateway.probe import Health, ProbeResult, probe_tcp, probe_unix

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(answer: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return handle


async def _probe_behind(path: Path, handler: Handler, deadline_s: float) -> ProbeResult:
    async with await asyncio.start_unix_server(handler, path):
        return await probe_unix(str(path), deadline_s=deadline_s)


def ask(path: Path, handler: Handler, *, deadline_s: float = 5.0) -> ProbeResult:
    return asyncio.run(_probe_behind(path, handler, deadline_s))


def test_status_200_is_serving(tmp_path: Path) -> None:
    result = ask(tmp_path / "s", answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))

    assert result.serving
    assert result.health is Health.SERVING


def test_another_status_is_refusing_and_named(tmp_path: Path) -> None:
    result = ask(tmp_path / "s", answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"))

    assert result.health is Health.REFUSING
    assert "503" in result.detail


@pytest.mark.parametrize("answer", [b"\x00\xff garbage\r\n", b"HTTP/1.1\r\n", b"220 smtp\r\n"])
def test_something_else_than_http_is_refusing(tmp_path: Path, answer: bytes) -> None:
    assert ask(tmp_path / "s", answering(answer)).health is Health.REFUSING


def test_an_endless_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", answering(b"x" * 100_000)).health is Health.SILENT


def test_closing_without_a_word_is_silent(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", answering(b"")).health is Health.SILENT


def test_no_answer_within_the_deadline_is_silent(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    result = ask(tmp_path / "s", hang, deadline_s=0.05)

    assert result.health is Health.SILENT
    assert "0.05 s" in result.detail


def test_a_missing_socket_is_unreachable(tmp_path: Path) -> None:
    result = asyncio.run(probe_unix(str(tmp_path / "none"), deadline_s=5.0))

    assert result.health is Health.UNREACHABLE
    assert not result.serving


def test_a_tcp_listener_is_probed_by_host_and_port() -> None:
    async def main() -> ProbeResult:
        handler = answering(b"HTTP/1.1 200 OK\r\n\r\n")
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await probe_tcp("127.0.0.1", port, deadline_s=5.0)

    assert asyncio.run(main()).serving


def test_a_probe_that_has_no_file_left_says_nothing_of_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_file(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_unix_connection", no_file)
    result = asyncio.run(probe_unix(str(tmp_path / "s"), deadline_s=5.0))
    assert (result.health, result.serving) == (Health.UNASKED, False)
