"""What the supervisor says to people: why something ended, and that the node is ready."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.config.node import NodeConfig
from nodeserve.errors import ConfigError
from nodeserve.supervisor.children import Exit
from nodeserve.wire.control import ChildFailed

OWN_ERROR: Final = "error: "
"""How a fork server's child writes down what it dies of."""

RUST_ERROR: Final = re.compile(r"process failed with error: (.*)$")
"""How ``vllm-rs`` does; it always exits with 1. Lines of causes, indented, follow. vLLM 0.32."""

RUST_REFUSALS: Final = (
    "failed to create chat/text backends",
    "invalid OpenAI frontend configuration",
)
"""What ``vllm-rs`` says of a model directory or of arguments that it cannot use."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a process ended: ``cause`` is a sentence, below which the end of its log may follow."""

    cause: str
    retryable: bool
    exit_code: int


def explain(ended: Exit, failed: ChildFailed | None, log_tail: Sequence[str]) -> Ending:
    """Return why a process ended: what it reported, else what its log ends with.

    The first line of the cause is one sentence; the log's last lines follow it, indented.
    """
    if ended.exit_code == 0:
        return Ending(ended.describe(), retryable=True, exit_code=0)
    said, exit_code = _last_words(log_tail)
    exit_code = exit_code or ended.exit_code
    said = said if failed is None else failed.cause
    sentence = f"{said} ({ended.describe()})" if said else ended.describe()
    retryable = exit_code != ConfigError.exit_code if failed is None else failed.retryable
    cause = "\n".join([sentence, *(f"    | {line}" for line in log_tail)])
    return Ending(cause, retryable, exit_code)


def _last_words(log_tail: Sequence[str]) -> tuple[str | None, int | None]:
    """Return what a log gives as the cause, and the exit code if it means more than its own."""
    for at, line in reversed([*enumerate(log_tail)]):
        if line.startswith(OWN_ERROR):
            return line.removeprefix(OWN_ERROR), None
        if (found := RUST_ERROR.search(line)) is not None:
            causes = (more.strip() for more in log_tail[at + 1 :] if more.startswith(" "))
            code = ConfigError.exit_code if found[1] in RUST_REFUSALS else None
            return ": ".join((found[1], *causes)), code
    return None, None


def first_line(text: str | None) -> str | None:
    """Return the sentence in front of the log's lines."""
    return None if text is None else text.partition("\n")[0]


def ready_line(config: NodeConfig, took_s: float) -> str:
    """Return the line that says that the node serves, and where."""
    roles = Counter(str(worker.role) for worker in config.workers)
    workers = " + ".join(f"{number} {role}" for role, number in roles.items())
    what = f"{config.simulate} simulated" if config.simulate else "vLLM"
    where = ", ".join(listener.address for listener in config.listeners)
    return (
        f"nodeserve is ready on {where} after {took_s:.1f} s: "
        f"{config.served_model_names[0]}, {workers} ({what})"
    )
