"""Serve the demo model as an operator does, talk to it, and show where every answer came from.

usage: demo_node.py MODEL [--gateway python|rust]

Two nodes, one after the other: one prefill worker handing over to one decode worker, then one
worker that does both. The same questions must give the same tokens. Each node gets SIGTERM and
must end with 0 and leave no process and no socket.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from demo_facts import ALWAYS, SYSTEM
from progress import fail, say, step

NODESERVE = str(Path(sys.executable).parent / "nodeserve")
READY_DEADLINE_S = 240.0
DRAIN_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 60.0
TRACE_DEADLINE_S = 5.0
MAX_TOKENS = 48
ENGINE_ARGS = ("--dtype", "float32", "--max-model-len", "2048")


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: its id on the wire, its tokens and what they say."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str


class Node:
    """One `nodeserve serve` process, used through its socket and its command line."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
        self.process = process
        self.socket = socket
        self.log = log

    def wait_ready(self) -> None:
        """Return when the ready line is there, showing what the node says meanwhile."""
        deadline_s = time.monotonic() + READY_DEADLINE_S
        num_said = 0
        while time.monotonic() < deadline_s:
            lines = self.log.read_text(errors="replace").splitlines()
            for line in lines[num_said:]:
                say(f"    | {line[:110]}")
            num_said = len(lines)
            if any("is ready on" in line and str(self.socket) in line for line in lines):
                return
            if self.process.poll() is not None:
                fail(f"demo: nodeserve ended with {self.process.returncode} before it was ready")
            time.sleep(0.1)
        fail(f"demo: nodeserve was not ready within {READY_DEADLINE_S:.0f} s")

    def status(self) -> dict[str, Any]:
        """Return what `nodeserve status --json` prints."""
        command = [NODESERVE, "status", "--json", "--socket", str(self.socket)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        if done.returncode:
            fail(f"demo: nodeserve status ended with {done.returncode}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ask(self, messages: list[dict[str, str]]) -> Answer:
        """Stream one chat completion to the terminal; greedy, with its token ids."""
        body = {
            "model": self.status()["served_model_name"],
            "messages": messages,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "return_token_ids": True,
        }
        request_id, text = "", ""
        token_ids: list[int] = []
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with (
            httpx.Client(transport=transport, timeout=ANSWER_DEADLINE_S) as client,
            client.stream("POST", "http://node/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
                fail(f"demo: the node answered {response.status_code}: {response.text}")
            for chunk in _events(response.iter_lines()):
                request_id = chunk["id"]
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content") or ""
                    text += piece
                    token_ids += choice.get("token_ids") or []
                    print(piece, end="", flush=True)
        say("")
        if not token_ids:
            fail("demo: the answer came without token ids, so that nothing can be compared")
        return Answer(request_id, tuple(token_ids), text)

    def trace(self, answer: Answer) -> dict[str, Any]:
        """Return the dispatcher's record of a finished request."""
        deadline_s = time.monotonic() + TRACE_DEADLINE_S
        while True:
            for trace in (self.status()["requests"] or {}).get("recent", []):
                if trace["request_id"].startswith(answer.request_id):
                    found: dict[str, Any] = trace
                    return found
            if time.monotonic() > deadline_s:
                fail(f"demo: the node kept no record of request {answer.request_id}")
            time.sleep(0.1)

    def drain(self) -> None:
        """End the node as systemd does, and stop when anything of it is left."""
        pids = [process["pid"] for process in self.status()["processes"] if process["pid"]]
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DRAIN_DEADLINE_S)
        except subprocess.TimeoutExpired:
            fail(f"demo: nodeserve did not end within {DRAIN_DEADLINE_S:.0f} s of SIGTERM")
        left = [str(pid) for pid in pids if Path(f"/proc/{pid}").exists()]
        left += [str(path) for path in self.socket.parent.iterdir() if path != self.log]
        if code or left:
            fail(f"demo: nodeserve ended with {code} and left {', '.join(left) or 'nothing'}")
        say(f"    exit code 0; {len(pids)} processes gone, socket and runtime directory too")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def node(model: str, gateway: str, *layout: str) -> Iterator[Node]:
    """Run a node for the length of a ``with`` block; its processes never outlive that."""
    with tempfile.TemporaryDirectory(prefix="nodeserve-demo-") as folder:
        socket, log = Path(folder) / "api.sock", Path(folder) / "serve.log"
        own = [NODESERVE, "serve", model, *layout, "--socket", str(socket), "--gateway", gateway]
        say("$ nodeserve " + " ".join([*own[1:], "--", *ENGINE_ARGS]))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*own, "--", *ENGINE_ARGS],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            yield Node(process, socket, log)
        except BaseException:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr, flush=True)
            raise
        finally:
            if process.poll() is None:
                # Its children die with it: the kernel sends them SIGKILL.
                process.kill()
                process.wait()


def conversations() -> list[list[dict[str, str]]]:
    """Return what the demo asks: questions, a follow-up with its history, and a short one.

    The last has no system message: so short a prompt is not worth a handoff.
    """
    system = {"role": "system", "content": SYSTEM}
    asked = [{"role": "user", "content": f"What does {name} do?"} for name in ALWAYS]
    told = {"role": "assistant", "content": "Join two or more pathname components."}
    single = [[system, question] for question in asked]
    return [*single, [system, asked[0], told, asked[1]], asked[:1]]


def describe(trace: dict[str, Any]) -> str:
    """Return where an answer was computed and how fast, in one line."""
    decode_s = (trace["total_ms"] - trace["ttft_ms"]) / 1000
    speed = (trace["output_tokens"] - 1) / decode_s if decode_s > 0 else 0.0
    prefill, decode = trace["prefill_worker"], trace["decode_worker"]
    if trace["handoff_bytes"]:
        where = (
            f"{prefill} -> {decode}, handoff {trace['handoff_bytes'] / 1024:,.0f} KiB in "
            f"{trace['handoff_ms']:.1f} ms"
        )
    else:
        where = f"{decode or prefill}, no handoff"
    return (
        f"{where}; {trace['prompt_tokens']} prompt tokens, TTFT {trace['ttft_ms']:.1f} ms, "
        f"{trace['output_tokens']} tokens at {speed:,.0f} tokens/s"
    )


def converse(model: str, gateway: str, *layout: str) -> tuple[list[Answer], int]:
    """Start a node, ask everything, drain it; return the answers and the number of handoffs."""
    num_handoffs = 0
    answers = []
    with node(model, gateway, *layout) as running:
        with step("starting the node"):
            running.wait_ready()
        for messages in conversations():
            questions = [m["content"] for m in messages if m["role"] == "user"]
            say("\n  You    " + "  (then)  ".join(questions))
            print("  Model  ", end="", flush=True)
            answers.append(running.ask(messages))
            trace = running.trace(answers[-1])
            num_handoffs += trace["handoff_bytes"] > 0
            say(f"         {describe(trace)}")
        say("")
        with step("draining the node (SIGTERM)"):
            running.drain()
    return answers, num_handoffs


def main() -> None:
    """Run both nodes and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder in Hugging Face format")
    parser.add_argument("--gateway", choices=["python", "rust"], default="rust")
    arguments = parser.parse_args()

    say("\n==> one prefill worker, one decode worker")
    split, num_handoffs = converse(
        arguments.model, arguments.gateway, "--prefill", "1", "--decode", "1"
    )
    if num_handoffs < len(split) - 1:
        fail(f"demo: only {num_handoffs} of {len(split)} answers came through a handoff")
    say("\n==> one aggregated worker, the same questions")
    whole, _ = converse(arguments.model, arguments.gateway, "--aggregated", "1")
    pairs = list(zip(split, whole, strict=True))
    num_equal = sum(ours.token_ids == theirs.token_ids for ours, theirs in pairs)
    num_tokens = sum(len(answer.token_ids) for answer in split)
    say(
        f"\ndemo: {num_equal} of {len(pairs)} answers ({num_tokens} tokens) are the same, token "
        f"by token; {num_handoffs} handoffs"
    )
    if num_equal < len(pairs):
        for ours, theirs in pairs:
            if ours.token_ids != theirs.token_ids:
                say(f"  handed over: {ours.text!r}\n  aggregated:  {theirs.text!r}")
        fail("demo: the answers differ")


if __name__ == "__main__":
    main()
