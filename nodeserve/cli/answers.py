"""What `chat` and `complete` share: a client, streamed text and errors in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from uuid import uuid4

import click
import httpx2
import openai

from nodeserve import connect
from nodeserve.cli.connection import Node, ask, kind_of_code, nobody_answers
from nodeserve.cli.footer import describe, find_failure, find_trace
from nodeserve.config.keys import read_api_keys
from nodeserve.errors import CapacityError, NodeserveError, PeerError, RequestError
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.kinds import ProcessKind

SIMULATED_TOKENS: Final = 128


def client_of(node: Node, api_key_file: str | None) -> openai.OpenAI:
    """Return a client of the node; the key is the first of its file."""
    key = read_api_keys(Path(api_key_file).expanduser())[0] if api_key_file else None
    return connect(node.socket, api_key=key)


@dataclass(slots=True)
class Answer:
    """What a node has said so far; ``begun`` once it has said anything at all.

    ``request_id`` is what we call the request, so that the node can be asked what became of it.
    """

    begun: bool = False
    request_id: str = field(default_factory=lambda: uuid4().hex)
    answer_id: str = ""
    parts: list[str] = field(default_factory=list)
    finish: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the request: both gateways make this id part of their own."""
        return {"X-Request-Id": self.request_id}

    def take(self, answer_id: str, text: str | None, finish: str | None) -> None:
        """Take in one chunk of the stream, and print it."""
        self.answer_id = answer_id
        self.finish = finish or self.finish
        if text:
            self.parts.append(text)
            click.echo(text, nl=False)

    def end_line(self) -> None:
        """End the line of an answer that broke off, so that what follows has its own."""
        if self.parts:
            click.echo()


@contextmanager
def errors_of(node: Node) -> Iterator[Answer]:
    """Turn the client's errors into ours; the block notes what it hears in the Answer.

    Raises:
        PeerError: Nobody answers, the answer broke off, or the node failed.
        RequestError: The node refuses the request.
        CapacityError: It has no room for it at present.
    """
    answer = Answer()
    try:
        yield answer
    except openai.APIConnectionError as error:
        if not answer.begun and isinstance(error.__cause__, httpx2.ConnectError):
            refused = os.access(node.socket, os.W_OK) or not node.socket.exists()
            raise (nobody_answers(node) if refused else PeerError(str(error))) from error
        raise PeerError(f"nodeserve at {node.socket} {_how_it_broke(node, answer)}") from error
    except openai.APIStatusError as error:
        if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _raise_node_s_own(node, answer, error)
        kind = _kind_of_status(error.status_code)
        raise kind(
            f"nodeserve at {node.socket} answered {error.status_code}: {_cause(error)}"
        ) from error
    except openai.APIError as error:
        _raise_node_s_own(node, answer, error)
        raise PeerError(f"nodeserve at {node.socket}: {error.message}") from error


def _raise_node_s_own(node: Node, answer: Answer, error: openai.APIError) -> None:
    """Raise why the node failed the request, where it tells us: HTTP says that it did."""
    failure = find_failure(node, answer.request_id)
    if failure is not None:
        text = f"nodeserve at {node.socket}: {failure.error}"
        raise kind_of_code(failure.exit_code)(text) from error


def _how_it_broke(node: Node, answer: Answer) -> str:
    if not node.socket.exists():
        return "cut the answer off: it was stopped before the answer was whole"
    if not answer.begun:
        return "ended the connection without an answer; see `nodeserve status`, then ask again"
    return "broke the answer off: its gateway or dispatcher went away; ask again"


def _kind_of_status(code: int) -> type[NodeserveError]:
    if code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return CapacityError
    return PeerError if code >= HTTPStatus.INTERNAL_SERVER_ERROR else RequestError


def _cause(error: openai.APIStatusError) -> str:
    """Return the node's own words, without the client's preface."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return said if isinstance(said, str) and said else error.message


def first_model(node: Node, client: openai.OpenAI) -> str:
    """Return the name of the node's model; say first whom that waits for, if anybody."""
    try:
        waits = why_it_waits(ask(node, StatusRequest(), StatusReply))
    except NodeserveError:
        waits = None  # by TCP, or another user's: the answer itself will tell
    if waits is not None:
        click.secho(waits, dim=True, err=True)
    return client.models.list().data[0].id


def why_it_waits(status: StatusReply) -> str | None:
    """Return for whom a new request would wait, in a line; None where it would not."""
    if status.state == "unavailable":
        return f"the node is {status.state}: {status.detail}; the answer waits until that is over"
    if status.state != "starting":
        return None
    coming = [
        process.name if process.detail is None else f"{process.name} ({process.detail})"
        for process in status.processes
        if process.kind is ProcessKind.WORKER and process.state != "ready"
    ]
    return f"the node is starting; the answer waits for {', '.join(coming) or 'its gateway'}"


def finish_answer(node: Node, answer: Answer) -> None:
    """End an answer's text and print its footer to stderr, dimmed, where the daemon knows it.

    Raises:
        PeerError: The stream held no answer.
    """
    if not answer.answer_id:
        raise PeerError(f"nodeserve at {node.socket}: the stream held no answer")
    click.echo()
    trace = find_trace(node, answer.answer_id)
    if trace is not None:
        click.secho(describe(trace, answer.finish), dim=True, err=True)


def bound_of_simulated(node: Node) -> int | None:
    """Return how long an answer of simulated tokens may be; None where an engine is real.

    Simulated engines hardly ever end by themselves. Nobody is asked for long: a node that does
    not say what it is gets no bound.
    """
    try:
        simulated = ask(node, StatusRequest(), StatusReply).simulate is not None
    except NodeserveError:
        return None
    return SIMULATED_TOKENS if simulated else None
