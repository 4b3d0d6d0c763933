"""Whether this process is on its way out: waits end early with 202, and readiness says no."""

import threading

_draining = threading.Event()


def start() -> None:
    _draining.set()


def is_draining() -> bool:
    return _draining.is_set()
