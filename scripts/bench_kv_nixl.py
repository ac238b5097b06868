"""NIXL's side of bench_kv_copy; runs in an interpreter that has NIXL and nothing of nodeserve.

usage: bench_kv_nixl.py POOL_BYTES < questions

Lines that begin with ``=`` are answers: one when ready, then the seconds that each copy took.
"""

import ctypes
import importlib
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import Any


def agent(name: str) -> Any:
    """Return a NIXL agent over UCX."""
    api = importlib.import_module("nixl._api")
    return api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))


def registered(one: Any, num_bytes: int) -> int:
    """Return the address of new memory that the agent knows."""
    memory = ctypes.create_string_buffer(num_bytes)
    one.kept = memory
    ctypes.memset(memory, 7, num_bytes)
    address = ctypes.addressof(memory)
    one.register_memory(one.get_reg_descs([(address, num_bytes, 0, "")], "DRAM"))
    return address


def own(pipe: Connection, num_bytes: int) -> None:
    """Hold memory until told to end."""
    one = agent("owner")
    address = registered(one, num_bytes)
    pipe.send((one.get_agent_metadata(), address))
    pipe.recv()


def main() -> None:
    """Answer questions until there are none."""
    num_bytes = int(sys.argv[1])
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=own, args=(theirs, num_bytes))
    process.start()
    metadata, there = ours.recv()
    one = agent("peer")
    here = registered(one, num_bytes)
    name = one.add_remote_agent(metadata)
    prepared: dict[int, tuple[Any, Any]] = {}
    print("=ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        piece = question["piece"]
        if piece not in prepared:
            sides = []
            for peer, base in (("NIXL_INIT_AGENT", here), (name, there)):
                descriptors = [(base + at, piece, 0) for at in range(0, num_bytes, piece)]
                sides.append(one.prep_xfer_dlist(peer, one.get_xfer_descs(descriptors, "DRAM")))
            prepared[piece] = (sides[0], sides[1])
        local, remote = prepared[piece]
        begun = time.perf_counter()
        handle = one.make_prepped_xfer(
            "READ", local, question["destination"], remote, question["source"]
        )
        one.transfer(handle)
        while one.check_xfer_state(handle) == "PROC":
            pass
        taken = time.perf_counter() - begun
        if one.check_xfer_state(handle) != "DONE":
            sys.exit("bench_kv_nixl: a transfer failed")
        one.release_xfer_handle(handle)
        print(f"={taken}", flush=True)
    ours.send(None)
    process.join()


if __name__ == "__main__":
    main()
