"""Which engine a worker runs."""

from nodeserve.engine import select
from nodeserve.wire.spawn import EngineSpec


def engine_spec(simulate: str | None) -> EngineSpec:
    return EngineSpec(model="m", served_model_name="m", tp=1, args={}, simulate=simulate)


def test_a_simulated_system_selects_the_simulated_engine() -> None:
    assert select.engine_path(engine_spec("8xh100-sxm")) == select.SIMULATED


def test_no_simulated_system_selects_vllm() -> None:
    assert select.engine_path(engine_spec(None)) == select.VLLM
