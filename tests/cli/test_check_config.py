import pytest

from tests.gateway.weightless_model import write_model


def test_a_file_that_can_be_served_is_said_to_be_so(run, tmp_path):
    model = write_model(tmp_path / "model")
    file = tmp_path / "node.toml"
    file.write_text(
        f'model = "{model}"\nsocket = "/run/x/a.sock"\n[simulate]\nsystem = "4xh100-sxm"\n'
    )
    result = run("check-config", file)
    assert (result.exit_code, result.output) == (
        0,
        f"{file} can be served: 4 workers behind /run/x/a.sock\n",
    )


def test_everything_that_is_wrong_is_said_with_its_key(run, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('model = "/no"\nmodell = 1\n[router]\nmax_queued_requests = 0\n')
    result = run("check-config", file)
    assert result.exit_code == 78
    assert "max_queued_requests is 0" in result.output
    assert "modell" in result.output


@pytest.fixture
def four(tmp_path):
    """A file for a machine with four GPUs, to be completed by a role."""
    model = write_model(tmp_path / "model")
    file = tmp_path / "node.toml"

    def write(role):
        workers = f'[[workers]]\nrole = "{role}"\ngpus = [0, 1, 2, 3]\ntp = 2\n'
        file.write_text(f'model = "{model}"\nsocket = "/run/x/a.sock"\n{workers}')
        return file

    return write


def test_a_file_for_gpus_is_checked_where_there_are_none(run, four):
    file = four("aggregated")
    assert run("check-config", file).exit_code == 78
    result = run("check-config", file, "--gpus", 4)
    assert result.output == f"{file} can be served: 2 workers behind /run/x/a.sock\n"
    result = run("check-config", file, "--gpus", 3)
    assert result.exit_code == 78
    assert "gpus[3] is 3, this node has GPUs 0 to 2" in result.output


def test_prefill_and_decode_workers_on_gpus_can_be_served_and_simulated(run, four):
    file = four("decode")
    assert run("check-config", file, "--gpus", 4).exit_code == 0
    assert run("check-config", file, "--simulate", "4xh100-sxm").exit_code == 0


def test_a_machine_is_real_or_simulated(run, four):
    assert run("check-config", four("decode"), "--gpus", 4, "--simulate", "4xa").exit_code == 2
