"""What handoffs and tiers do to requests: real vLLM on CPU behind whole nodes.

Every figure is of pairs asked in turn within one run, so that the machine's drift cancels.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench_control_plane import ROOT, running

import nodeserve
from nodeserve.errors import NodeserveError

START_DEADLINE_S: Final = 180.0
PROMPT_TOKENS: Final = 1500
HANDOFF_TOKENS: Final = 1000
ROUNDS: Final = 15
STARTS: Final = 7
BLOCK_TOKENS: Final = 32
POOL_BLOCKS: Final = 200
"""KV blocks of the engines: four prompts of 1,500 tokens fill them, and one is less than the
quarter that stores may hold when their requests have ended."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node that is asked for completions of token ids."""

    socket: Path
    model: str
    vocabulary: int

    def ask(self, prompt: Sequence[int], max_tokens: int = 1) -> float:
        """Return the seconds to the end of a greedy answer."""
        with nodeserve.connect(str(self.socket)) as client:
            begun_s = time.perf_counter()
            client.completions.create(
                model=self.model, prompt=list(prompt), max_tokens=max_tokens, temperature=0.0
            )
            return time.perf_counter() - begun_s

    def prompt(self, num_tokens: int, rng: random.Random) -> list[int]:
        """Return tokens that nobody has seen."""
        return [rng.randrange(10, self.vocabulary) for _ in range(num_tokens)]

    def recent(self) -> list[dict[str, Any]]:
        """Return the last requests, oldest first, by the node's own account."""
        recent: list[dict[str, Any]] = status(self.socket)["requests"]["recent"]
        return recent


def status(socket: Path) -> dict[str, Any]:
    """Return a node's status."""
    argv = [sys.executable, "-m", "nodeserve.cli.main", "status", "--json", "--socket", str(socket)]
    read: dict[str, Any] = json.loads(
        subprocess.run(argv, check=True, capture_output=True, cwd=ROOT).stdout
    )
    return read


@contextmanager
def node(model: Path, folder: Path, *words: str, pool_blocks: int | None = None) -> Iterator[Node]:
    """Run a node of real engines; ``words`` are more of ``serve``'s arguments."""
    folder.mkdir(exist_ok=True)
    socket, config = folder / "api.sock", json.loads((model / "config.json").read_text())
    argv = [sys.executable, "-m", "nodeserve.cli.main", "serve", str(model), "--gateway", "rust"]
    argv += ["--socket", str(socket), *words, "--", "--dtype", "float32", "--max-model-len", "2048"]
    argv += ["--max-num-batched-tokens", "2048"]
    if pool_blocks is not None:
        heads = config.get("num_key_value_heads", config["num_attention_heads"])
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        block = BLOCK_TOKENS * config["num_hidden_layers"] * 2 * heads * head_dim * 4
        argv += ["--kv-cache-memory-bytes", str(pool_blocks * block)]
    with running(argv, folder / "log") as process:
        until_s = time.monotonic() + START_DEADLINE_S
        made = None
        while made is None:
            if process.poll() is not None or time.monotonic() > until_s:
                sys.exit(f"bench_kv: a node did not start:\n{(folder / 'log').read_text()}")
            try:
                made = Node(socket, status(socket)["served_model_name"], config["vocab_size"])
                made.ask([11, 12, 13])
            except (subprocess.CalledProcessError, OSError, NodeserveError):
                made = None
                time.sleep(0.2)
        yield made


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians of two ways in turn, and the median of their ratios, pair by pair."""

    first_s: float
    second_s: float
    ratio: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Pair":
        """Return the medians of pairs."""
        return cls(
            statistics.median(a for a, _ in pairs),
            statistics.median(b for _, b in pairs),
            statistics.median(a / b for a, b in pairs),
        )


def host_hits(model: Path, folder: Path) -> Pair:
    """Return the time of prompts found in the host tier against that of computed ones.

    The engine's own cache holds four prompts: a prompt asked five prompts ago is only in the tier.
    """
    rng = random.Random(1)
    words = ("--aggregated", "1", "--kv-host", "1GiB")
    with node(model, folder, *words, pool_blocks=POOL_BLOCKS) as one:
        prompts = [one.prompt(PROMPT_TOKENS, rng) for _ in range(5)]
        for prompt in prompts:
            one.ask(prompt)
        pairs = []
        for number in range(ROUNDS):
            hit_s = one.ask(prompts[number % 5])
            _require_cached(one, at_least=PROMPT_TOKENS * 9 // 10)
            computed_s = one.ask(one.prompt(PROMPT_TOKENS, rng))
            _require_cached(one, at_most=0)
            pairs.append((hit_s, computed_s))
        return Pair.of(pairs)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What one start of three nodes showed: with a tier / without, and without / without."""

    tiered: float
    plain: float


