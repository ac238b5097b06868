"""Every deliberate exception, one tree, sorted by what the reader must do."""


class NodeserveError(Exception):
    """A deliberate refusal: who, what with numbers, and what to do."""

    exit_code = 1


class ConfigError(NodeserveError):
    """A setting can never work: the operator changes it. Exit code 78 (EX_CONFIG)."""

    exit_code = 78


class RequestError(NodeserveError):
    """A node runs, and cannot do what it was asked: ask for another thing. Code 65 (EX_DATAERR)."""

    exit_code = 65


class CapacityError(NodeserveError):
    """There is no room at present: try later or ask for less. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75


class PeerError(NodeserveError):
    """Another process misbehaved, died or does not answer. Exit code 69 (EX_UNAVAILABLE)."""

    exit_code = 69


class DeadlineError(PeerError):
    """Another process did not answer in time; what it was asked may still be done."""


class DeviceError(PeerError):
    """A GPU's driver refused a call, or the device failed.

    ``function`` and ``code`` are the driver's own; code 0 stands for no call at all.
    """

    def __init__(self, text: str, *, function: str = "", code: int = 0) -> None:
        super().__init__(text)
        self.function = function
        self.code = code


class DeviceLostError(DeviceError):
    """A GPU is not there any more for its driver; nothing but a reset or a restart brings it back.

    The other GPUs of that driver may be as good as ever.
    """


class InvariantError(NodeserveError):
    """nodeserve has a bug: report it. Exit code 70 (EX_SOFTWARE)."""

    exit_code = 70


class InvalidTransitionError(InvariantError):
    """A state machine was handed an event that its phase does not accept; nothing changed."""
