import re

from nodeserve.cli.kv_metrics import to_metrics
from nodeserve.wire.kv_control import KvListenerLoad, KvTierLoad, KvTierStatus

SAMPLE = re.compile(r'^nodeserve:[a-z_]+\{(tier|listener)="[a-z]+"\} \d+(\.\d+)?$')


def test_every_line_is_a_sample_or_says_what_follows():
    status = KvTierStatus(
        tiers=(
            KvTierLoad(name="host", hits=3, read_s=0.5, read_gbps=2.5),
            KvTierLoad(name="disk", failure="full"),
        ),
        listeners=(KvListenerLoad(name="api", used_bytes=7),),
    )
    lines = to_metrics(status).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in samples)
    assert 'nodeserve:kv_tier_hits_total{tier="host"} 3' in samples
    assert 'nodeserve:kv_tier_up{tier="disk"} 0' in samples
    assert 'nodeserve:kv_listener_used_bytes{listener="api"} 7' in samples
    assert 'nodeserve:kv_tier_read_seconds_total{tier="host"} 0.5' in samples
    assert [s for s in samples if "gbps" in s] == ['nodeserve:kv_tier_read_gbps{tier="host"} 2.5']
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert {line.split("{")[0] for line in samples} == {*types} - {"nodeserve:kv_tier_written_gbps"}


def test_a_node_that_nobody_asked_has_families_without_samples():
    assert all(line.startswith("# ") for line in to_metrics(KvTierStatus()).splitlines())
