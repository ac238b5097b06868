from nodeserve.monitor.xids import XidMerge


def test_an_event_that_two_sources_tell_of_is_one():
    xids = XidMerge()
    assert xids.is_new("g", 79, "kernel", 10.0)
    assert not xids.is_new("g", 79, "nvml", 10.4)
    assert not xids.is_new("g", 79, "kernel-words", 9.9)
    assert xids.count("g") == 1


def test_a_source_that_tells_twice_tells_of_two_events():
    xids = XidMerge()
    assert xids.is_new("g", 13, "kernel", 10.0)
    assert xids.is_new("g", 13, "kernel", 10.1)
    assert not xids.is_new("g", 13, "nvml", 10.2)
    assert not xids.is_new("g", 13, "nvml", 10.3)
    assert xids.is_new("g", 13, "nvml", 10.4)
    assert xids.count("g") == 3


def test_what_another_source_tells_long_after_is_another_event():
    xids = XidMerge()
    assert xids.is_new("g", 13, "kernel", 10.0)
    assert xids.is_new("g", 13, "nvml", 20.1)


def test_devices_and_numbers_are_apart():
    xids = XidMerge()
    assert xids.is_new("g", 13, "kernel", 10.0)
    assert xids.is_new("h", 13, "nvml", 10.0)
    assert xids.is_new("g", 31, "nvml", 10.0)
    assert [xids.count(meter) for meter in ("g", "h", "other")] == [2, 1, 0]
