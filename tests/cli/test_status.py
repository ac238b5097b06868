import json

import msgspec
import pytest

from nodeserve.cli.status import duration, quantiles, size, table, tiers, to_json, to_text
from nodeserve.wire.control import StatusRequest
from nodeserve.wire.kv_control import KvTierLoad, KvTierStatus
from nodeserve.wire.status import KvPath, ListenerLoad, Quantiles
from tests.cli.conftest import a_status


def test_the_json_has_every_field_and_no_tag():
    shown = json.loads(to_json(a_status()))
    assert shown["state"] == "ready"
    assert shown["socket"] == "/run/ns/api.sock"
    worker, down = shown["processes"]
    assert worker["load"]["running"] == 5
    assert {key: down[key] for key in ("name", "kind", "role", "pid", "generation", "state")} == {
        "name": "prefill-0",
        "kind": "worker",
        "role": "prefill",
        "pid": None,
        "generation": 0,
        "state": "failed",
    }
    assert shown["requests"]["ttft"] == {
        "count": 7,
        "p50_ms": 12.5,
        "p99_ms": 80.0,
        "window_s": 60.0,
    }
    assert "type" not in shown


def test_the_page_says_what_runs_and_what_does_not(daemon, run):
    daemon.answers = [a_status()]
    result = run("status", "--socket", daemon.socket)
    assert daemon.heard == [StatusRequest()]
    lines = result.output.splitlines()
    assert lines[0] == "tiny is ready at /run/ns/api.sock, up 1 d 1 h"
    assert " ".join(lines[4].split()) == "NAME KIND ROLE STATE PID GEN UPTIME RESTARTS RUN WAIT KV"
    assert " ".join(lines[5].split()) == "decode-0 worker decode ready 42 3 1 h 2 min 1 5 2 25%"
    assert " ".join(lines[6].split()) == "prefill-0 worker prefill failed - - - 0 - - -"
    assert lines[7] == "prefill-0: no memory left"
    assert "TTFT      p50 12.5 ms, p99 80.0 ms of 7" in lines
    assert "handoffs  6 done, 0 failed, 0 held, 3.0 MiB, none in the last 60 s" in lines


def test_a_worker_of_several_ranks_says_of_how_many():
    worker, down = a_status().processes
    shown = to_text(a_status(processes=(msgspec.structs.replace(worker, tp=2), down)))
    assert " decode tp=2 " in shown
    assert " prefill  " in shown


def test_a_degraded_node_says_why():
    lines = to_text(a_status(state="degraded", detail="no worker decodes")).splitlines()
    assert lines[1] == "degraded: no worker decodes"


def test_a_reload_that_goes_on_or_was_given_up_is_shown():
    assert not any(line.startswith("reload") for line in to_text(a_status()).splitlines())
    lines = to_text(a_status(reloading=("decode-0", "decode-1"))).splitlines()
    assert lines[1] == "reload: decode-0, decode-1 to go"
    lines = to_text(a_status(reload_halted="decode-0")).splitlines()
    assert lines[1] == "reload: given up, decode-0 did not come back; the rest is as before"


def test_a_simulated_node_says_so():
    shown = to_text(a_status(simulate="8xh100-sxm"))
    assert "model /models/tiny, simulates 8xh100-sxm" in shown
    assert "simulates" not in to_text(a_status())


def test_several_listeners_are_shown_one_by_one():
    batch = ListenerLoad(name="batch", running=2, queued=7, refused=1, expired=3, gpu_s=1.25)
    chat = ListenerLoad(name="chat", running=4, turned_away=5)
    status = a_status()
    both = msgspec.structs.replace(status.requests, listeners=(batch, chat))
    lines = to_text(msgspec.structs.replace(status, requests=both)).splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["LISTENER", "RUN", "WAIT", "REFUSED", "EXPIRED", "429", "GPU", "S"],
        ["batch", "2", "7", "1", "3", "0", "1.2"],
        ["chat", "4", "0", "0", "0", "5", "0.0"],
    ]
    one = msgspec.structs.replace(status.requests, listeners=(batch,))
    assert "LISTENER" not in to_text(msgspec.structs.replace(status, requests=one))


