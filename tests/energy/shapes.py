"""What tests of the ledger's cores are told by meters and engines."""

from nodeserve.wire.accounting import (
    EngineHello,
    Member,
    Meter,
    MetersHello,
    MetersRead,
    Reading,
    StepLog,
    StepRun,
    WorkShape,
)
from nodeserve.wire.kinds import Role

UNIX_S = 1_700_000_000.0
"""The wall clock when the monotonic one shows 0; 800 s into an hour."""

SHAPE = WorkShape(
    token_flops=16e9,
    pair_flops=524288.0,
    kv_bytes=131072.0,
    weight_bytes=16e9,
    flops_per_s=593e12,
    bytes_per_s=2.68e12,
)
"""8 billion weights in bf16 on what an H100 reaches."""


def gpu(index=0):
    return Meter(
        meter=f"GPU-{index}",
        kind="gpu",
        name="H100",
        source="nvml-counter",
        index=index,
        max_power_mw=700_000,
    )


PACKAGE = Meter(meter="cpu-package-0", kind="cpu", name="package-0", source="powercap")


def meters(*which, generation=1):
    return MetersHello(generation=generation, meters=which)


def read(at_s, counters, *, idle_mw=70_000, generation=1):
    readings = tuple(
        Reading(meter=meter, counter_mj=counter, idle_mw=idle_mw)
        for meter, counter in counters.items()
    )
    return MetersRead(generation=generation, at_s=at_s, at_unix_s=UNIX_S + at_s, readings=readings)


def engine(generation=3, *, worker="decode-0", role=Role.DECODE, on=("GPU-0",)):
    return EngineHello(worker=worker, generation=generation, role=role, meters=on, work=SHAPE)


def steps(begin_s, end_s, *, num_steps=100, batch=(), **changes):
    """A log of like steps without pauses."""
    run = StepRun(end_s, num_steps, end_s - begin_s, **changes)
    return log(begin_s, end_s, batch=batch, runs=(run,))


def log(begin_s, end_s, *, seq=1, generation=3, role=Role.DECODE, batch=(), runs=()):
    return StepLog(
        generation=generation,
        seq=seq,
        role=role,
        begin_s=begin_s,
        end_s=end_s,
        batch=batch,
        runs=runs,
    )


def leg(number, context=100, tokens=1):
    return Member(f"d1-{number}.1", tokens, context)
