from nodeserve.device.health_table import read_table


def test_the_shipped_table_is_read_whole():
    rows = read_table()
    assert rows["xid_79"].action == "fence"
    assert len(rows) > 90
