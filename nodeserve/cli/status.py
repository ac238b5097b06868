"""``nodeserve status``: the node's own account of itself, for people or for programs."""

from collections.abc import Sequence
from typing import Final

import click
import msgspec

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import DispatcherStatus, StatusReply, StatusRequest
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import KvTierStatus
from nodeserve.wire.status import KvPath, ListenerLoad, ProcessStatus, Quantiles

_HEADINGS: Final = (
    "NAME",
    "KIND",
    "ROLE",
    "STATE",
    "PID",
    "GEN",
    "UPTIME",
    "RESTARTS",
    "RUN",
    "WAIT",
    "KV",
)

_LISTENER_HEADINGS: Final = ("LISTENER", "RUN", "WAIT", "REFUSED", "EXPIRED", "429", "GPU S")

_PATH_HEADINGS: Final = (
    *("KV FROM", "TO", "BY", "LATENCY", "GB/S 64 KB", "256 KB", "64 MB", "VERDICT"),
)


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; see docs/status.md.")
@node_options
def command(as_json: bool, socket: str | None, runtime_dir: str | None) -> None:  # noqa: FBT001
    """Show the node's processes, load and latencies."""
    reply = ask(find_node(socket, runtime_dir), StatusRequest(), StatusReply)
    click.echo(to_json(reply) if as_json else to_text(reply))


def to_json(reply: StatusReply) -> str:
    """Return the status as docs/status.md describes it: every field, also those at defaults."""
    return msgspec.json.format(msgspec.json.encode(plain(reply)), indent=2).decode()


