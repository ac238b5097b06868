import json

import pytest

from nodeserve.cli.kv import hit_rate, to_text
from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import (
    KvEngineLoad,
    KvListenerLoad,
    KvPrefix,
    KvTierLoad,
    KvTierStatus,
    KvTierStatusRequest,
)

GIB = 1 << 30


def an_account(**changes) -> KvTierStatus:
    host = KvTierLoad(
        name="host",
        capacity_bytes=64 * GIB,
        used_bytes=16 * GIB,
        slots=8192,
        used_slots=2048,
        hits=300,
        misses=100,
        stores=2100,
        evictions=52,
    )
    disk = KvTierLoad(
        name="disk",
        capacity_bytes=GIB << 10,
        used_slots=46,
        read_bytes=4 * GIB,
        read_gbps=2.147,
        failure="full",
    )
    given = {
        "state": "serving",
        "block_bytes": 8 << 20,
        "tiers": (host, disk),
        "listeners": (KvListenerLoad(name="batch", quota=0.25, hits=1, misses=3),),
        "engines": (KvEngineLoad(worker="decode-0", generation=7),),
        "refused_engines": {9: "another model"},
        "prefixes": (KvPrefix(key="ab12" * 16, blocks=12, hits=90, pinned=True),),
        "lookups": 40,
        "looked_up_keys": 400,
        "lookup_us_per_key": 0.25,
    }
    return KvTierStatus(**given | changes)


def test_the_page_shows_tiers_listeners_prefixes_and_who_may_not_use_them(daemon, run):
    daemon.answers = [an_account()]
    lines = run("kv", "--socket", daemon.socket).output.splitlines()
    assert daemon.heard == [KvTierStatusRequest()]
    shown = [" ".join(line.split()) for line in lines]
    asked = "blocks of 8.0 MiB, 1 engines, 40 look-ups of 400 blocks, 0.25 us a key"
    assert shown[0] == asked
    assert "host 16.0 GiB 64.0 GiB 2048/8192 300 100 75.0% 2100 52 0 0 - -" in shown
    assert any(line.startswith("disk 0 B 1.0 TiB 46 0 0 - ") for line in shown)
    assert "disk: switched off: full" in shown
    assert any("4.0 GiB at 2.15 GB/s" in line for line in shown)
    assert "batch 25% 0 B 0 1 3 25.0% 0 0 0" in shown
    assert "ab12ab12ab12ab12 12 90 yes" in shown
    assert shown[-1] == "engine of generation 9: uses no tier: another model"


def test_the_json_has_every_field_and_no_tag(daemon, run):
    daemon.answers = [an_account()]
    shown = json.loads(run("kv", "--json", "--socket", daemon.socket).output)
    assert set(shown) == set(KvTierStatus.__struct_fields__)
    assert shown["refused_engines"] == {"9": "another model"}
    assert shown["tiers"][1]["failure"] == "full"


def test_the_metrics_are_text(daemon, run):
    daemon.answers = [an_account()]
    shown = run("kv", "--metrics", "--socket", daemon.socket).output
    assert 'nodeserve:kv_tier_hits_total{tier="host"} 300\n' in shown


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("waiting", "no engine has asked for the tiers yet"),
        ("adopting", "takes over what the block manager before this one has left"),
    ],
)
def test_a_block_manager_that_is_not_serving_yet_says_so(state, said):
    assert to_text(an_account(state=state)).splitlines()[0] == said


def test_a_node_without_tiers_says_how_to_have_them(daemon, run):
    said = "this node keeps KV nowhere below its GPUs"
    daemon.answers = [CommandReply(error=said, exit_code=65)]
    result = run("kv", "--socket", daemon.socket)
    assert (result.exit_code, result.stderr) == (65, f"nodeserve: {said}\n")


def test_a_rate_of_nothing_is_none():
    assert (hit_rate(0, 0), hit_rate(1, 1)) == ("-", "50.0%")


def test_the_help_names_every_subcommand(run):
    shown = run("kv", "--help").output
    assert all(f"  {name} " in shown for name in ("clear", "pin", "unpin", "replay"))
