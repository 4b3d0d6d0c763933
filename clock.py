"""The one place that asks the machine what time it is."""

import time


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000
