"""Copies bytes between GPUs, and between a GPU and host memory, on a stream of their own."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from nodeserve.errors import DeviceError
from nodeserve.transfer.base import AddressRun, Fence, Pinner


class CopyDevice(Protocol):
    """The GPU that copies; device.cuda_driver.CudaContext is one. Any thread may call."""

    def stream(self) -> int:
        """Return a new stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        ...

    def event(self) -> int:
        """Return a new event."""
        ...

    def destroy_event(self, event: int) -> None:
        """End an event."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Let an event stand behind what a stream was asked for."""
        ...

    def wait_event(self, stream: int, event: int) -> None:
        """Let a stream wait for an event."""
        ...

    def synchronize(self, event: int) -> None:
        """Wait for an event."""
        ...

    def copy_each(self, runs: Sequence[AddressRun], stream: int) -> None:
        """Ask for one copy after another."""
        ...

    def copy_batch(self, runs: Sequence[AddressRun], stream: int) -> None:
        """Ask for many copies at once."""
        ...

    def register_host(self, address: int, num_bytes: int) -> None:
        """Pin host memory."""
        ...

    def unregister_host(self, address: int) -> None:
        """Unpin host memory."""
        ...


Submit = Callable[[Sequence[AddressRun], int], None]
"""Asks a stream for copies."""


class CudaFence:
    """An event behind the work that had been asked for, for one copy; destroyed when dropped.

    A copy that is never made, because what it should have copied is gone, leaves no event behind.
    """

    def __init__(self, device: CopyDevice, event: int) -> None:
        """Own ``event`` of ``device``."""
        self._device = device
        self.event = event

    def __del__(self) -> None:
        """Destroy the event: streams that were told to wait for it still do."""
        with contextlib.suppress(DeviceError):
            self._device.destroy_event(self.event)


class CudaCopier:
    """A transfer.base.Copier on a GPU.

    The thread that calls ``copy`` sleeps until its copies are done. Order is kept on the GPU:
    the side stream waits for the fence, so that the copying thread is awake only once.
    """

    def __init__(
        self,
        device: CopyDevice,
        compute_stream: Callable[[], int],
        *,
        batch: Submit | None = None,
        on_device: Submit | None = None,
    ) -> None:
        """Copy with a new stream of ``device``.

        Args:
            device: The GPU whose memory this process owns.
            compute_stream: Returns the stream that the calling thread computes on.
            batch: How copies between GPUs, or to and from the host, are asked for.
            on_device: The same within one GPU, where copy engines are slow and SMs are not.
        """
        self._device = device
        self._compute_stream = compute_stream
        self._batch = batch or device.copy_batch
        self._on_device = on_device or device.copy_each
        self._stream = device.stream()
        self._done = device.event()
        self._registered: set[int] = set()

    def fence(self) -> CudaFence:
        """Return a point behind all that the calling thread's stream was asked for."""
        fence = CudaFence(self._device, self._device.event())
        self._device.record(fence.event, self._compute_stream())
        return fence

    def follow(self, fence: Fence | None) -> None:
        """Let copies from now on begin behind ``fence``; does not wait itself."""
        if isinstance(fence, CudaFence):
            self._device.wait_event(self._stream, fence.event)

    def copy(self, runs: Sequence[AddressRun], after: Fence | None) -> None:
        """Copy by copy engines: from a peer's GPU, or between this one and host memory."""
        self._run(self._batch, runs, after)

    def copy_on_device(self, runs: Sequence[AddressRun], after: Fence | None) -> None:
        """Copy from memory of this same GPU, whichever process owns it."""
        self._run(self._on_device, runs, after)

    @property
    def pinner(self) -> Pinner:
        """This copier, for all of the process's copies."""
        return self

    def register(self, address: int, num_bytes: int) -> None:
        """Pin host memory; what is not pinned is copied through the driver's own buffers."""
        self._device.register_host(address, num_bytes)
        self._registered.add(address)

    def unregister(self, address: int) -> None:
        """Unpin what ``register`` pinned at ``address``; nothing where it did not, or not any more.

        A device that refuses keeps it until the process ends.
        """
        with contextlib.suppress(KeyError, DeviceError):
            self._registered.remove(address)
            self._device.unregister_host(address)

    def close(self) -> None:
        """Unpin what was pinned and end the stream; a broken device is left as it is."""
        for address in list(self._registered):
            self.unregister(address)
        with contextlib.suppress(DeviceError):
            self._device.destroy_event(self._done)
            self._device.destroy_stream(self._stream)

    def _run(self, submit: Submit, runs: Sequence[AddressRun], after: Fence | None) -> None:
        self.follow(after)
        try:
            submit(runs, self._stream)
        finally:
            # Also after a refusal: copies that were accepted before it may still be writing.
            self._device.record(self._done, self._stream)
            self._device.synchronize(self._done)
