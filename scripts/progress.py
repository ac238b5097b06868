"""Show that slow steps are alive: their own output, and the seconds when they are silent."""

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_SILENCE_S = 5.0
_TAIL_LINES = 25


def say(text: str) -> None:
    """Print one line at once, also where stdout is a pipe."""
    print(text, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print ``title``, then every five seconds how long it has taken, then the total."""
    say(f"==> {title}")
    begun_s = time.monotonic()
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(_SILENCE_S):
            say(f"    ... {title}: {time.monotonic() - begun_s:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        finished.set()
        ticker.join()
        say(f"    {title}: {outcome} in {time.monotonic() - begun_s:.1f} s")


def run_logged(
    command: Sequence[str], *, log: Path, show: Callable[[str], str | None]
) -> tuple[int, list[str]]:
    """Run a command with its output in ``log``; return its exit code and its last lines.

    Args:
        command: Program and arguments.
        log: File that gets everything the command prints.
        show: Returns what to print of one output line, or None for nothing.
    """
    last: deque[str] = deque(maxlen=_TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            last.append(line.rstrip())
            shown = show(line.rstrip())
            if shown is not None:
                say(f"    {shown}")
    return process.returncode, list(last)


def fail(text: str, *, exit_code: int = 1) -> NoReturn:
    """Print ``text`` on stderr and end the script."""
    print(text, file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
