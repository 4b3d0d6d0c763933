"""The hard limits of a fake provider: so many units a window, or so many calls at a time, and what its headers say."""

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class HardLimit:
    """`units` each `window_s` seconds, `cost` a call; or `concurrency` calls at a time. Everything above is a 429.

    `kind`: a `fixed` window that starts anew, a `sliding` one, or a `bucket` that refills steadily. `headers` names
    what x-ratelimit-* speak of. `retry_after`: `exact` seconds with decimals, or `whole` ones as most providers send.
    """

    units: float = math.inf
    window_s: float = 1.0
    cost: float = 1.0
    kind: Literal["fixed", "sliding", "bucket"] = "sliding"
    concurrency: int | None = None
    headers: Literal["", "requests", "tokens"] = ""
    retry_after: Literal["", "exact", "whole"] = ""
    served: int = 0
    throttled: int = 0
    _used: float = 0.0
    _since: float = 0.0
    _taken: deque[float] = field(default_factory=deque)
    _inside: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> tuple[bool, dict[str, str]]:
        """Whether the call is served, and the headers of its reply. One that is served must `leave`."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            is_full = self.concurrency is not None and self._inside >= self.concurrency
            is_served = not is_full and self._used + self.cost <= self.units
            if is_served:
                self._use(now)
            else:
                self.throttled += 1
            return is_served, self._say(now, is_served)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def counts(self) -> dict[str, Any]:
        return {"served": self.served, "throttled": self.throttled}

    def _use(self, now: float) -> None:
        self.served += 1
        self._inside += 1
        self._used += self.cost
        if self.kind == "sliding":
            self._taken.append(now)

    def _forget(self, now: float) -> None:
        if self.kind == "bucket":
            self._used = max(0.0, self._used - (now - self._since) * self.units / self.window_s)
            self._since = now
        elif self.kind == "fixed" and now - self._since >= self.window_s:
            self._used, self._since = 0.0, now - (now % self.window_s)
        while self._taken and now - self._taken[0] >= self.window_s:
            self._taken.popleft()
            self._used -= self.cost

    def _say(self, now: float, is_served: bool) -> dict[str, str]:
        said = {}
        if self.headers:
            said = {
                f"x-ratelimit-limit-{self.headers}": f"{self.units:g}",
                f"x-ratelimit-remaining-{self.headers}": f"{math.floor(self.units - self._used)}",
                f"x-ratelimit-reset-{self.headers}": f"{self._whole_again_in(now):.3f}s",
            }
        if self.retry_after and not is_served:
            wait_s = self._room_in(now)
            said["retry-after"] = f"{wait_s:.3f}" if self.retry_after == "exact" else f"{math.ceil(wait_s)}"
        return said

    def _whole_again_in(self, now: float) -> float:
        if self.kind == "bucket":
            return self._used * self.window_s / self.units
        return max(0.0, (self._taken[-1] if self._taken else self._since) + self.window_s - now)

    def _room_in(self, now: float) -> float:
        if self.kind == "bucket":
            return (self._used + self.cost - self.units) * self.window_s / self.units
        return max(0.0, (self._taken[0] if self._taken else self._since) + self.window_s - now)
