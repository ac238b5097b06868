"""The clients of a soak: what they ask for, and what each answer turned out to be."""

import asyncio
import enum
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

ANSWER_DEADLINE_S: Final = 60.0


class Outcome(enum.StrEnum):
    """How a request ended for its client."""

    ANSWERED = "answered"
    LEFT = "left by its client"
    REFUSED = "refused"
    CUT = "cut with its gateway or dispatcher"
    LOST = "lost"
    WRONG = "wrong"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Question:
    """One request, whose answer is always the same."""

    prompt: str
    max_tokens: int


def questions(number: int, seed: int) -> list[Question]:
    """Return questions of all sizes: prompts of 5 to 300 words, answers of 1 to 200 tokens."""
    chance = random.Random(seed)
    made = []
    for at in range(number):
        words = int(5 * 60 ** chance.random())
        text = " ".join(chance.choice(["river", "hill", "stone", "sky"]) for _ in range(words))
        made.append(Question(f"Number {at}: {text}", int(200 ** chance.random())))
    return made


@dataclass
class Record:
    """What the clients have seen.

    Attributes:
        outcomes: Requests by how they ended.
        tokens: Tokens that were checked against the undisturbed answers.
        stories: What went wrong, for people.
        excuses: Spans in which a gateway or the dispatcher was being replaced.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    tokens: int = 0
    longest_s: float = 0.0
    stories: list[str] = field(default_factory=list)
    excuses: list[list[float]] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """Requests that have ended, one way or another."""
        return sum(self.outcomes.values())

    @contextmanager
    def front_is_away(self) -> Iterator[None]:
        """Excuse what is cut off while the block runs."""
        span = [time.monotonic(), math.inf]
        self.excuses.append(span)
        yield
        span[1] = time.monotonic()

    def excused(self, began_s: float, ended_s: float) -> bool:
        """Whether a front process died while the request was there."""
        return any(start < ended_s and began_s < end for start, end in self.excuses)


class Clients:
    """So many clients on one socket, each asking one question after another."""

    def __init__(self, socket: Path, asked: list[Question], record: Record) -> None:
        self._socket = str(socket)
        self._questions = asked
        self.record = record
        self.expected: dict[Question, list[int]] = {}
        self.over = asyncio.Event()

    def _client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=self._socket)
        return httpx.AsyncClient(
            transport=transport, base_url="http://node", timeout=ANSWER_DEADLINE_S
        )

    async def learn(self) -> None:
        """Ask every question once of an undisturbed node and keep the answers."""
        async with self._client() as client:
            for question in self._questions:
                answer = await client.post("/v1/completions", json=self._body(question))
                answer.raise_for_status()
                self.expected[question] = answer.json()["choices"][0]["token_ids"]

    def _body(self, question: Question, **more: Any) -> dict[str, Any]:
        body = {"model": "soak", "prompt": question.prompt, "max_tokens": question.max_tokens}
        return body | {"return_token_ids": True, "temperature": 0, "ignore_eos": True} | more

    async def ask_on(self, number: int, seed: int) -> None:
        """Ask until the soak is over."""
        chance = random.Random(seed + number)
        while not self.over.is_set():
            async with self._client() as client:
                for _ in range(chance.randint(1, 20)):  # then a new connection
                    if self.over.is_set():
                        return
                    await self._ask(client, chance.choice(self._questions), chance)

    async def _ask(
        self, client: httpx.AsyncClient, question: Question, chance: random.Random
    ) -> None:
        began_s = time.monotonic()
        told: list[int] = []
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                outcome = await self._stream(client, question, told, chance)
        except TimeoutError:
            outcome = Outcome.HUNG
        except httpx.HTTPError as error:
            outcome = Outcome.LOST
            told_text = f"{type(error).__name__}: {error}"
        else:
            told_text = f"{len(told)} of {question.max_tokens} tokens"
        ended_s = time.monotonic()
        if outcome is Outcome.LOST and self.record.excused(began_s, ended_s):
            outcome = Outcome.CUT
        if told != self.expected[question][: len(told)]:
            outcome = Outcome.WRONG
        self.record.outcomes[outcome] += 1
        self.record.tokens += len(told)
        self.record.longest_s = max(self.record.longest_s, ended_s - began_s)
        if outcome in {Outcome.LOST, Outcome.WRONG, Outcome.HUNG}:
            text = "no end in time" if outcome is Outcome.HUNG else told_text
            self.record.stories.append(f"{outcome} at {ended_s:.2f} after {began_s:.2f}: {text}")
            await asyncio.sleep(0.01)
        elif outcome in {Outcome.CUT, Outcome.REFUSED}:
            await asyncio.sleep(0.05)  # as a client that tries again would

    async def _stream(
        self, client: httpx.AsyncClient, question: Question, told: list[int], chance: random.Random
    ) -> Outcome:
        leaves_after = chance.randrange(question.max_tokens) if chance.random() < 0.1 else None
        if leaves_after is None and chance.random() < 0.3:
            answer = await client.post("/v1/completions", json=self._body(question))
            if answer.status_code != httpx.codes.OK:
                return Outcome.LOST if answer.status_code >= 500 else Outcome.REFUSED
            told += answer.json()["choices"][0]["token_ids"]
            return Outcome.ANSWERED if len(told) == question.max_tokens else Outcome.LOST
        body = self._body(question, stream=True)
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                return Outcome.LOST if response.status_code >= 500 else Outcome.REFUSED
            finish = None
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:]).get("choices", ()):
                        told += choice.get("token_ids") or []
                        finish = choice.get("finish_reason") or finish
                if leaves_after is not None and len(told) > leaves_after:
                    return Outcome.LEFT
        whole = finish == "length" and len(told) == question.max_tokens
        return Outcome.ANSWERED if whole else Outcome.LOST
