"""Leave to call a lane, shared by all workers: limits in flight and a minute, pauses and breakers, kept in Redis."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redis import RedisError
from redis.commands.core import Script

from routing.lane import CallReport, Grant, Lane, RateLimits, Wait
from routing.query import Target
from storage.connection import RedisClient, load_script
from storage.lane_state import LaneState, flights_key, gone_key, keys_of, read_states
from storage.name import USAGE

TICKET_LIFE_MS = 30_000
GONE_CACHE_S = 2.0
AWAY_S = 1.0  # after Redis failed us we do not ask it for so long: each call would pay its time-out several times
_SHARED = ("lane", "breaker", "quota", "rate")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What the operator knows or bounds. `requests_per_minute`: by provider, for one key; learned where missing."""

    requests_per_minute: Mapping[str, int] = field(default_factory=dict)
    max_in_flight: int = 256
    breaker_failures: int = 5
    breaker_open_ms: int = 15_000
    max_unrecorded_events: int = 1_000_000


class Admission:
    """Grants calls, takes their tickets back, and learns from how they ended. `now_ms` replaces Redis's clock in tests.

    Nothing raises when Redis is away: calls are granted then, and what they teach is lost.
    """

    def __init__(
        self, client: RedisClient, limits: AdmissionLimits, *, now_ms: Callable[[], int] | None = None
    ) -> None:
        self._client = client
        self._limits = limits
        self._now_ms = now_ms
        self._admit = load_script(client, "admit", *_SHARED)
        self._settle = load_script(client, "settle", *_SHARED)
        self._beat = load_script(client, "beat")
        self._held: dict[str, str] = {}  # this process's tickets in flight -> their lane's flights
        self._gone: dict[Target, tuple[bool, float]] = {}
        self._away_until = 0.0

    def admit(self, lanes: Sequence[Lane], tokens: int) -> Grant | Wait:
        """The first of `lanes` that may be called now, or when to ask again.

        `tokens`: of the prompt and the longest answer, as estimated.
        """
        if not lanes:
            return Wait(1.0, "broken")
        keys = [key for lane in lanes for key in keys_of(lane)]
        rates = [self._limits.requests_per_minute.get(lane.target.provider, "") for lane in lanes]
        args = [self._clock(), uuid4().hex, max(0, tokens), TICKET_LIFE_MS, self._limits.max_in_flight, *rates]
        reply = self._run(self._admit, keys, args)
        if reply is None:
            return Grant(lanes[0], "")
        number, value, last = reply
        if not number:
            return Wait(value / 1000, last.decode())
        lane, ticket = lanes[number - 1], value.decode()
        self._held[ticket] = flights_key(lane)
        return Grant(lane, ticket, is_probe=bool(last))

    def settle(self, grant: Grant, report: CallReport) -> None:
        """Give the ticket back and let all workers learn how the call ended."""
        self._held.pop(grant.ticket, None)
        lane, limits = grant.lane, self._limits
        if report.outcome == "model_gone":
            self._gone[lane.target] = (True, time.monotonic())
        args = [
            self._clock(),
            grant.ticket,
            report.outcome,
            report.latency_ms,
            _ms(report.retry_after_s),
            limits.max_in_flight,
            limits.breaker_failures,
            limits.breaker_open_ms,
            limits.max_unrecorded_events,
            str(lane.target),
            lane.key_id,
            *_said(report.limits or RateLimits()),
        ]
        self._run(self._settle, [*keys_of(lane), USAGE], args)

    def beat(self) -> None:
        """Renew this process's tickets in flight; to be called every few seconds, or they run out after 30 s."""
        held = list(self._held.items())
        if held:
            tickets = [ticket for ticket, _ in held]
            self._run(self._beat, [flights for _, flights in held], [self._clock(), TICKET_LIFE_MS, *tickets])

    def gone(self, targets: Sequence[Target]) -> frozenset[Target]:
        """Those of `targets` that a provider lately said it no longer has; up to 2 s old."""
        now = time.monotonic()
        unsure = [t for t in targets if t not in self._gone or now - self._gone[t][1] > GONE_CACHE_S]
        if unsure:
            marks = self._try(lambda: self._client.mget([gone_key(target) for target in unsure]))
            for target, mark in zip(unsure, marks or [None] * len(unsure), strict=True):
                self._gone[target] = (mark is not None, now)
        return frozenset(target for target in targets if self._gone[target][0])

    def states(self, lanes: Sequence[Lane]) -> Mapping[Lane, LaneState]:
        """How each lane stands; nothing where Redis is away."""
        now = self._now_ms() if self._now_ms else None
        return self._try(lambda: read_states(self._client, lanes, self._limits.max_in_flight, now)) or {}

    def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._try(lambda: script(keys=keys, args=args))

    def _try(self, ask: Callable[[], Any]) -> Any:
        """Redis's reply, or None where it is away."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return ask()
        except RedisError as error:
            self._away_until = time.monotonic() + AWAY_S
            log.warning("admission.unavailable", extra={"event": "admission.unavailable", "error": repr(error)})
            return None

    def _clock(self) -> int | str:
        return self._now_ms() if self._now_ms else ""


def _ms(seconds: float | None) -> float | str:
    return "" if seconds is None or not math.isfinite(seconds) else max(0.0, seconds * 1000)


def _said(limits: RateLimits) -> list[float | str]:
    """As settle.lua wants it; a number that is none counts as unsaid."""
    requests = (limits.requests_limit, limits.requests_remaining)
    tokens = (limits.tokens_limit, limits.tokens_remaining)
    counts = ["" if n is None or not math.isfinite(n) else n for n in (*requests, *tokens)]
    return [*counts[:2], _ms(limits.requests_reset_s), *counts[2:], _ms(limits.tokens_reset_s)]
