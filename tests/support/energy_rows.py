"""Rows of a made-up ledger, which add up as those of a real one do."""

from fractions import Fraction
from importlib.resources import files

from hypothesis import strategies as st

from nodeserve.energy.intensity_csv import make_intensities
from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.prices import Price, Prices
from nodeserve.energy.report_sums import Factors
from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from nodeserve.energy.sci import Pue, Sites, parse_embodied
from nodeserve.energy.utc import HOUR_S, parse_utc

TEN = parse_utc("2026-03-10T10:00Z")
H100 = "NVIDIA H100 80GB HBM3"


def shipped(name):
    return files("nodeserve.energy").joinpath("data", name).read_text("utf-8")


def an_energy(useful_mj, scrap_mj=0, **changes):
    given = {
        "node": "n1",
        "zone": "DEU",
        "hour_unix_s": TEN,
        "listener": "api",
        "model": "llama",
        "role": "decode",
        "meter": "GPU-1",
        "useful_mj": useful_mj,
        "scrap_mj": scrap_mj,
    }
    return EnergyRow(**{**given, **changes})


def a_meter(allocated_mj, idle_mj=0, quarantine_mj=0, **changes):
    given = {
        "node": "n1",
        "zone": "DEU",
        "hour_unix_s": TEN,
        "meter": "GPU-1",
        "kind": "gpu",
        "name": H100,
        "metered_mj": allocated_mj + idle_mj + quarantine_mj,
        "allocated_mj": allocated_mj,
        "idle_mj": idle_mj,
        "quarantine_mj": quarantine_mj,
        "metered_s": 3_600.0,
    }
    return MeterRow(**{**given, **changes})


def some_tokens(prompt=0, output=0, **changes):
    given = {
        "node": "n1",
        "zone": "DEU",
        "hour_unix_s": TEN,
        "listener": "api",
        "model": "llama",
        "role": "decode",
        "requests": 1,
        "prompt_tokens": prompt,
        "cached_tokens": 0,
        "output_tokens": output,
        "scrap_tokens": 0,
    }
    return TokenRow(**{**given, **changes})


def some_factors(**changes):
    price = Price(prompt=Fraction("0.15"), cached=Fraction("0.07"), output=Fraction("0.6"))
    given = {
        "intensities": make_intensities(shipped("intensity_yearly.csv")),
        "sites": Sites(elsewhere=Pue(value=Fraction("1.2"), source="site, 2025")),
        "embodied": tuple(parse_embodied(shipped("embodied.csv"))),
        "prices": Prices(currency="EUR", prices=(price,), electricity_per_kwh=Fraction("0.213")),
    }
    return Factors(**{**given, **changes})


_AMOUNTS = st.integers(0, 10**9)


@st.composite
def ledgers(draw):
    """Rows of up to three nodes, hours and meters, with requests, accounts and idle times."""
    energy, meters, tokens = [], [], []
    for node, zone in (("n1", "DEU"), ("n2", "US-CAL"), ("n3", ""))[: draw(st.integers(1, 3))]:
        for hour in (TEN + HOUR_S * n for n in range(draw(st.integers(1, 3)))):
            where = {"node": node, "zone": zone, "hour_unix_s": hour}
            for meter in range(draw(st.integers(1, 2))):
                used = 0
                name = f"GPU-{node}-{meter}"
                for who in draw(st.lists(_WHO, max_size=4, unique=True)):
                    row = an_energy(draw(_AMOUNTS), draw(_AMOUNTS), **where, meter=name, **_as(who))
                    used += row.useful_mj + row.scrap_mj
                    energy.append(row)
                allocated_mj = used + draw(st.sampled_from((0, 0, 12_345)))
                rest = {"idle_mj": draw(_AMOUNTS), "quarantine_mj": draw(st.sampled_from((0, 7)))}
                seconds = draw(st.floats(0, 3_600))
                meters.append(a_meter(allocated_mj, **rest, **where, meter=name, metered_s=seconds))
            tokens += [
                some_tokens(draw(_AMOUNTS), draw(_AMOUNTS), **where, **_as(who))
                for who in draw(st.lists(_WHO, max_size=4, unique=True))
            ]
    return LedgerRows(energy=energy, meters=meters, tokens=tokens)


_WHO = st.tuples(
    st.sampled_from(("api", "batch")),
    st.sampled_from(("llama", "qwen")),
    st.sampled_from(("prefill", "decode", "aggregated")),
)


def _as(who):
    return dict(zip(("listener", "model", "role"), who, strict=True))
