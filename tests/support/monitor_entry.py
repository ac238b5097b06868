"""A monitor as a process: ``python -m tests.support.monitor_entry SPEC KMSG_FD``.

SPEC is a MonitorSpec, msgpack, in hexadecimal digits; KMSG_FD an fd that gives a record of the
kernel's at each read, or ``none``.
"""

import sys

from nodeserve.device.kernel_messages import Kmsg
from nodeserve.monitor.main import serve
from nodeserve.wire.device_report import Finding


class PlainJudge:
    """Finds something wrong in each thing that it is told, and remembers nothing else."""

    def __init__(self):
        self.found = {}

    def take(self, sample, *, now_s):
        pass

    def xid(self, meter, number, *, detail, now_s):
        self._find(meter, f"xid_{number}", detail)

    def recovery_action(self, meter, value, *, now_s):
        if value:
            self._find(meter, f"recovery_{value}", "")

    def lost(self, meter, *, now_s):
        self._find(meter, "gpu_lost", "")

    def hung(self, meter, *, now_s):
        self._find(meter, "driver_hung", "")

    def state(self, meter, signal, *, detail, now_s):
        if detail is not None:
            self._find(meter, signal, detail)

    def clear(self, meter):
        gone = [key for key in self.found if meter in (None, key[0])]
        for key in gone:
            del self.found[key]
        return len(gone)

    def findings(self, *, now_s):
        return tuple(self.found.values())

    def _find(self, meter, signal, detail):
        self.found[meter, signal] = Finding(
            meter=meter,
            signal=signal,
            severity="fatal",
            action="fence",
            detail=detail,
            provenance="test",
            since_unix_s=0.0,
        )


def main():
    """Be a monitor with a plain judge."""
    spec, kmsg = sys.argv[1:]
    log = (lambda *_: None) if kmsg == "none" else (lambda since_s, _: Kmsg(int(kmsg), since_s))
    serve(bytes.fromhex(spec), log, lambda *_: PlainJudge())


if __name__ == "__main__":
    main()