def test_how_fast_kv_moves_is_shown_path_by_path():
    good = KvPath(
        source="prefill-0",
        destination="decode-0",
        verdict="good",
        transport="cuda_ipc",
        latency_us=12.4,
        gbps_64kb=100.0,
        gbps_256kb=200.0,
        gbps_64mb=300.04,
    )
    bad = KvPath(source="prefill-1", destination="decode-0", verdict="refused", error="no way")
    status = a_status()
    both = msgspec.structs.replace(status.requests, kv_paths=(good, bad))
    lines = to_text(msgspec.structs.replace(status, requests=both)).splitlines()
    assert lines[-3].split() == [
        *("prefill-0", "decode-0", "cuda_ipc", "12", "us", "100.0", "200.0", "300.0", "good"),
    ]
    assert lines[-2].split() == ["prefill-1", "decode-0", *"-----", "REFUSED"]
    assert lines[-1] == "prefill-1 to decode-0: no way"


def test_json_is_printed_when_asked_for(daemon, run):
    daemon.answers = [a_status()]
    result = run("status", "--json", "--socket", daemon.socket)
    assert json.loads(result.output) == json.loads(to_json(a_status()))


def test_a_node_without_a_dispatcher_still_has_a_status():
    assert "TTFT" not in to_text(a_status(requests=None))
    assert json.loads(to_json(a_status(requests=None)))["requests"] is None


def test_columns_are_as_wide_as_their_widest_cell():
    assert table(("A", "B"), [("long", "x"), ("s", "yy")]) == ["A     B", "long  x", "s     yy"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_time_spans_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 42, "12.0 TiB")],
)
def test_sizes_read_well(num_bytes, text):
    assert size(num_bytes) == text


def test_a_latency_nobody_saw_is_said_so():
    assert quantiles(Quantiles()) == "none in the last 60 s"


def test_the_vllm_of_a_node_without_a_ready_engine_is_left_out():
    assert to_text(a_status()).splitlines()[1] == "nodeserve 0.1.0, vLLM 0.32.0, model /models/tiny"
    starting = to_text(a_status(vllm_version=None)).splitlines()[1]
    assert starting == "nodeserve 0.1.0, model /models/tiny"


def test_who_still_runs_another_release_is_said_with_what_to_do(daemon, run):
    old = msgspec.structs.replace(a_status().processes[0], version="0.0.9")
    daemon.answers = [a_status(processes=(old, a_status().processes[1]))]
    said = run("status", "--socket", daemon.socket).output
    assert "decode-0: runs nodeserve 0.0.9 until it restarts: `nodeserve restart decode-0`" in said
    assert "prefill-0: runs" not in said


def test_tiers_are_a_line_each_and_so_is_who_may_not_use_them():
    host = KvTierLoad(name="host", capacity_bytes=2 << 30, used_bytes=1 << 30, hits=3, misses=1)
    disk = KvTierLoad(name="disk", capacity_bytes=4 << 30, failure="no space left")
    account = KvTierStatus(tiers=(host, disk), refused_engines={9: "another model"})
    lines = to_text(a_status(kv=account)).splitlines()
    assert "KV host   1.0 GiB of 2.0 GiB, 75% of 4 blocks found, 0 evicted" in lines
    off = "switched off: no space left"
    assert f"KV disk   0 B of 4.0 GiB, nothing asked for, 0 evicted, {off}" in lines
    assert lines[-1] == "generation 9 uses no tier: another model"
    busy = msgspec.structs.replace(host, read_bytes=3 << 30, read_gbps=12.34, written_bytes=1 << 20)
    (line,) = tiers(KvTierStatus(tiers=(busy,)))
    assert "75% of 4 blocks found, 3.0 GiB at 12.3 GB/s read, 1.0 MiB written, 0 evicted" in line
    assert not any(line.startswith("KV host") for line in to_text(a_status()).splitlines())
