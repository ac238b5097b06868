"""Simulated engines, driven exactly as the real ones are."""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec

from nodeserve.engine.base import Engine
from nodeserve.engine.simulated.engine import SimulatedEngine
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec
from tests.support.step_telling import accounted
from tests.support.vllm_node import START_DEADLINE_S, VllmNode

CONFIG = {
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class SimulatedNode(VllmNode):
    """Engines by generation, each on a thread of the test's own process."""

    def __init__(self, folder: Path, speedup: float) -> None:
        """Make the model that all of them run; start none."""
        super().__init__(None, folder, folder)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        self._speedup = speedup
        self.engines: dict[int, Engine] = {}
        self._threads: dict[int, threading.Thread] = {}

    def spec(self, generation: int, kv: KvSpec, args: dict[str, Any], tp: int = 1) -> WorkerSpec:
        spec = super().spec(generation, kv, args, tp)
        engine = EngineSpec(
            model=spec.engine.model,
            served_model_name="tiny",
            tp=tp,
            args=args,
            simulate="8xh100-sxm",
            speedup=self._speedup,
        )
        return msgspec.structs.replace(spec, engine=engine)

    def start(self, spec: WorkerSpec) -> None:
        engine = SimulatedEngine(spec, lambda _: None)
        self.ready[spec.generation] = engine.start()
        thread = threading.Thread(target=_serve, args=(engine, spec), daemon=True)
        thread.start()
        self.engines[spec.generation], self._threads[spec.generation] = engine, thread

    def wait_ready(self, *generations: int) -> None:
        for _ in generations:
            assert self._input.poll(int(START_DEADLINE_S * 1e3))
            identity, _payload = self._input.recv_multipart()
            assert int.from_bytes(identity, "little") in self.engines

    def stop(self, generation: int) -> bool:
        """Stop one engine; whether it did within five seconds."""
        self.engines[generation].stop()
        self._threads[generation].join(5)
        return not self._threads[generation].is_alive()

    def close(self) -> None:
        for generation in self.engines:
            self.stop(generation)
        self._zmq.destroy(linger=0)


def _serve(engine: Engine, spec: WorkerSpec) -> None:
    with accounted(engine, spec):
        engine.run()
