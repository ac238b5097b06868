from nodeserve.kv.tier_counters import TierCounters


def test_what_engines_read_and_wrote_is_added_up_apart():
    counters = TierCounters()
    counters.add_read(4096, 10)
    counters.add_read(4096, 5)
    counters.add_written(100, 2)
    assert counters == TierCounters(read_bytes=8192, read_us=15, written_bytes=100, written_us=2)