def plain(value: object) -> object:
    """Return structs as maps of all their fields; the tag of a message is left out."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def to_text(reply: StatusReply) -> str:
    """Return the status as a page for people."""
    versions = [f"nodeserve {reply.version}", f"model {reply.model}"]
    if reply.vllm_version is not None:  # what engines say, once one is ready
        versions.insert(1, f"vLLM {reply.vllm_version}")
    if reply.simulate is not None:
        versions.append(f"simulates {reply.simulate}")
    lines = [
        (
            f"{reply.served_model_name} is {reply.state} at {reply.socket}, "
            f"up {duration(reply.uptime_s)}"
        ),
        *([f"{reply.state}: {reply.detail}"] if reply.detail else []),
        *_reload(reply),
        ", ".join(versions),
        f"listening on {', '.join(reply.listeners)}",
        "",
        *table(_HEADINGS, [_row(process) for process in reply.processes]),
        *(f"{p.name}: {p.detail}" for p in reply.processes if p.detail),
        *_of_other_releases(reply),
    ]
    if reply.requests is not None:
        lines += ["", *_requests(reply.requests)]
        if len(reply.requests.listeners) > 1:
            rows = [_listener_row(listener) for listener in reply.requests.listeners]
            lines += ["", *table(_LISTENER_HEADINGS, rows)]
        if reply.requests.kv_paths:
            paths = reply.requests.kv_paths
            lines += ["", *table(_PATH_HEADINGS, [_path_row(path) for path in paths])]
            lines += [f"{p.source} to {p.destination}: {p.error}" for p in paths if p.error]
    if reply.kv is not None:
        lines += ["", *tiers(reply.kv)]
    return "\n".join(lines)


def _reload(reply: StatusReply) -> list[str]:
    """Return what the last reload has still to do, or at whom it gave up."""
    if reply.reload_halted is not None:
        return [f"reload: given up, {reply.reload_halted} did not come back; the rest is as before"]
    return [f"reload: {', '.join(reply.reloading)} to go"] if reply.reloading else []


def _of_other_releases(reply: StatusReply) -> list[str]:
    """Return who still runs what was installed before, and what to do."""
    older = [p for p in reply.processes if p.version not in ("", reply.version)]
    return [
        f"{p.name}: runs nodeserve {p.version} until it restarts"
        + (f": `nodeserve restart {p.name}`" if p.kind is ProcessKind.WORKER else "")
        for p in older
    ]


def _row(process: ProcessStatus) -> tuple[str, ...]:
    load = process.load
    return (
        process.name,
        process.kind.value,
        _role(process),
        process.state,
        str(process.pid) if process.pid is not None else "-",
        str(process.generation) if process.generation else "-",
        duration(process.uptime_s) if process.pid is not None else "-",
        str(process.restarts),
        str(load.running) if load else "-",
        str(load.waiting) if load else "-",
        f"{load.kv_usage:.0%}" if load else "-",
    )


def _role(process: ProcessStatus) -> str:
    if process.role is None:
        return "-"
    return f"{process.role.value} tp={process.tp}" if (process.tp or 1) > 1 else process.role.value


def _listener_row(load: ListenerLoad) -> tuple[str, ...]:
    counts = (load.running, load.queued, load.refused, load.expired, load.turned_away)
    return (load.name, *map(str, counts), f"{load.gpu_s:.1f}")


def _path_row(path: KvPath) -> tuple[str, ...]:
    figures = (path.gbps_64kb, path.gbps_256kb, path.gbps_64mb)
    return (
        path.source,
        path.destination,
        path.transport or "-",
        "-" if path.latency_us is None else f"{path.latency_us:.0f} us",
        *("-" if figure is None else f"{figure:.1f}" for figure in figures),
        path.verdict if path.verdict in ("good", "unknown") else path.verdict.upper(),
    )


def _requests(status: DispatcherStatus) -> list[str]:
    handoffs = status.handoffs
    return [
        (
            f"requests  {status.running_requests} running, {status.queued_requests} queued, "
            f"{status.finished_requests} finished, {status.failed_requests} failed, "
            f"{status.aborted_requests} aborted, {status.resumed_requests} resumed"
        ),
        f"TTFT      {quantiles(status.ttft)}",
        f"ITL       {quantiles(status.itl)}",
        (
            f"handoffs  {handoffs.completed} done, {handoffs.failed} failed, "
            f"{handoffs.leased} held, {size(handoffs.bytes)}, {quantiles(handoffs.latency)}"
        ),
    ]


def tiers(status: KvTierStatus) -> list[str]:
    """Return a line for each tier below the GPUs, and for each engine that may not use them."""
    lines = []
    for tier in status.tiers:
        asked = tier.hits + tier.misses
        rate = f"{tier.hits / asked:.0%} of {asked} blocks found" if asked else "nothing asked for"
        off = f", switched off: {tier.failure}" if tier.failure else ""
        room = f"{size(tier.used_bytes)} of {size(tier.capacity_bytes)}"
        read = f", {moved(tier.read_bytes, tier.read_gbps)} read" if tier.read_bytes else ""
        written = moved(tier.written_bytes, tier.written_gbps)
        copies = read + (f", {written} written" if tier.written_bytes else "")
        lines.append(f"KV {tier.name:<7}{room}, {rate}{copies}, {tier.evictions} evicted{off}")
    refused = status.refused_engines.items()
    return lines + [f"generation {number} uses no tier: {why}" for number, why in refused]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows under headings, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    ]


def quantiles(found: Quantiles) -> str:
    """Write a latency's distribution, or that nothing was seen of late."""
    if found.p50_ms is None or found.p99_ms is None:
        return f"none in the last {found.window_s:g} s"
    return f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms of {found.count}"


def duration(seconds: float) -> str:
    """Write a time span in its two largest units."""
    whole = int(seconds)
    for unit, name, lower, lower_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // lower} {lower_name}"
    return f"{whole} s"


def moved(num_bytes: int, gbps: float | None) -> str:
    """Write what was copied and how fast while it was; ``-`` where nothing was."""
    if not num_bytes:
        return "-"
    return size(num_bytes) + ("" if gbps is None else f" at {gbps:.3g} GB/s")


def size(num_bytes: int) -> str:
    """Write a size in the largest binary unit that keeps it above 1."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
