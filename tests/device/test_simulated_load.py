from pathlib import Path

from nodeserve.device.simulated_load import EngineLoad, SimulatedLoad


def test_what_an_engine_adds_its_meters_see(tmp_path):
    engine = EngineLoad(tmp_path, ("sim-0", "sim-3"))
    meters = [SimulatedLoad(tmp_path, f"sim-{index}") for index in (0, 3, 1)]
    engine.add_busy(0.25)
    engine.add_busy(0.5)
    assert [meter.busy_ns for meter in meters] == [750_000_000, 750_000_000, 0]


def test_a_load_outlives_who_wrote_it(tmp_path):
    first = SimulatedLoad(tmp_path, "sim-0")
    first.add_busy(1.0)
    first.reset(4000)
    first.close()
    second = SimulatedLoad(tmp_path, "sim-0")
    assert (second.busy_ns, second.base_mj, second.num_resets) == (10**9, 4000, 1)


def test_an_engine_runs_without_a_place_for_its_load():
    EngineLoad(Path("/nonexistent"), ("sim-0",)).add_busy(1.0)
