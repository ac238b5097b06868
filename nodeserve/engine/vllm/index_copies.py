"""Copies of many small pieces within one GPU, by torch's index operations: SMs, no copy engine.

A copy engine does 87 GiB/s within a GPU where SMs do 1,600 (NCCL #2177). One call a piece makes
the driver use SMs too, and costs 2 us each: large pieces are copied so, small ones gathered here.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

from nodeserve.device.cuda_driver import CudaContext
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.cuda_copier import Submit

LARGE_BYTES: Final = 256 << 10
"""Pieces of this size on average are copied one by one: 512 of them take 1 ms to ask for."""

UNIT_BYTES: Final = 512
"""Pieces are gathered where they and their places are multiples of this."""

CHUNK_BYTES: Final = 32 << 20
"""What is gathered lies in memory of torch's for a moment: no more than this at a time."""


def submitter(context: CudaContext) -> Submit:
    """Return how copies within the GPU of ``context`` are asked for."""
    device = torch.device("cuda", context.device.ordinal)

    def submit(runs: Sequence[AddressRun], stream: int) -> None:
        if not runs:
            return
        unit = common_unit(runs)
        mean = sum(run.length for run in runs) // len(runs)
        if mean >= LARGE_BYTES or unit < UNIT_BYTES:
            context.copy_each(runs, stream)
            return
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device)):
            copy_units(runs, unit, device)

    return submit


def common_unit(runs: Sequence[AddressRun]) -> int:
    """Return the largest size that all pieces, and the distances between them, are multiples of."""
    first = runs[0]
    return math.gcd(
        *(
            number
            for run in runs
            for number in (
                run.length,
                run.source - first.source,
                run.destination - first.destination,
            )
        )
    )


def copy_units(
    runs: Sequence[AddressRun], unit: int, device: torch.device, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Copy ``runs``, whose pieces are multiples of ``unit`` bytes, on torch's current stream."""
    source, source_rows = _rows([(run.source, run.length) for run in runs], unit, device)
    ours = [(run.destination, run.length) for run in runs]
    destination, destination_rows = _rows(ours, unit, device)
    step = max(1, chunk_bytes // unit)
    for at in range(0, len(source_rows), step):
        behind = at + step
        taken = source.index_select(0, source_rows[at:behind])
        destination.index_copy_(0, destination_rows[at:behind], taken)


def _rows(
    pieces: Sequence[tuple[int, int]], unit: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all memory from the first to the last piece in rows of ``unit``, and which are meant.

    The rows of every piece follow each other, in the order of the pieces.
    """
    base = min(address for address, _ in pieces)
    end = max(address + length for address, length in pieces)
    width = next(size for size in (8, 4, 2, 1) if unit % size == 0 and base % size == 0)
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[width]
    memory = tensor_at(base, end - base, device).view(kind).view(-1, unit // width)
    firsts = torch.tensor([(address - base) // unit for address, _ in pieces])
    counts = torch.tensor([length // unit for _, length in pieces])
    starts = torch.repeat_interleave(firsts - (counts.cumsum(0) - counts), counts)
    return memory, (starts + torch.arange(len(starts))).to(device)


def tensor_at(address: int, num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return memory that torch does not own as int8; it must outlive the tensor."""
    storage = torch._C._construct_storage_from_data_pointer(  # noqa: SLF001
        address, device, num_bytes
    )
    return torch.empty(0, dtype=torch.int8, device=device).set_(storage)
