"""Measure what clients see of a node whose processes are killed and stopped under load.

Each round streams completions from a node with simulated engines, hurts one process in the
middle, and holds every token against an undisturbed run. Everything shares this machine's
cores, the clients too. Prints one table.
"""

import asyncio
import itertools
import json
import os
import re
import select
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import click
import uvloop
from bench_control_plane import describe_machine, first_answer, running

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.status import ProcessStatus

DEADLINE_S: Final = 60.0
TOKEN_IDS: Final = re.compile(rb'"token_ids":\s*\[([0-9, ]*)\]')
END: Final = b"data: [DONE]"


class Stream(asyncio.Protocol):
    """One streamed completion: every byte of it, and when it came."""

    def __init__(self, request: bytes, middle: int) -> None:
        self._request = request
        self._middle = middle
        self.middle = asyncio.Event()
        self._data = bytearray()
        self.arrived_s: list[float] = []
        self.ended_s = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the time; what it says is read at the end."""
        self._data += data
        self.arrived_s.append(time.monotonic())
        if len(self.arrived_s) >= self._middle:
            self.middle.set()
        if data.find(END) >= 0:
            self._finish()

    def connection_lost(self, _: Exception | None) -> None:
        """End, whole or not."""
        self._finish()

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        found = TOKEN_IDS.findall(bytes(self._data))
        return [int(word) for ids in found for word in ids.split(b",") if word.strip()]

    @property
    def is_complete(self) -> bool:
        """Whether the answer came to its end."""
        return END in self._data

    def longest_gap_s(self, since_s: float) -> float:
        """Return the longest silence that ended after ``since_s``."""
        times = self.arrived_s
        pairs = itertools.pairwise(times)
        return max((after - before for before, after in pairs if after >= since_s), default=0.0)

    def _finish(self) -> None:
        self.middle.set()
        if not self.over.done():
            self.ended_s = time.monotonic()
            self.over.set_result(None)


@dataclass(slots=True)
class Round:
    """What one fault did: to the clients and to the process."""

    gaps_s: list[float]
    ended_s: float
    num_complete: int
    num_exact: int
    gone_s: float
    serving_s: float
    answer_s: float


class Node:
    """A running node, its control socket and its clients."""

    def __init__(self, socket: Path, *, streams: int, tokens: int) -> None:
        self._socket = str(socket)
        self._control = BlockingControlClient(f"ipc://{socket}.d/control.sock", b"c-bench")
        self.num_streams = streams
        self._num_tokens = tokens
        self._model = self.status().served_model_name

    def status(self) -> StatusReply:
        """Return the node's status."""
        return cast("StatusReply", self._control.request(StatusRequest(), DEADLINE_S))

    def process(self, name: str) -> ProcessStatus:
        """Return one process."""
        return next(found for found in self.status().processes if found.name == name)

    def busiest_decoder(self) -> str:
        """Return the worker with the most requests."""
        processes = [found for found in self.status().processes if found.load is not None]
        return max(processes, key=lambda found: found.load.running if found.load else 0).name

    def close(self) -> None:
        """Close the control socket."""
        self._control.close()

    def _request(self, number: int, num_tokens: int) -> bytes:
        body = json.dumps(
            {
                "model": self._model,
                "prompt": f"Story number {number}. " + "Once upon a time in a land. " * 6,
                "max_tokens": num_tokens,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
                "temperature": 0,
            }
        ).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    async def _begin(self, number: int, num_tokens: int) -> Stream:
        request = self._request(number, num_tokens)
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_unix_connection(
            lambda: Stream(request, num_tokens // 4), self._socket
        )
        return stream

    async def stream_all(self, meanwhile: Callable[[], None] = lambda: None) -> list[Stream]:
        """Stream everything and call ``meanwhile`` once all are in their middle."""
        streams = [await self._begin(n, self._num_tokens) for n in range(self.num_streams)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(stream.middle.wait() for stream in streams))
            await asyncio.to_thread(meanwhile)
            await asyncio.gather(*(stream.over for stream in streams))
        return streams

    async def first_answer_s(self) -> float:
        """Return how long a new request waits for its first token, asked until it gets one."""
        began_s = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                stream = await self._begin(999, 1)
                await stream.over
                if stream.tokens:
                    return time.monotonic() - began_s


def wait_gone(pid: int) -> None:
    """Return when a process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(pidfd)
    poller.poll(DEADLINE_S * 1e3)
    os.close(pidfd)


def strike(
    node: Node,
    name: str,
    number: signal.Signals,
    times: dict[str, float],
    on_gone: Callable[[], object],
) -> None:
    """Signal a process and note when it was gone and when the next one serves."""
    before = node.process(name)
    pid = cast("int", before.pid)
    times["struck"] = time.monotonic()
    os.kill(pid, number)
    wait_gone(pid)
    times["gone"] = time.monotonic()
    on_gone()
    while times["gone"] + DEADLINE_S > time.monotonic():
        now = node.process(name)
        if now.state == "ready" and now.generation > before.generation:
            break
        time.sleep(0.005)
    times["serving"] = time.monotonic()


def hurt(node: Node, name: str | None, number: signal.Signals, expected: list[list[int]]) -> Round:
    """Stream, hurt one process in the middle, and return what came of it.

    Without a name it is the worker with the most requests.
    """
    times: dict[str, float] = {}

    async def run() -> tuple[list[Stream], float]:
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()

        def meanwhile() -> None:
            strike(
                node,
                name or node.busiest_decoder(),
                number,
                times,
                lambda: loop.call_soon_threadsafe(gone.set),
            )

        async def ask() -> float:
            async with asyncio.timeout(DEADLINE_S):
                await gone.wait()
            return await node.first_answer_s()

        asking = asyncio.create_task(ask())
        streams = await node.stream_all(meanwhile)
        return streams, await asking

    streams, answer_s = uvloop.run(run())
    tokens = [stream.tokens for stream in streams]
    return Round(
        gaps_s=[stream.longest_gap_s(times["struck"]) for stream in streams],
        ended_s=max(stream.ended_s for stream in streams) - times["struck"],
        num_complete=sum(stream.is_complete for stream in streams),
        num_exact=sum(got == wanted for got, wanted in zip(tokens, expected, strict=True)),
        gone_s=times["gone"] - times["struck"],
        serving_s=times["serving"] - times["struck"],
        answer_s=answer_s,
    )


def spread(values: list[float]) -> str:
    """Write the median and the maximum in ms."""
    return f"{statistics.median(values) * 1e3:,.0f} / {max(values) * 1e3:,.0f}"


def print_row(fault: str, rounds: list[Round], streams: int) -> None:
    """Print one line of the table."""
    gaps = [gap for found in rounds for gap in found.gaps_s]
    total = streams * len(rounds)
    goes_on = all(found.num_complete for found in rounds)
    cells = (
        fault,
        f"{sum(found.num_complete for found in rounds)} of {total}",
        f"{sum(found.num_exact for found in rounds)} of {total}",
        f"{statistics.median(gaps) * 1e3:,.0f}" if goes_on else "-",
        spread([max(found.gaps_s) for found in rounds]) if goes_on else "-",
        "-" if goes_on else spread([found.ended_s for found in rounds]),
        spread([found.gone_s for found in rounds]),
        spread([found.serving_s for found in rounds]),
        spread([found.answer_s for found in rounds]),
    )
    print("| " + " | ".join(cells) + " |", flush=True)


FAULTS: Final = (
    ("decode worker, SIGKILL", None, signal.SIGKILL),
    ("decode worker, SIGSTOP", None, signal.SIGSTOP),
    ("gateway, SIGKILL", "gateway-api", signal.SIGKILL),
    ("gateway, SIGSTOP", "gateway-api", signal.SIGSTOP),
    ("dispatcher, SIGKILL", "dispatcher", signal.SIGKILL),
    ("dispatcher, SIGSTOP", "dispatcher", signal.SIGSTOP),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many streams of how many tokens."""

    streams: int
    tokens: int


@contextmanager
def fresh_node(model: Path, speedup: float, gateway: str, shape: Shape) -> Iterator[Node]:
    """Run a node in which nothing has died yet."""
    with tempfile.TemporaryDirectory(prefix="ns-bench-") as made:
        socket, log = Path(made) / "n.sock", Path(made) / "log"
        with running(node_argv(model, socket, speedup, gateway), log) as process:
            first_answer(str(socket), model.name, process, log)
            node = Node(socket, streams=shape.streams, tokens=shape.tokens)
            try:
                yield node
            finally:
                node.close()


def node_argv(model: Path, socket: Path, speedup: float, gateway: str) -> list[str]:
    """Return the command that serves simulated engines."""
    serve = [sys.executable, "-m", "nodeserve.cli.main", "serve", str(model)]
    serve += ["--simulate", "4xh100-sxm", "--speedup", str(speedup), "--gateway", gateway]
    return [*serve, "--socket", str(socket)]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--rounds", default=5, show_default=True, help="Times that each fault is made.")
@click.option("--streams", default=32, show_default=True)
@click.option("--tokens", default=150, show_default=True, help="Tokens of each stream.")
@click.option("--speedup", default=0.25, show_default=True, help="Of the simulated engines.")
@click.option("--gateway", default="rust", show_default=True, type=click.Choice(["rust", "python"]))
@click.option("--fault", "only", default="", help="Only faults with this in their name.")
def main(  # noqa: PLR0913  (click passes each option by name)
    *,
    model: Path,
    rounds: int,
    streams: int,
    tokens: int,
    speedup: float,
    gateway: str,
    only: str,
) -> None:
    """Print the table of faults for MODEL, a directory with a config and a tokenizer."""
    print(f"{describe_machine()}; clients share them; {gateway} gateway, {rounds} rounds of")
    print(f"{streams} streams of {tokens} tokens; times in ms, median / maximum of the rounds\n")
    print(
        "| fault | complete | token-exact | gap, median stream | longest gap | streams end "
        "| process gone "
        "| next one serves | a new request answered |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    expected: list[list[int]] = []
    calm_s = 0.0
    for fault, name, number in FAULTS:
        found = []
        for _ in range(rounds if only in fault else 0):
            with fresh_node(model, speedup, gateway, Shape(streams, tokens)) as node:
                if not expected:
                    calm = uvloop.run(node.stream_all())
                    expected = [stream.tokens for stream in calm]
                    calm_s = max(stream.longest_gap_s(stream.arrived_s[1]) for stream in calm)
                found.append(hurt(node, name, number, expected))
        if found:
            print_row(fault, found, streams)
    print(f"\nwithout a fault the longest gap of a stream is {calm_s * 1e3:,.0f} ms")


if __name__ == "__main__":
    main()
