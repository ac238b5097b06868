from nodeserve.engine.vllm.host_tier_orders import TierReport


def test_reports_of_ranks_add_up():
    first = TierReport(ended={1: 1, 2: 1}, failed={2}, store_bytes=5, store_ms=1.0)
    second = TierReport(ended={1: 1}, load_bytes=7, store_bytes=5)
    both = first.aggregate(second)
    assert both == TierReport(
        ended={1: 2, 2: 1}, failed={2}, load_bytes=7, store_bytes=10, store_ms=1.0
    )
    assert first.ended == {1: 1, 2: 1}
