"""Measure what nodeserve adds to a token: dispatcher, supervisor and engine loop, no model.

Streams completions over a Unix socket from a node with simulated engines whose steps cost
nothing, behind vLLM's Rust front end. Everything shares this machine's cores, the load too, so
ratios are what counts; they are taken against the least possible engine behind the same front
end, in the same run. Prints one table.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import uvloop
from bench_load import Load, Outcome, run_load

from nodeserve.gateway.rust_server import find_binary

ROOT: Final = Path(__file__).resolve().parents[1]
START_DEADLINE_S: Final = 60.0
IDLE_S: Final = 5.0
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
SHAPES: Final = {
    "64 streams x 128 tokens": Load(streams=64, tokens=128, requests=12, stream=True),
    "256 streams x 256 tokens": Load(streams=256, tokens=256, requests=2, stream=True),
    "1-token requests": Load(streams=64, tokens=1, requests=120, stream=False),
}
"""Load shapes by name; the first two are counted in tokens, the last in requests."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its socket, the model's name, and its processes by kind."""

    socket: str
    model: str
    pids: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One load's figures; CPU is that of the server's own processes, not of the load."""

    tokens_per_s: float
    requests_per_s: float
    cpu_us_per_token: float
    cpu_us_by_kind: dict[str, float]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mib(pid: int) -> float:
    """Return a process's resident memory."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(argv: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server; end it by its pid."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, cwd=ROOT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def first_answer(socket: str, model: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when the server has answered its first request."""
    one = Load(streams=1, tokens=1, requests=1, stream=False)
    until_s = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if not uvloop.run(run_load(socket, model, one)).errors:
                return
        except OSError:
            time.sleep(0.005)
    sys.exit(f"the server did not answer within {START_DEADLINE_S:g} s:\n{log.read_text()}")


def node_argv(model: Path, socket: str, workers: list[str]) -> list[str]:
    """Return the command that serves simulated engines."""
    serve = [sys.executable, "-m", "nodeserve.cli.main", "serve", str(model)]
    serve += ["--simulate", "8xh100-sxm", "--speedup", "inf", "--gateway", "rust"]
    return [*serve, "--socket", socket, *workers]


def node_server(socket: str) -> Server:
    """Return a running node's processes, by its own account."""
    argv = [sys.executable, "-m", "nodeserve.cli.main", "status", "--json", "--socket", socket]
    status = json.loads(subprocess.run(argv, check=True, capture_output=True, cwd=ROOT).stdout)
    pids: dict[str, list[int]] = {}
    for process in status["processes"]:
        if process["pid"] is not None:
            pids.setdefault(process["kind"], []).append(process["pid"])
    return Server(socket, status["served_model_name"], pids)


def bare_server(socket: str, model: Path, pid: int) -> Server:
    """Return the processes of the bare engine: itself and its front end."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return Server(socket, str(model), {"worker": [pid], "gateway": [int(p) for p in children]})


def measure(server: Server, load: Load, repeats: int) -> Figures:
    """Put the load on the server several times and return the medians."""
    runs = [_measure_once(server, load) for _ in range(repeats + 1)][1:]
    kinds = runs[0].cpu_us_by_kind
    return Figures(
        statistics.median(run.tokens_per_s for run in runs),
        statistics.median(run.requests_per_s for run in runs),
        statistics.median(run.cpu_us_per_token for run in runs),
        {kind: statistics.median(run.cpu_us_by_kind[kind] for run in runs) for kind in kinds},
    )


def _measure_once(server: Server, load: Load) -> Figures:
    counted = {kind: pids for kind, pids in server.pids.items() if kind != "forkserver"}
    before = {kind: sum(map(cpu_s, pids)) for kind, pids in counted.items()}
    outcome: Outcome = uvloop.run(run_load(server.socket, server.model, load))
    if outcome.errors:
        sys.exit(f"{len(outcome.errors)} requests failed, the first: {outcome.errors[0]}")
    used = {
        kind: (sum(map(cpu_s, pids)) - before[kind]) / outcome.tokens * 1e6
        for kind, pids in counted.items()
    }
    return Figures(
        outcome.tokens / outcome.seconds,
        outcome.requests / outcome.seconds,
        sum(used.values()),
        used,
    )


def describe_machine() -> str:
    """Return the machine in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def idle_figures(server: Server) -> tuple[float, float]:
    """Return the memory in MiB and the share of a core that supervisor and dispatcher use idle."""
    pids = server.pids["supervisor"] + server.pids["dispatcher"]
    before = sum(map(cpu_s, pids))
    time.sleep(IDLE_S)
    return sum(map(resident_mib, pids)), (sum(map(cpu_s, pids)) - before) / IDLE_S


