"""Measure the disk tier against fio: the same directory, block size and queue depth, in one run.

Both write and read with O_DIRECT where the file system has it. The store writes and reads records
(a page of header before each payload, a checksum over all of it); fio writes and reads blocks of
the payload's size in a preallocated file, by as many jobs as the store has threads. The two take
turns, and the ratio is the median of the rounds' own ratios, for the disk may have other users.
"""

import json
import mmap
import secrets
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from nodeserve.clock import MonotonicClock
from nodeserve.transfer.checksum import address_of
from nodeserve.transfer.disk import LogDiskStore, open_disk_store
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_store import Done
from nodeserve.wire.spawn import DiskTierSpec

NAMESPACE: Final = b"bench".ljust(32, b"\0")
DEADLINE_S: Final = 120.0
RECORD_BYTES: Final = (256 << 10, 1 << 20)


@dataclass(frozen=True, slots=True)
class Row:
    """One size and direction: median bytes per second of payload, and of the rounds' ratios.

    The latter two are None without fio.
    """

    operation: str
    record_bytes: int
    threads: int
    store_bytes_per_s: float
    fio_bytes_per_s: float | None
    ratio: float | None
    direct: bool


def run(
    directory: Path, *, total_bytes: int, rounds: int, sizes: Sequence[int] = RECORD_BYTES
) -> list[Row]:
    """Return rows for writes and reads of each size; leaves nothing in ``directory``."""
    rows = []
    for record_bytes in sizes:
        store_rates: dict[str, list[float]] = {"write": [], "read": []}
        fio_rates: dict[str, list[float]] = {"write": [], "read": []}
        options = DiskOptions()
        threads = {"write": options.num_writers, "read": options.num_readers}
        is_direct = True
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=directory) as name:
                rates, is_direct = store_round(Path(name), record_bytes, total_bytes, options)
            for operation, rate in rates.items():
                store_rates[operation].append(rate)
            with tempfile.TemporaryDirectory(dir=directory) as name:
                path = Path(name) / "fio"
                for operation, jobs in threads.items():
                    shape = (record_bytes, total_bytes, jobs)
                    fio_rates[operation] += fio_rate(path, operation, shape, direct=is_direct)
        for operation in ("write", "read"):
            ours, fio = store_rates[operation], fio_rates[operation]
            ratios = [a / b for a, b in zip(ours, fio, strict=False)]
            rows.append(
                Row(
                    operation,
                    record_bytes,
                    threads[operation],
                    store_bytes_per_s=statistics.median(ours),
                    fio_bytes_per_s=statistics.median(fio) if fio else None,
                    ratio=statistics.median(ratios) if ratios else None,
                    direct=is_direct,
                )
            )
    return rows


def store_round(
    path: Path, record_bytes: int, total_bytes: int, options: DiskOptions
) -> tuple[dict[str, float], bool]:
    """Write ``total_bytes`` of records and read them back; return bytes per second of each."""
    num_records = total_bytes // record_bytes
    num_slots = min(num_records, 64)
    memory = mmap.mmap(-1, num_slots * record_bytes)
    memory[:record_bytes] = secrets.token_bytes(record_bytes)
    for slot in range(1, num_slots):
        memory[slot * record_bytes : (slot + 1) * record_bytes] = memory[:record_bytes]
    spec = DiskTierSpec(directories=(str(path),), max_bytes=2 * total_bytes + (1 << 30))
    store = open_disk_store(spec, NAMESPACE, on_lost=print, options=options)
    # The first segment is being allocated: a write that waits for it is not measured.
    _drive(store.write, address_of(memory), record_bytes, range(-num_slots, 0))
    try:
        rates = {
            "write": _drive(store.write, address_of(memory), record_bytes, range(num_records)),
            "read": _drive(store.read, address_of(memory), record_bytes, range(num_records)),
        }
        return rates, store.stats().directories[0].direct
    finally:
        _end(store)


def _end(store: LogDiskStore) -> None:
    store.close(DEADLINE_S)


def _drive(
    call: Callable[[bytes, int, int, Done], bool],
    address: int,
    record_bytes: int,
    numbers: range,
) -> float:
    """Keep a slot of memory for each of 64 calls under way; return bytes per second."""
    clock = MonotonicClock()
    slots = threading.Semaphore(64)
    failed: list[int] = []

    def finish(number: int) -> Done:
        def done(ok: bool) -> None:  # noqa: FBT001 - the store's own contract
            if not ok:
                failed.append(number)
            slots.release()

        return done

    begun_s = clock.now_s()
    for number in numbers:
        if not slots.acquire(timeout=DEADLINE_S):
            raise click.ClickException("the store hangs; is the disk alive?")
        key = (number & ((1 << 256) - 1)).to_bytes(32, "little")
        at = address + number % 64 * record_bytes
        if not call(key, at, record_bytes, finish(number)):
            raise click.ClickException(f"the store refused record {number}")
    for _ in range(64):
        slots.acquire(timeout=DEADLINE_S)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(numbers)} records failed")
    return len(numbers) * record_bytes / (clock.now_s() - begun_s)


def fio_rate(
    path: Path, operation: str, shape: tuple[int, int, int], *, direct: bool
) -> list[float]:
    """Return what fio reaches in bytes per second, as a list of one; of none without fio."""
    if shutil.which("fio") is None:
        return []
    record_bytes, total_bytes, jobs = shape
    part = total_bytes // jobs // record_bytes * record_bytes
    command = [
        *("fio", "--name=kv", f"--filename={path}", f"--rw={operation}", f"--bs={record_bytes}"),
        *(f"--size={part}", f"--offset_increment={part}", f"--numjobs={jobs}", "--thread"),
        *(f"--direct={int(direct)}", "--ioengine=psync", "--fallocate=posix"),
        *("--group_reporting", "--output-format=json", "--refill_buffers=0", "--end_fsync=0"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(json.loads(done.stdout)["jobs"][0][operation]["bw_bytes"])]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| operation | record | threads | store GB/s | fio GB/s | store / fio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        fio, ratio = row.fio_bytes_per_s, row.ratio
        shown = ("no fio", "") if fio is None or ratio is None else (f"{fio / 1e9:.2f}", ratio)
        cells = (
            row.operation,
            f"{row.record_bytes >> 10} KiB",
            row.threads,
            f"{row.store_bytes_per_s / 1e9:.2f}",
            shown[0],
            f"{shown[1]:.2f}" if isinstance(shown[1], float) else "",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--directory", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--total-mib", default=1024, help="Payload of each round, in MiB.")
@click.option("--rounds", default=5)
def main(directory: Path, total_mib: int, rounds: int) -> None:
    """Print the table."""
    rows = run(directory, total_bytes=total_mib << 20, rounds=rounds)
    print(table(rows))
    if not rows[0].direct:
        print("without O_DIRECT: this file system lacks it")


if __name__ == "__main__":
    main()
