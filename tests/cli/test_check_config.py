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
