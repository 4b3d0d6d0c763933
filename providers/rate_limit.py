"""Reads what a reply's headers say of a lane's allowance; which header says what is each provider's own table."""

from collections.abc import Mapping

from providers.retry_after import parse_duration, parse_number
from routing.lane import RateLimits

LONGEST_RESET_S = 7 * 86_400.0  # more is a point in time, not a duration

Headers = Mapping[str, tuple[str, ...]]
"""The names of headers for each field of RateLimits, the most telling first."""

REQUESTS_AND_TOKENS: Headers = {
    f"{what}_{field}": (f"x-ratelimit-{said}-{what}",)
    for what in ("requests", "tokens")
    for field, said in (("limit", "limit"), ("remaining", "remaining"), ("reset_s", "reset"))
}
"""OpenAI's names."""


def read_limits(headers: Mapping[str, str], names: Headers) -> RateLimits | None:
    """The limits that are named and make sense; None where none is."""
    found = {field: _first(headers, candidates, field) for field, candidates in names.items()}
    told = {field: value for field, value in found.items() if value is not None}
    return RateLimits(**told) if told else None


def _first(headers: Mapping[str, str], names: tuple[str, ...], field: str) -> float | None:
    read = _reset if field.endswith("_s") else parse_number
    values = (read(headers.get(name, "")) for name in names)
    return next((value for value in values if value is not None), None)


def _reset(text: str) -> float | None:
    seconds = parse_duration(text)
    if seconds is None:
        seconds = parse_number(text)
    return seconds if seconds is not None and seconds <= LONGEST_RESET_S else None
