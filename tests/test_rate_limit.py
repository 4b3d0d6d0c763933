"""What headers say: how long to wait after a 429, and what is left of a lane's allowance."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from providers import PROVIDERS
from providers.rate_limit import read_limits
from providers.retry_after import parse_duration, retry_after
from routing.lane import RateLimits

GROQ_LIMITS = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-tokens": "17997",
    "x-ratelimit-reset-tokens": "120ms",
}
TOGETHER_LIMITS = {
    "x-ratelimit-limit": "10",
    "x-ratelimit-remaining": "9",
    "x-ratelimit-reset": "1",
    "x-tokenlimit-limit": "3000",
    "x-tokenlimit-remaining": "2900",
}
TOGETHER_DYNAMIC = {
    "x-ratelimit-limit-dynamic": "25.5",
    "x-ratelimit-remaining-dynamic": "24",
    "x-tokenlimit-limit-dynamic": "5000",
    "x-tokenlimit-remaining-dynamic": "garbage",
}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": format_datetime(datetime.fromtimestamp(1060, UTC), usegmt=True)}, 60.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(10, UTC), usegmt=True)}, 0.0),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_the_headers(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after(headers, None, now=1000.0) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "limits", "seconds"),
    [
        ({}, RateLimits(requests_reset_s=179.56, tokens_reset_s=7.66), 7.66),
        ({}, RateLimits(requests_reset_s=179.56), 179.56),
        ({}, RateLimits(requests_limit=3), None),
        ({"retry-after": "9"}, RateLimits(tokens_reset_s=1), 9.0),
    ],
)
def test_the_wait_is_else_the_nearer_reset(headers: Mapping[str, str], limits: RateLimits, seconds: float) -> None:
    assert retry_after(headers, limits, now=1000.0) == seconds


@pytest.mark.parametrize(
    ("name", "headers", "limits"),
    [
        ("groq", GROQ_LIMITS, RateLimits(14400, 14370, 179.56, 18000, 17997, 0.12)),
        ("together", TOGETHER_LIMITS, RateLimits(10, 9, 1, 3000, 2900)),
        ("together", {**TOGETHER_LIMITS, **TOGETHER_DYNAMIC}, RateLimits(25.5, 24, 1, 5000, 2900)),
    ],
)
def test_the_limits_are_read_by_each_providers_table(name: str, headers: dict[str, str], limits: RateLimits) -> None:
    assert read_limits(headers, PROVIDERS[name].limit_headers) == limits


@pytest.mark.parametrize("garbage", ["", "soon", "nan", "inf", "-1", "-5s", "1e999", "9" * 400, "5s later", "\u0665s"])
def test_limits_that_make_no_sense_are_unsaid(garbage: str) -> None:
    for facts in PROVIDERS.values():
        names = [name for names in facts.limit_headers.values() for name in names]
        assert read_limits(dict.fromkeys(names, garbage), facts.limit_headers) is None


def test_a_reset_that_is_a_point_in_time_is_no_duration() -> None:
    names = PROVIDERS["together"].limit_headers

    assert read_limits({"x-ratelimit-reset": "1790000000"}, names) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120ms", 0.12), ("1h2m3s", 3723.0), ("1d", 86_400.0), ("5", None), ("", None), ("5s later", None)],
)
def test_durations_are_read_in_groqs_notation(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds
