"""The least an engine can do behind vLLM's Rust front end: the ceiling for the control plane.

usage: bench_bare_engine.py VLLM_RS MODEL_DIR RUN_DIR

No routing, no KV accounting, no second worker: it adopts the front end's sockets and answers
every step of every request in one message. What nodeserve's benchmark reaches is compared with
this, in the same run, behind the same front end.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import zmq

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
LENGTH = 1
TOKEN = 40
READY = {
    "max_model_len": 4096,
    "num_gpu_blocks": 1000,
    "block_size": 16,
    "dp_stats_address": None,
    "dtype": "bfloat16",
    "vllm_version": "0",
    "world_size": 1,
    "data_parallel_size": 1,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "data_parallel_rank": 0,
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
    "instance_id": "bare",
    "supports_lora": False,
    "max_loras": 0,
}


def listener(path: Path) -> socket.socket:
    """Return a listening Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(1024)
    return sock


def start_front_end(binary: str, model: str, run_dir: Path) -> "subprocess.Popen[bytes]":
    """Start vllm-rs on the three sockets that it adopts."""
    paths = [run_dir / name for name in ("api.sock", "in.sock", "out.sock")]
    adopted = [listener(path) for path in paths]
    fds = [sock.fileno() for sock in adopted]
    args: dict[str, str | int] = {"model": model, "model_tag": model, "uds": str(paths[0])}
    args |= {"engine_ready_timeout_secs": 60, "http_timeout_keep_alive": 60}
    argv = [binary, "frontend", "--listen-fd", str(fds[0]), "--input-listener-fd", str(fds[1])]
    argv += ["--output-listener-fd", str(fds[2]), "--engine-start-index", "0"]
    argv += ["--engine-count", "1", "--data-parallel-size", "1", "--args-json", json.dumps(args)]
    started = subprocess.Popen(argv, pass_fds=fds)
    for sock in adopted:
        sock.close()
    return started


def serve(front_end: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    """Be the engine until the front end ends."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, bytes(2))
    dealer.connect(f"ipc://{run_dir}/in.sock")
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{run_dir}/out.sock")
    decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode
    dealer.send(encode(READY))
    live: dict[str, int] = {}
    while front_end.poll() is None:
        while dealer.poll(0 if live else 200):
            kind, *frames = dealer.recv_multipart()
            if kind == ADD:
                request = decode(frames[0])
                live[request[0]] = request[3].get("max_tokens", 16)
            elif kind == ABORT:
                for request_id in decode(frames[0]):
                    live.pop(request_id, None)
            elif kind == UTILITY:
                call_id = decode(frames[0])[1]
                push.send(encode([0, [], None, time.monotonic(), [call_id, None, [None, None]]]))
        step: list[list[object]] = []
        for request_id, left in list(live.items()):
            if left > 1:
                step.append([request_id, [TOKEN]])
                live[request_id] = left - 1
            else:
                step.append([request_id, [TOKEN], None, None, None, LENGTH])
                del live[request_id]
        if step:
            push.send(encode([0, step, None, time.monotonic()]))


def main() -> None:
    """Run until SIGTERM ends this process; the front end follows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run_dir = Path(sys.argv[3])
    front_end = start_front_end(sys.argv[1], sys.argv[2], run_dir)
    try:
        serve(front_end, run_dir)
    finally:
        front_end.kill()


if __name__ == "__main__":
    main()