def without_hits(model: Path, folder: Path) -> list[Overhead]:
    """Return what prompts cost that nobody has seen, with a tier and without one.

    Two nodes that are alike differ by some percent for as long as they run, as memory happens to
    lie: hence several starts, and a third node that shows by how much.
    """
    rng = random.Random(2)
    folder.mkdir(exist_ok=True)
    found = []
    for start in range(STARTS):
        inside = folder / str(start)
        inside.mkdir()
        plain = ("--aggregated", "1")
        tiered = (*plain, "--kv-host", "1GiB")
        with (
            node(model, inside / "with", *tiered) as one,
            node(model, inside / "without", *plain) as other,
            node(model, inside / "alike", *plain) as third,
        ):
            taken: dict[Path, list[float]] = {}
            for _ in range(2 * ROUNDS):
                prompt = one.prompt(PROMPT_TOKENS, rng)
                for asked in rng.sample((one, other, third), 3):
                    taken.setdefault(asked.socket, []).append(asked.ask(prompt, 16))
            with_s, without_s, alike_s = (
                statistics.median(taken[asked.socket]) for asked in (one, other, third)
            )
            found.append(
                Overhead(with_s / statistics.mean((without_s, alike_s)), alike_s / without_s)
            )
    return found


def disk_after_restart(model: Path, folder: Path) -> tuple[int, int]:
    """Return how many tokens of a prompt the first request after a restart computes, and has."""
    rng = random.Random(3)
    folder.mkdir(exist_ok=True)
    words = ("--aggregated", "1", "--kv-host", "256MiB", "--kv-disk", f"{folder / 'disk'}:1GiB")
    with node(model, folder / "before", *words) as one:
        prompt = one.prompt(PROMPT_TOKENS, rng)
        one.ask(prompt)
    with node(model, folder / "after", *words) as one:
        one.ask(prompt)
        cached = one.recent()[-1]["cached_tokens"]
    return PROMPT_TOKENS - cached, PROMPT_TOKENS


@dataclass(frozen=True, slots=True)
class Handoff:
    """A decode leg from the prompt's end to its first token, in parts; medians."""

    total_ms: float
    step_ms: float
    num_bytes: int


def handoffs(model: Path, folder: Path) -> Handoff:
    """Return what prompts of 1,000 tokens take from one worker to the other."""
    rng = random.Random(4)
    with node(model, folder, "--prefill", "1", "--decode", "1") as one:
        for _ in range(2 * ROUNDS):
            one.ask(one.prompt(HANDOFF_TOKENS, rng), 4)
        handed = [row for row in one.recent() if row["handoff_bytes"]][-ROUNDS:]
        step_ms = [
            (row["total_ms"] - row["ttft_ms"]) / (row["output_tokens"] - 1) for row in handed
        ]
        return Handoff(
            statistics.median(row["handoff_ms"] for row in handed),
            statistics.median(step_ms),
            handed[-1]["handoff_bytes"],
        )


def _require_cached(one: Node, *, at_least: int = 0, at_most: int | None = None) -> None:
    cached = one.recent()[-1]["cached_tokens"]
    if cached < at_least or (at_most is not None and cached > at_most):
        sys.exit(f"bench_kv: {cached} tokens were cached, not {at_least} to {at_most}")
