from nodeserve.engine.shared_counts import SharedCounts, forget_in_flight, num_turned_away


def test_processes_see_each_others_requests(tmp_path):
    first = SharedCounts(tmp_path / "c", 0, 2)
    second = SharedCounts(tmp_path / "c", 1, 2)
    first.begin()
    second.begin()
    second.begin()
    assert first.in_flight == second.in_flight == 3
    first.end()
    assert second.in_flight == 2


def test_the_next_process_in_a_place_has_nothing_in_flight_and_keeps_the_count(tmp_path):
    other = SharedCounts(tmp_path / "c", 1, 2)
    died = SharedCounts(tmp_path / "c", 0, 2)
    died.begin()
    died.turn_away()
    other.begin()
    assert SharedCounts(tmp_path / "c", 0, 2).in_flight == 1
    assert num_turned_away(tmp_path / "c") == 1


def test_what_a_process_that_died_had_in_flight_can_be_forgotten(tmp_path):
    died = SharedCounts(tmp_path / "c", 0, 2)
    other = SharedCounts(tmp_path / "c", 1, 2)
    died.begin()
    died.turn_away()
    other.begin()
    forget_in_flight(tmp_path / "c", 0)
    forget_in_flight(tmp_path / "c", 2)
    forget_in_flight(tmp_path / "none", 0)
    assert other.in_flight == 1
    assert num_turned_away(tmp_path / "c") == 1


def test_turned_away_requests_add_up_over_places(tmp_path):
    for place, number in ((0, 3), (1, 4)):
        counts = SharedCounts(tmp_path / "c", place, 2)
        for _ in range(number):
            counts.turn_away()
    assert num_turned_away(tmp_path / "c") == 7


def test_without_a_whole_file_nothing_was_turned_away(tmp_path):
    assert num_turned_away(tmp_path / "none") == 0
    (tmp_path / "torn").write_bytes(b"x" * 17)
    assert num_turned_away(tmp_path / "torn") == int.from_bytes(b"x" * 8, "little")
