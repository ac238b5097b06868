import json
import math
import time
from pathlib import Path

import msgspec
import pytest

from nodeserve.device.simulated_load import SimulatedLoad
from nodeserve.wire.spawn import EngineSpec
from tests.support.engine_front_end import ABORT, ADD, FrontEnd, worker_spec

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 688,
    "vocab_size": 264,
    "max_position_embeddings": 100_000,
}


@pytest.fixture
def start(tmp_path):
    started = []

    def start_front_end(speedup, meters=(), **args):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        engine = EngineSpec(
            model=str(tmp_path),
            served_model_name="m",
            tp=1,
            args=args,
            simulate="1xh100-sxm",
            speedup=speedup,
        )
        spec = worker_spec(tmp_path / "s", "w", 7, engine)
        started.append(FrontEnd(msgspec.structs.replace(spec, meters=meters)))
        return started[-1]

    yield start_front_end
    for front_end in started:
        front_end.close()


@pytest.fixture
def endless(start):
    return start(math.inf)


def test_steps_take_at_least_the_time_that_the_model_says(start):
    front_end = start(1.0)
    asked_s = time.monotonic()
    outcome = front_end.run("a", [1, 2, 3], max_tokens=21)
    # A step that ended late is made up for by the next ones: only the whole time is known.
    assert outcome.came_s[-1] - asked_s >= 20 * 0.0015


def test_the_meters_of_its_gpus_are_told_how_long_it_was_busy(start):
    front_end = start(1.0, meters=("sim-0", "sim-1"))
    asked_s = time.monotonic()
    outcome = front_end.run("a", [1, 2, 3], max_tokens=21)
    took_s = outcome.came_s[-1] - asked_s
    folder = Path(front_end.spec.runtime_dir)
    first, second = (SimulatedLoad(folder, meter).busy_ns for meter in ("sim-0", "sim-1"))
    assert first == second
    assert 20 * 0.0015 <= first / 1e9 <= took_s


def test_an_engine_without_meters_keeps_no_load(start):
    front_end = start(math.inf)
    front_end.run("a", [1, 2, 3], max_tokens=2)
    assert not list(Path(front_end.spec.runtime_dir).glob("*.load"))


def test_speedup_divides_the_time(start):
    front_end = start(1000.0)
    outcome = front_end.run("a", [1, 2, 3], max_tokens=21)
    assert outcome.came_s[-1] - outcome.came_s[0] < 20 * 0.0015


def test_steps_of_one_batch_travel_in_one_message(endless):
    for index in range(10):
        endless.add(f"r{index}", [index + 1, 2, 3], max_tokens=500)
    for index in range(10):
        endless.finished(f"r{index}")
    assert len(endless.stats) < 10 * 500 / 2


def test_engine_does_not_run_far_ahead_of_a_slow_reader_and_sees_the_abort(endless):
    endless.add("a", [1, 2, 3], max_tokens=90_000)
    endless.until(lambda: len(endless.outcomes["a"].tokens) > 0)
    endless.abort("a")
    endless.call("is_sleeping")
    assert 0 < len(endless.outcomes["a"].tokens) < 20_000
    assert endless.outcomes["a"].finish_reason is None
    assert endless.engine.num_requests == 0


def test_turns_are_counted_while_a_reader_holds_the_engine_up(endless):
    endless.add("a", [1, 2, 3], max_tokens=90_000)
    endless.until(lambda: endless.engine.steps > 100)
    assert endless.engine.num_requests == 1


def test_stop_ends_a_held_up_engine(endless):
    endless.add("a", [1, 2, 3], max_tokens=90_000)
    endless.until(lambda: endless.engine.steps > 0)
    endless.engine.stop()
    endless.thread.join(5)
    assert not endless.thread.is_alive()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [ADD],
        [ADD, b"\xc1"],
        [ADD, b"\x90"],
        [ABORT, b"\x01"],
        [b"\x03", b"\x90"],
        [b"\x03", b"\x94\x00\x01\xa1x\x90", b"more"],
        [b"\x99", b"\x01"],
    ],
)
def test_garbage_is_dropped_and_the_engine_serves_on(endless, frames):
    endless.requests.send_multipart([endless.identity, *frames])
    assert len(endless.run("a", [1, 2, 3], max_tokens=2).tokens) == 2


def test_request_that_cannot_be_read_ends_with_an_error(endless):
    endless.outcomes["a"] = endless.new_outcome()
    endless.send(ADD, ["a", "not a prompt"])
    assert endless.finished("a").finish_reason == 3


@pytest.mark.parametrize(
    ("field", "value", "finish_reason"),
    [
        ("prompt_token_ids", None, 3),
        ("prompt_token_ids", [], 3),
        ("sampling_params", None, 3),
        ("abort_immediately", True, 2),
    ],
)
def test_request_that_this_engine_does_not_run_ends_at_once(endless, field, value, finish_reason):
    endless.add("a", [1, 2, 3], request_fields={field: value}, max_tokens=2)
    assert endless.finished("a").finish_reason == finish_reason
    assert endless.engine.num_requests == 0


def test_cached_blocks_are_published_with_consecutive_numbers(endless):
    tried = 0
    while not endless.kv_events.poll(1):  # a subscription takes its time to arrive
        endless.run(f"warm-{tried}", [tried, *range(40)], max_tokens=1)
        tried += 1
        assert tried < 5000
    for index in range(5000, 5003):
        endless.run(f"r{index}", [index, *range(40)], max_tokens=1)
    messages = [endless.next_kv_event()]
    while messages[-1][2][1][0]["token_ids"][0] != 5002:
        messages.append(endless.next_kv_event())
    numbers = [number for _, number, _ in messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert {topic for topic, _, _ in messages} == {b""}
    assert messages[-1][2][1][0]["token_ids"] == [5002, *range(31)]