def print_row(name: str, shape: str, figures: Figures, against: Figures | None) -> None:
    """Print one line of the table."""
    rate = (
        f"{figures.requests_per_s:,.0f} req/s"
        if shape == "1-token requests"
        else f"{figures.tokens_per_s:,.0f} tok/s"
    )
    ratio = "" if against is None else f"{figures.tokens_per_s / against.tokens_per_s:.2f}"
    kinds = ", ".join(f"{kind} {us:.1f}" for kind, us in figures.cpu_us_by_kind.items() if us)
    cells = (name, shape, rate, f"{figures.cpu_us_per_token:.1f}", kinds, ratio)
    print("| " + " | ".join(cells) + " |", flush=True)


def bench_bare(model: Path, run_dir: Path, script: Path, repeats: int) -> dict[str, Figures]:
    """Measure the bare engine."""
    run_dir.mkdir()
    argv = [sys.executable, str(script), str(find_binary(os.environ)), str(model), str(run_dir)]
    socket, log = str(run_dir / "api.sock"), run_dir / "log"
    with running(argv, log) as process:
        first_answer(socket, str(model), process, log)
        server = bare_server(socket, model, process.pid)
        return {shape: measure(server, load, repeats) for shape, load in SHAPES.items()}


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option(
    "--bare-engine",
    type=click.Path(exists=True, path_type=Path),
    default=ROOT / "scripts" / "bench_bare_engine.py",
    help="What to compare with: a program that takes VLLM_RS MODEL RUN_DIR.",
)
@click.option("--repeats", default=3, show_default=True, help="Counted runs of each load.")
def main(model: Path, bare_engine: Path, repeats: int) -> None:
    """Print the control plane's table for MODEL, a directory with a config and a tokenizer."""
    layouts = {"1 aggregated": ["--aggregated", "1"], "4 prefill + 4 decode": []}
    with tempfile.TemporaryDirectory(prefix="ns-bench-") as made:
        top = Path(made)
        print(f"{describe_machine()}; load and server share them; medians of {repeats}\n")
        print("| server | load | rate | CPU us/token | of which | rate / bare engine |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        bare = bench_bare(model, top / "bare", bare_engine, repeats)
        for shape, figures in bare.items():
            print_row("bare engine", shape, figures, None)
        rest = []
        for place, (layout, workers) in enumerate(layouts.items()):
            socket, log = str(top / f"n{place}.sock"), top / f"log{place}"
            start_s = time.monotonic()
            with running(node_argv(model, socket, workers), log) as process:
                first_answer(socket, model.name, process, log)
                took_s = time.monotonic() - start_s
                server = node_server(socket)
                memory_mib, idle = idle_figures(server)
                for shape, load in SHAPES.items():
                    print_row(
                        f"nodeserve, {layout}", shape, measure(server, load, repeats), bare[shape]
                    )
            rest.append(
                f"{layout}: first answer {took_s:.2f} s after start; supervisor and dispatcher "
                f"{memory_mib:.0f} MiB resident, {idle:.1%} of a core when idle"
            )
        print("\n" + "\n".join(rest))


if __name__ == "__main__":
    main()
