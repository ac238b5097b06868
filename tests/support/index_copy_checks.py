"""Checks of engine.vllm.index_copies, which need torch: run in a child that has it."""

import random
from multiprocessing.connection import Connection
from types import SimpleNamespace

import torch

from nodeserve.engine.vllm import index_copies
from nodeserve.transfer.base import AddressRun

CPU = torch.device("cpu")
UNIT = 1536


def _made(pieces, source_size, seed=3):
    rng = random.Random(seed)
    source = torch.randint(-128, 127, (source_size,), dtype=torch.int8)
    destination = torch.zeros(source_size, dtype=torch.int8)
    expected = destination.clone()
    rows = source_size // UNIT
    theirs, ours = rng.sample(range(rows), pieces), rng.sample(range(rows), pieces)
    runs = []
    for a, b in zip(theirs, ours, strict=True):
        at, to = source.data_ptr() + a * UNIT, destination.data_ptr() + b * UNIT
        runs.append(AddressRun(at, to, UNIT))
        expected[b * UNIT : (b + 1) * UNIT] = source[a * UNIT : (a + 1) * UNIT]
    return source, destination, expected, runs


def pieces_land_where_they_should(pipe: Connection) -> None:
    source, destination, expected, runs = _made(40, UNIT * 100)
    longer = AddressRun(source.data_ptr() + 5 * UNIT, destination.data_ptr() + 90 * UNIT, 4 * UNIT)
    runs = [run for run in runs if not run.destination - destination.data_ptr() > 89 * UNIT]
    expected[90 * UNIT :] = 0
    expected[90 * UNIT : 94 * UNIT] = source[5 * UNIT : 9 * UNIT]
    unit = index_copies.common_unit([*runs, longer])
    assert unit % UNIT == 0 or UNIT % unit == 0
    index_copies.copy_units([*runs, longer], unit, CPU)
    assert torch.equal(destination, expected)
    pipe.send("as it should be")


def what_is_gathered_at_a_time_is_bounded(pipe: Connection) -> None:
    _, destination, expected, runs = _made(64, UNIT * 64)
    index_copies.copy_units(runs, UNIT, CPU, chunk_bytes=5 * UNIT)
    assert torch.equal(destination, expected)
    pipe.send("as it should be")


def large_and_odd_pieces_are_copied_one_by_one(pipe: Connection) -> None:
    asked = []
    context = SimpleNamespace(
        device=SimpleNamespace(ordinal=0), copy_each=lambda runs, stream: asked.append(len(runs))
    )
    submit = index_copies.submitter(context)
    submit([], 1)
    submit([AddressRun(0, 1 << 30, 1 << 20)], 1)
    submit([AddressRun(0, 1 << 30, 512), AddressRun(1, 1 << 20, 512)], 1)
    assert asked == [1, 2]
    pipe.send("as it should be")
