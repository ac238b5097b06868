import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nodeserve.config.paths import new_engine_store
from nodeserve.errors import ConfigError
from nodeserve.ids import Generation
from nodeserve.supervisor.runtime import RuntimeDirectory, kv_events_name


def test_the_directory_is_made_for_us_alone(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "a" / "api.sock.d")
    assert runtime.path.stat().st_mode & 0o777 == 0o700
    runtime.close(keep_logs=False)
    assert not runtime.path.exists()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    with pytest.raises(ConfigError, match=f"already running, pid {os.getpid()}"):
        RuntimeDirectory(tmp_path / "d")
    runtime.close(keep_logs=False)


def test_what_a_dead_daemon_left_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path;"
        "from nodeserve.supervisor.runtime import RuntimeDirectory;"
        "r = RuntimeDirectory(Path(sys.argv[1])); (r.path / 'control.sock').touch(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "d")], check=False)
    assert (tmp_path / "d" / "control.sock").exists()
    runtime = RuntimeDirectory(tmp_path / "d")
    assert not (tmp_path / "d" / "control.sock").exists()
    runtime.close(keep_logs=False)


def test_a_directory_that_others_can_enter_is_refused(tmp_path):
    (tmp_path / "d").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="0755"):
        RuntimeDirectory(tmp_path / "d")


def test_after_a_failure_the_logs_stay_and_the_sockets_go(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    runtime.log_path("decode-0").write_text("why\n")
    (runtime.path / "x.sock").touch()
    runtime.close(keep_logs=True)
    assert [path.name for path in runtime.path.rglob("*") if path.is_file()] == ["decode-0.log"]


def test_what_a_killed_engine_leaves_goes_with_its_incarnation(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    stores = [new_engine_store(runtime.path, generation) for generation in (3, 4, 33)]
    events = runtime.path / f"{kv_events_name(Generation(3))}.sock"
    for path in (*stores, events):
        path.touch()
    runtime.forget(Generation(3))
    assert [path.exists() for path in (*stores, events)] == [False, True, True, False]
    (runtime.log_dir / "x.log").touch()
    runtime.close(keep_logs=True)
    assert not any(store.exists() for store in stores)


def test_memory_of_ranks_that_died_while_they_loaded_goes_with_their_incarnation(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    stores = [new_engine_store(runtime.path, generation) for generation in (3, 4)]
    memory = [Path(f"/dev/shm/{store.name}-tp:0-[0-1]-cpushm_0") for store in stores]
    for path in (*stores, *memory):
        path.touch()
    runtime.forget(Generation(3))
    assert [path.exists() for path in memory] == [False, True]
    runtime.close(keep_logs=False)
    assert not memory[1].exists()


def test_a_failure_before_anything_was_logged_leaves_nothing(tmp_path):
    RuntimeDirectory(tmp_path / "d").close(keep_logs=True)
    assert not (tmp_path / "d").exists()


def test_a_tail_holds_nothing_of_earlier_incarnations(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    log = runtime.log_path("decode-0")
    log.write_text("of the first\n")
    start = log.stat().st_size
    with log.open("a") as more:
        more.write("of the second\n\nits last\n")
    assert runtime.log_tail("decode-0", start) == ["of the second", "its last"]
    assert runtime.log_tail("decode-0", start, num_lines=1) == ["its last"]
    runtime.close(keep_logs=False)


def test_a_new_daemon_starts_with_empty_logs(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    runtime.log_path("decode-0").write_text("old\n")
    runtime.close(keep_logs=True)
    runtime = RuntimeDirectory(tmp_path / "d")
    assert runtime.log_tail("decode-0") == []
    runtime.close(keep_logs=False)


def test_the_tail_is_the_last_lines_that_say_something(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    runtime.log_path("w").write_bytes(b"1\n\n2\n\xff3\n\n")
    assert runtime.log_tail("w", 2) == ["2", "\ufffd3"]
    runtime.close(keep_logs=False)


def test_the_tail_is_without_colours(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    runtime.log_path("w").write_text(
        "\x1b[0;36m(gateway)\x1b[0m \x1b[31mERROR\x1b[0m no tokenizer\n"
    )
    assert runtime.log_tail("w") == ["(gateway) ERROR no tokenizer"]
    runtime.close(keep_logs=False)


def test_a_directory_that_is_taken_over_keeps_what_is_in_it_and_its_lock(tmp_path):
    first = RuntimeDirectory(tmp_path / "d")
    first.log_path("decode-0").write_text("before\n")
    (first.path / "control.sock").touch()
    second = RuntimeDirectory.taken_over(first.path, first.lock_fd)
    assert second.log_path("decode-0").read_text() == "before\n"
    assert (second.path / "control.sock").exists()
    with pytest.raises(ConfigError, match="already running"):
        RuntimeDirectory(tmp_path / "d")
    second.close(keep_logs=False)


def test_who_can_open_no_file_forgets_without_a_word(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        runtime.forget(Generation(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    runtime.close(keep_logs=False)
