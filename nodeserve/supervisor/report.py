"""What the supervisor says to people: why something ended, and that the node is ready."""

from collections import Counter
from collections.abc import Sequence

from nodeserve.config.node import NodeConfig
from nodeserve.supervisor.children import Exit


def cause_of_exit(ended: Exit, reported: str | None, log_tail: Sequence[str]) -> str:
    """Return why a process ended: its own words first, then the end of its log.

    The first line is one sentence; the log's last lines follow it, indented.
    """
    sentence = f"{reported} ({ended.describe()})" if reported else ended.describe()
    if ended.exit_code == 0 or not log_tail:
        return sentence
    return "\n".join([sentence, *(f"    | {line}" for line in log_tail)])


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
