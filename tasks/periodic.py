"""Doing something every few seconds on a thread of its own, until told to stop."""

import logging
import threading
from collections.abc import Callable

from redis import RedisError

log = logging.getLogger(__name__)


class Periodic:
    """Calls `action` at once and then every `period_s` seconds. A server that is `away`, by its error, is said once."""

    def __init__(
        self, name: str, period_s: float, action: Callable[[], None], away: tuple[type[Exception], ...] = (RedisError,)
    ) -> None:
        self._name, self._period_s, self._action, self._away = name, period_s, action, away
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_failing = False

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        self._once()
        while not self._stop.wait(self._period_s):
            self._once()

    def _once(self) -> None:
        try:
            self._action()
        except self._away as error:
            if not self._is_failing:
                log.warning("periodic.waiting", extra={"action": self._name, "error": type(error).__name__})
            self._is_failing = True
        except Exception:  # noqa: BLE001 - the thread must outlive a bug: without it jobs would be lost
            log.exception("periodic.failed", extra={"action": self._name})
        else:
            self._is_failing = False
