import os


def test_a_child_is_ours_in_its_own_session_with_its_own_settings(run_with_nursery):
    async def body(nursery):
        reader, writer = os.pipe()
        cpu = min(os.sched_getaffinity(0))
        await nursery.fork(
            "say_where_i_am",
            spec=b"spec",
            fds=[writer],
            environment={"GREETING": "hello"},
            cpus=(cpu,),
        )
        _, ended = await nursery.ending()
        os.close(writer)
        assert os.read(reader, 1000).decode() == f"{os.getpid()} True hello [{cpu}] spec"
        os.close(reader)
        assert ended.code == 0
        assert nursery.runtime.log_tail("child") == ["to the log"]

    run_with_nursery(body)


def test_a_deliberate_error_is_the_last_line_of_the_log_and_the_exit_code(run_with_nursery):
    async def body(nursery):
        await nursery.fork("refuse")
        _, ended = await nursery.ending()
        assert ended.code == 78
        assert nursery.runtime.log_tail("child")[-1].startswith("error: model /x: no such")

    run_with_nursery(body)


def test_a_crash_leaves_its_traceback_and_never_returns_to_the_fork_server(run_with_nursery):
    async def body(nursery):
        await nursery.fork("crash")
        _, ended = await nursery.ending()
        assert ended.code == 70
        assert nursery.runtime.log_tail("child")[-2:] == [
            "RuntimeError: boom",
            "error: RuntimeError: boom",
        ]
        await nursery.fork("leave", spec=b"3")
        assert (await nursery.ending())[1].code == 3

    run_with_nursery(body)
