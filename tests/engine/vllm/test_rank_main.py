"""A rank begins only as long as its engine is there; what ends it is in tests/faults."""

import os

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("engine", "begun"), [("parent", 1), ("another", 0)])
def test_a_rank_whose_engine_has_gone_does_not_begin(vllm_context, engine, begun):
    assert vllm_entry.ask(vllm_context, begin_a_rank, engine) == begun


def begin_a_rank(engine, pipe):
    from nodeserve.engine.vllm import rank_main  # noqa: PLC0415  (where vLLM may be imported)

    begun = []
    rank_main.WorkerProc.worker_main = lambda **what: begun.append(what)
    os.environ[rank_main.ENGINE_PID] = str(os.getppid() if engine == "parent" else 1 << 30)
    rank_main.rank_main(rank=1)
    pipe.send(len(begun))
