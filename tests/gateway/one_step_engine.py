"""An engine of one thread for gateway tests: it speaks the wire and repeats one token."""

import threading
import time
from typing import Self

import msgspec
import zmq

from nodeserve.gateway.launch import InternalSockets

ADD, UTILITY = b"\x00", b"\x03"
LENGTH = 1
TOKEN = 40

READY = {
    "max_model_len": 512,
    "num_gpu_blocks": 1000,
    "block_size": 16,
    "dp_stats_address": None,
    "dtype": "bfloat16",
    "vllm_version": "0.32.0",
    "world_size": 1,
    "data_parallel_size": 1,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "data_parallel_rank": 0,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 8192,
    "instance_id": "test",
    "supports_lora": False,
    "max_loras": 0,
    "mamba_block_size": None,
    "kv_cache_size_tokens": 16000,
    "kv_cache_max_concurrency": 1.0,
    "kv_events_config": None,
    "weight_transfer_backend": None,
    "enable_sleep_mode": False,
    "supports_draft_weight_updates": False,
    "effective_attention_block_size": 16,
}
"""A vllm.v1.engine.EngineCoreReadyResponse."""


class OneStepEngine:
    """Answers every request with ``max_tokens`` times ``TOKEN`` in a single step."""

    def __init__(self, sockets: InternalSockets) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(sockets,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _run(self, sockets: InternalSockets) -> None:
        with (
            zmq.Context() as context,
            context.socket(zmq.DEALER) as inputs,
            context.socket(zmq.PUSH) as outputs,
        ):
            inputs.setsockopt(zmq.IDENTITY, b"\x00\x00")
            inputs.setsockopt(zmq.LINGER, 0)
            outputs.setsockopt(zmq.LINGER, 0)
            inputs.connect(sockets.input_address)
            outputs.connect(sockets.output_address)
            inputs.send(msgspec.msgpack.encode(READY))
            while not self._stopping.is_set():
                if inputs.poll(20):
                    kind, *frames = inputs.recv_multipart()
                    self._answer(outputs, kind, msgspec.msgpack.decode(frames[0]))

    @staticmethod
    def _answer(outputs: "zmq.Socket[bytes]", kind: bytes, payload: list[object]) -> None:
        now = time.monotonic()
        if kind == UTILITY:
            answer = [0, [], None, now, [payload[1], None, [None, None]]]
            outputs.send(msgspec.msgpack.encode(answer))
        elif kind == ADD:
            params = payload[3]
            assert isinstance(params, dict)
            tokens = [TOKEN] * params.get("max_tokens", 16)
            output = [payload[0], tokens, None, None, None, LENGTH]
            outputs.send(msgspec.msgpack.encode([0, [output], None, now]))
