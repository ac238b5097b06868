"""Errors carry what their readers act on."""

from nodeserve.errors import DeviceError, PeerError


def test_a_device_error_carries_the_drivers_function_and_code():
    error = DeviceError("refused", function="cuInit", code=100)
    assert (str(error), error.function, error.code) == ("refused", "cuInit", 100)
    assert error.exit_code == PeerError.exit_code
    assert DeviceError("no driver").code == 0
