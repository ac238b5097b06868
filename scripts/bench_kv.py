"""Print how KV moves on this machine, each figure as a ratio within one run."""

import statistics
import tempfile
from pathlib import Path
from typing import Final

import bench_kv_copy
import bench_kv_disk
import bench_kv_node
import click
from bench_control_plane import describe_machine

MIB: Final = 1 << 20
PARTS: Final = ("copy", "handoff", "tier", "overhead", "restart", "disk")


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--nixl", metavar="PYTHON", help="An interpreter that has NIXL, to compare with.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only these parts.")
def main(model: Path, nixl: str | None, parts: tuple[str, ...]) -> None:
    """Print KV's table for MODEL, a directory that vLLM can serve on this machine's CPU."""
    chosen = parts or PARTS
    print(f"{describe_machine()}; everything shares them\n")
    with tempfile.TemporaryDirectory(prefix="ns-kv-") as made:
        folder = Path(made)
        memcpy_bytes_per_s = _copies(nixl) if {"copy", "handoff"} & set(chosen) else 0.0
        if "handoff" in chosen:
            _handoffs(model, folder / "pair", memcpy_bytes_per_s)
        if "tier" in chosen:
            _pair("1,500 tokens: host hit / computed", bench_kv_node.host_hits(model, folder / "t"))
        if "overhead" in chosen:
            _overhead(bench_kv_node.without_hits(model, folder / "o"))
        if "restart" in chosen:
            computed, total = bench_kv_node.disk_after_restart(model, folder / "r")
            print(f"\nafter a restart, from disk: {computed} of {total} prompt tokens computed")
        if "disk" in chosen:
            _disk(folder)


def _copies(nixl: str | None) -> float:
    """Print the copies; return what memcpy does at the largest size, in bytes a second."""
    print("| handoff | memcpy | ours | of memcpy | NIXL | NIXL / ours |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = bench_kv_copy.measure(nixl)
    for row in rows:
        cells = [row.shape.name, _us(row.memcpy_s), _us(row.ours_s)]
        cells += [f"{row.memcpy_s / row.ours_s:.2f}"]
        cells += (
            ["", ""] if row.nixl_s is None else [_us(row.nixl_s), f"{row.nixl_s / row.ours_s:.1f}"]
        )
        print("| " + " | ".join(cells) + " |", flush=True)
    return rows[-1].shape.num_bytes / rows[-1].memcpy_s


def _handoffs(model: Path, folder: Path, memcpy_bytes_per_s: float) -> None:
    found = bench_kv_node.handoffs(model, folder)
    copy_ms = found.num_bytes / memcpy_bytes_per_s * 1e3
    beyond_ms = found.total_ms - found.step_ms - copy_ms
    print(
        f"\nhandoff of 1,000 tokens ({found.num_bytes / MIB:.1f} MiB), p50: {found.total_ms:.1f} ms"
        f" = step {found.step_ms:.1f} + memcpy {copy_ms:.1f} + beyond {beyond_ms:.1f} ms"
    )


def _pair(name: str, found: bench_kv_node.Pair) -> None:
    print(
        f"\n{name}: {found.first_s * 1e3:.0f} ms / {found.second_s * 1e3:.0f} ms"
        f" = {found.ratio:.3f}",
        flush=True,
    )


def _overhead(found: list[bench_kv_node.Overhead]) -> None:
    tiered, plain = [one.tiered for one in found], [one.plain for one in found]
    print(
        f"\n1,500 tokens that hit nothing, then 16 more: with a tier / without, medians of"
        f" {len(found)} starts: {statistics.median(tiered):.3f} ({min(tiered):.3f} to"
        f" {max(tiered):.3f}); without / without: {statistics.median(plain):.3f}"
        f" ({min(plain):.3f} to {max(plain):.3f})",
        flush=True,
    )


def _disk(folder: Path) -> None:
    print()
    made = folder / "disk"
    made.mkdir()
    rows = bench_kv_disk.run(made, total_bytes=512 * MIB, rounds=5)
    print(bench_kv_disk.table(rows))


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"


if __name__ == "__main__":
    main()
