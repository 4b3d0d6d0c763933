"""Reads from a 429's headers how long to wait, in the three notations that providers use."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from routing.lane import RateLimits

UNIT_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ms|[dhms])", re.ASCII)


def retry_after(headers: Mapping[str, str], limits: RateLimits | None, now: float) -> float | None:
    """Seconds to wait: `retry-after`, else the nearer reset of the limits; None where unsaid.

    The nearer one, because the farther is usually the daily allowance, which is seldom the one used up.
    `now` is Unix time in seconds.
    """
    if said := headers.get("retry-after"):
        seconds = _finite(said)
        return _until_date(said, now) if seconds is None else max(0.0, seconds)
    resets = (limits.requests_reset_s, limits.tokens_reset_s) if limits else ()
    return min((reset for reset in resets if reset is not None), default=None)


def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as `2m59.56s` or `120ms`; None for anything else."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)


def parse_number(text: str) -> float | None:
    """A finite number that is not negative; None for anything else."""
    number = _finite(text)
    return number if number is not None and number >= 0 else None


def _finite(text: str) -> float | None:
    with suppress(ValueError):
        number = float(text)
        if math.isfinite(number):
            return number
    return None


def _until_date(text: str, now: float) -> float | None:
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    return None
