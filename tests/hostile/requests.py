"""The hostile requests: what a client may send, byte by byte, and which answers are right.

Numbers are those of the table in docs/hostile-input.md. Each row holds several attacks of one
kind; an attack's outcome is an HTTP status, ``closed`` or ``waits`` (the connection stays open
with no answer while the rest of the request does not come).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.hostile.sending import asked, get, post

MIB: Final = 1 << 20
WORDS: Final = {"prompt": "A prompt with nothing wrong in it", "max_tokens": 3}
CHAT: Final = "/v1/chat/completions"
SAID: Final = [{"role": "user", "content": "Say something"}]
REFUSED: Final = frozenset({"400", "closed"})
ODD_ROLE: Final = frozenset({"400", "200"})
"""A role is the chat template's to refuse, and a template may take any."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One thing sent, and the outcomes that are right.

    Attributes:
        row: Its row in the table.
        name: What it is.
        pieces: What is sent, in so many pieces.
        right: The outcomes that the table holds for right.
        pause_s: Wait between pieces.
        patience_s: How long to wait for an answer.
    """

    row: int
    name: str
    pieces: tuple[bytes, ...]
    right: frozenset[str]
    pause_s: float = 0.0
    patience_s: float = 60.0


def _is(*outcomes: str) -> frozenset[str]:
    return frozenset(outcomes)


def _complete(**more: Any) -> tuple[bytes, ...]:
    return (asked(WORDS | more),)


def _chat(**more: Any) -> tuple[bytes, ...]:
    return (asked({"messages": SAID, "max_tokens": 3} | more, CHAT),)


def _guided(constraint: dict[str, Any]) -> tuple[bytes, ...]:
    return _complete(structured_outputs=constraint)


def _schema(schema: Any) -> tuple[bytes, ...]:
    return _chat(
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    )


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _framing() -> Iterator[Attack]:
    big = f"X-Big: {'x' * MIB}"
    yield Attack(4, "a header of 1 MiB", (get("/v1/models", big),), _is("431", "closed"))
    huge = (b"GET /v1/models HTTP/1.1\r\nX-Big: ", *([b"x" * MIB] * 64), b"\r\n\r\n")
    yield Attack(4, "a header of 64 MiB", huge, _is("431", "closed"))
    many = get("/v1/models", *(f"X-{n}: 1" for n in range(10_000)))
    yield Attack(5, "10,000 headers", (many,), _is("431", "closed"))
    yield Attack(6, "a target of 1 MiB", (get("/" + "x" * MIB),), _is("414", "431", "closed"))
    ten_gib = post("/v1/completions", b"x" * 100, length=10 << 30)
    yield Attack(7, "a length of 10 GiB", (ten_gib,), _is("413", "closed"), patience_s=3.0)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\n"
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    chunked = (head + b"Transfer-Encoding: chunked\r\n\r\n", *([chunk] * 80), b"0\r\n\r\n")
    yield Attack(8, "a chunked body of 80 MiB", chunked, _is("413", "closed"))
    two = b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    yield Attack(9, "two lengths", (head + two,), REFUSED)
    both = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    yield Attack(9, "a length and chunks", (head + both,), REFUSED)
    yield Attack(9, "a negative length", (head + b"Content-Length: -1\r\n\r\n",), REFUSED)
    bad_chunk = b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    yield Attack(9, "a chunk size that is no number", (head + bad_chunk,), REFUSED)
    large_chunk = b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}"
    yield Attack(9, "a chunk size beyond 64 bits", (head + large_chunk,), REFUSED)
    yield Attack(9, "lines that end in LF", (b"GET /v1/models HTTP/1.1\nHost: n\n\n",), REFUSED)
    yield Attack(9, "NUL in a header", (get("/v1/models", "X-A: a\0b"),), REFUSED)
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))
    yield Attack(10, "a TLS hello", (tls,), REFUSED)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    yield Attack(10, "an HTTP/2 preface", (preface,), REFUSED | {"505"})
    noise = bytes((n * 7919 + n // 3) % 256 for n in range(4096))
    yield Attack(10, "4 KiB of noise", (noise,), REFUSED)


def _targets() -> Iterator[Attack]:
    yield Attack(11, "no Host", (b"GET /v1/models HTTP/1.1\r\n\r\n",), _is("400"))
    yield Attack(11, "two Hosts", (get("/v1/models", "Host: other"),), _is("400"))
    absolute = get("http://evil/v1/models")
    yield Attack(12, "an absolute target", (absolute,), _is("404", "400"))
    for target in ("//v1/models", "/v1/%2e%2e/control", "/v1/models/..;/"):
        yield Attack(12, f"`{target}`", (get(target),), _is("404"))
    yield Attack(13, "an unknown path", (get("/no/such/path"),), _is("404"))
    yield Attack(13, "a wrong method", (get("/v1/completions"),), _is("405"))
    plain = asked(WORDS).replace(b"application/json", b"text/plain")
    yield Attack(14, "a body of plain text", (plain,), _is("415"))
    zipped = post("/v1/completions", b"\x1f\x8b\x08" + bytes(500), "Content-Encoding: gzip")
    yield Attack(14, "a compressed body", (zipped,), _is("415"))
    yield Attack(15, "500 requests in one go", (get("/v1/models") * 500,), _is("200"))


def _bodies() -> Iterator[Attack]:
    bodies = {
        "nothing": b"",
        "half an object": b"{",
        "more behind the object": json.dumps(WORDS).encode() + b"{}",
        "a byte order mark": b"\xef\xbb\xbf" + json.dumps(WORDS).encode(),
        "bad UTF-8": b'{"prompt":"\xff\xfe"}',
    }
    for name, body in bodies.items():
        yield Attack(21, name, (post("/v1/completions", body),), _is("400"))
    deep = b"[" * 100_000
    yield Attack(22, "100,000 arrays in each other", (post("/v1/completions", deep),), _is("400"))
    ignored = json.dumps(WORDS)[:-1].encode() + b', "x": ' + deep + b"]" * 100_000 + b"}"
    yield Attack(22, "the same in a field nobody knows", (post(CHAT, ignored),), _is("400"))
    lone = b'{"prompt": "\\ud800", "max_tokens": 3}'
    yield Attack(23, "a lone surrogate", (post("/v1/completions", lone),), _is("400"))
    odd = _is("200", "400")
    yield Attack(24, "NUL in a prompt", _complete(prompt="a\0b"), odd)
    yield Attack(24, "1 MiB of joiners", _complete(prompt="\u200d" * (MIB // 3)), odd)
    yield Attack(24, "right to left marks", _complete(prompt="\u202e\u200fabc"), odd)
    twice = b'{"model": "nobody", "prompt": "a", "max_tokens": 3, "model": "MODEL"}'
    last_wins = _is("404", "400")
    yield Attack(
        25, "a key twice, last an unknown model", (post("/v1/completions", twice),), last_wins
    )


def _numbers() -> Iterator[Attack]:
    raw = {"temperature": "NaN", "top_p": "1e999", "presence_penalty": "1e999"}
    for key, value in raw.items():
        body = json.dumps(WORDS)[:-1] + f', "{key}": {value}}}'
        yield Attack(26, f"`{key}: {value}`", (post("/v1/completions", body.encode()),), _is("400"))
    for key, number in (("temperature", -1), ("top_p", 0), ("top_k", -7)):
        yield Attack(26, f"`{key}: {number}`", _complete(**{key: number}), _is("400"))
    for n in (10**30, 0, 1.5, 100_000):
        yield Attack(27, f"`n: {n}`", _complete(n=n), _is("400"))
    for most in (-1, 0, 2**63):
        yield Attack(28, f"`max_tokens: {most}`", _complete(max_tokens=most), _is("400"))
    yield Attack(29, "a prompt of 100 contexts", _complete(prompt="a b " * 100_000), _is("400"))
    yield Attack(29, "a prompt of 20 MB", _complete(prompt="x" * 20_000_000), _is("400", "413"))
    empty = [{"role": "user", "content": ""}] * 100_000
    yield Attack(30, "100,000 empty messages", _chat(messages=empty), _is("400", "413"))
    yield Attack(30, "no list of messages", _chat(messages=None), _is("400"))
    yield Attack(
        30, "an unknown role", _chat(messages=[{"role": "king", "content": "a"}]), ODD_ROLE
    )
    yield Attack(30, "no message", _chat(messages=[]), _is("400"))
    yield Attack(31, "tokens out of the vocabulary", _complete(prompt=[10**9]), _is("400"))
    yield Attack(31, "negative tokens", _complete(prompt=[-1]), _is("400"))
    yield Attack(31, "a million tokens", _complete(prompt=[5] * 10**6), _is("400", "413"))
    yield Attack(31, "lists in lists", _complete(prompt=[[[1]]]), _is("400"))
    yield Attack(32, "a million logprobs", _complete(logprobs=10**6), _is("400"))
    yield Attack(32, "a million top_logprobs", _chat(logprobs=True, top_logprobs=10**6), _is("400"))
    stream = _complete(prompt_logprobs=1, stream=True)
    yield Attack(32, "prompt_logprobs of a stream", stream, _is("400", "200"))


def _sampling() -> Iterator[Attack]:
    stops = [f"stop {n}" for n in range(100_000)]
    yield Attack(33, "100,000 stop strings", _complete(stop=stops), _is("400"))
    yield Attack(33, "an empty stop string", _complete(stop=[""]), _is("400"))
    yield Attack(33, "a stop string of 1 MiB", _complete(stop=["x" * MIB]), _is("400"))
    biases = {str(n): 1 for n in range(100_000)}
    yield Attack(34, "100,000 biases", _complete(logit_bias=biases), _is("400"))
    yield Attack(34, "a bias of a negative token", _complete(logit_bias={"-1": 1}), _is("400"))
    infinite = json.dumps(WORDS)[:-1] + ', "logit_bias": {"5": 1e999}}'
    yield Attack(34, "an endless bias", (post("/v1/completions", infinite.encode()),), _is("400"))


def _grammars() -> Iterator[Attack]:
    compiles = _is("400", "200")
    yield Attack(35, "`(a+)+$`", _guided({"regex": "(a+)+$"}), compiles)
    many = _guided({"regex": "(.*){1,9999}"})
    yield Attack(35, "`(.*){1,9999}`", many, compiles)
    yield Attack(35, "1 MiB of pattern", _guided({"regex": "a" * MIB}), _is("400"))
    yield Attack(35, "a back reference", _guided({"regex": r"(a)\1"}), _is("400"))
    yield Attack(35, "unbalanced brackets", _guided({"regex": "(("}), _is("400"))
    recursive = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    yield Attack(36, "a schema that is itself", _schema(recursive), _is("400"))
    remote = {"$ref": "http://127.0.0.1:9/schema.json"}
    yield Attack(36, "a schema elsewhere", _schema(remote), _is("400"))
    yield Attack(36, "200 levels", _schema(_nested(200)), compiles)
    items = {"type": "array", "items": {"type": "string"}, "minItems": 10**9}
    yield Attack(36, "a billion items", _schema(items), compiles)
    pattern = {"type": "string", "pattern": "((a+)+)+("}
    yield Attack(36, "a broken pattern", _schema(pattern), _is("400"))
    values = {"enum": [f"value {n}" for n in range(20_000)]}
    yield Attack(36, "20,000 values", _schema(values), compiles)
    left = 'root ::= root "a" | "b"'
    yield Attack(37, "left recursion", _guided({"grammar": left}), compiles)
    good = 'root ::= "yes" | "no"'
    yield Attack(37, "a grammar that compiles", _guided({"grammar": good}), _is("200"))
    yield Attack(37, "then one that does not", _guided({"grammar": "root ::= ("}), _is("400"))


def _tools() -> Iterator[Attack]:
    def tool(n: int, parameters: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": f"f{n}", "parameters": parameters}}

    plain = {"type": "object", "properties": {}}
    some = [tool(n, plain) for n in range(3000)]
    yield Attack(39, "3,000 tools", _chat(tools=some), _is("400", "200"))
    wrong = _chat(tools=[tool(0, {"type": "nonsense"})], tool_choice="required")
    yield Attack(39, "a type that is none", wrong, _is("400"))
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(("}}}
    broken = _chat(tools=[tool(0, odd)], tool_choice="required")
    yield Attack(39, "a pattern that is none", broken, _is("400"))
    evil = "{{ ''.__class__.__mro__ }}"
    yield Attack(40, "a chat template of its own", _chat(chat_template=evil), _is("400"))
    endless = "{% for a in range(10**9) %}{% endfor %}"
    yield Attack(40, "one without an end", _chat(chat_template=endless), _is("400"))
    kwargs = _chat(chat_template_kwargs={"tokenize": True, "chat_template": evil})
    yield Attack(40, "arguments of the template", kwargs, _is("400", "200"))
    for url in ("http://169.254.169.254/", "file:///etc/passwd", "http://127.0.0.1:9/a.png"):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        seen = _chat(messages=[{"role": "user", "content": content}])
        yield Attack(41, f"`{url}`", seen, _is("400"))
    bomb = "data:image/png;base64," + "A" * MIB
    content = [{"type": "image_url", "image_url": {"url": bomb}}] * 5
    images = _chat(messages=[{"role": "user", "content": content}])
    yield Attack(41, "images that are none", images, _is("400"))
    remote = {"do_remote_prefill": True, "engine": 1, "lease_id": 1, "num_tokens": 4}
    yield Attack(42, "memory of its own", _complete(kv_transfer_params=remote), _is("400", "200"))
    extra = {"kv_transfer_params": remote, "nodeserve_resumed": [1, 2, 3]}
    yield Attack(42, "private arguments", _complete(vllm_xargs=extra), _is("400", "200"))
    yield Attack(
        43,
        "a junk trace",
        (
            asked(WORDS).replace(
                b"Host: node",
                b"Host: node\r\ntraceparent: \xff\xfejunk\r\nX-Request-Id: " + b"i" * 4000,
            ),
        ),
        _is("200", "400"),
    )


def _slow() -> Iterator[Attack]:
    late = _is("408", "closed")
    half = (b"POST /v1/comp",)
    yield Attack(1, "half a request line", half, late, patience_s=15.0)
    letters = b"GET /v1/models HTTP/1.1\r\nX-Slow: " + b"x" * 100
    pieces = tuple(bytes([letter]) for letter in letters)
    yield Attack(2, "a byte of the head a tenth of a second", pieces, late, 0.1, 15.0)
    empty = (post("/v1/completions", b"", length=500),)
    yield Attack(3, "a body that never comes", empty, late, patience_s=40.0)


SLOW: Final = tuple(_slow())
ATTACKS: Final = (
    *_framing(),
    *_targets(),
    *_bodies(),
    *_numbers(),
    *_sampling(),
    *_grammars(),
    *_tools(),
)
