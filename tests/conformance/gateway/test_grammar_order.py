"""JSON schema and forced tool call, in both orders, on workers that have seen no grammar yet.

A worker keeps the first grammar backend it meets; the dispatcher makes it the node's one.
"""

import time
from collections.abc import Callable

import pytest

from tests.conformance.gateway.capabilities import AS_JSON, FORCED, called, texts
from tests.conformance.gateway.node import Node

pytestmark = pytest.mark.vllm

RESTART_S = 60.0


def workers(node: Node) -> dict[str, tuple[str, int]]:
    processes = node.status()["processes"]
    return {
        process["name"]: (process["state"], process["generation"])
        for process in processes
        if process["kind"] == "worker"
    }


def restart_workers(node: Node) -> None:
    before = workers(node)
    for name in before:
        node.operate("restart", name)
    until_s = time.monotonic() + RESTART_S
    while not all(
        state == "ready" and generation > before[name][1]
        for name, (state, generation) in workers(node).items()
    ):
        assert time.monotonic() < until_s, workers(node)
        time.sleep(0.2)


def asks_for_json(node: Node) -> None:
    messages = [{"role": "user", "content": "Answer me in JSON, whatever you think of it"}]
    status, answer = node.send(
        "/v1/chat/completions", {"messages": messages, "temperature": 0} | AS_JSON
    )
    assert status == 200, answer
    assert '"ok"' in texts(answer)[0]


def asks_for_tool(node: Node) -> None:
    messages = [{"role": "user", "content": "Call the tool, whatever you think of it"}]
    status, answer = node.send(
        "/v1/chat/completions", {"messages": messages, "temperature": 0} | FORCED
    )
    assert status == 200, answer
    assert called(answer) == ["weather"]


@pytest.mark.parametrize(
    "asks",
    [(asks_for_json, asks_for_tool), (asks_for_tool, asks_for_json)],
    ids=["schema first", "tool first"],
)
def test_either_order_works_on_every_worker(
    node: Node, asks: tuple[Callable[[Node], None], ...]
) -> None:
    restart_workers(node)

    for ask in (*asks, *asks):
        ask(node)
