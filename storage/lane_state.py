"""What Redis knows of lanes: the names of its keys, and a view of them for people and dashboards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from routing.lane import Lane
from routing.query import Target
from storage.connection import RedisClient
from storage.name import PREFIX

State = Literal["closed", "paused", "open", "half_open", "key_rejected", "model_gone"]


@dataclass(frozen=True, slots=True)
class LaneState:
    """`until`: Unix ms to which the state holds at least, None where it is closed; in the past where a probe is due.

    `limit`: most calls in flight now; `failures` in a row; `requests_per_minute` as throttling taught it, if it did.
    """

    state: State
    until: int | None
    in_flight: int
    limit: int
    failures: int
    requests_per_minute: float | None = None


def lane_key(lane: Lane) -> str:
    return f"{PREFIX}lane:{lane}"


def flights_key(lane: Lane) -> str:
    return f"{PREFIX}flights:{lane}"


def provider_key(lane: Lane) -> str:
    """Of a key at its provider: what all its lanes share."""
    return f"{PREFIX}provider_key:{lane.target.provider}#{lane.key_id}"


def gone_key(target: Target) -> str:
    return f"{PREFIX}gone:{target}"


def keys_of(lane: Lane) -> tuple[str, str, str, str]:
    """In the order that the scripts want them."""
    return lane_key(lane), flights_key(lane), provider_key(lane), gone_key(lane.target)


def read_states(client: RedisClient, lanes: Sequence[Lane], most: int, now: int | None) -> Mapping[Lane, LaneState]:
    """The state of each lane, in one round trip or two; `now` None asks the server's clock. Redis errors pass through.

    `most`: calls in flight that are allowed where nothing was learned.
    """
    if now is None:
        seconds, micros = client.time()
        now = int(seconds * 1000 + micros // 1000)
    with client.pipeline(transaction=False) as pipe:
        for lane in lanes:
            state, flights, key, gone = keys_of(lane)
            pipe.hgetall(state).zcount(flights, f"({now}", "+inf").hgetall(key).get(gone)
        found = pipe.execute()
    return {lane: _state(found[4 * n : 4 * n + 4], most, now) for n, lane in enumerate(lanes)}


def _state(found: Sequence[Any], most: int, now: int) -> LaneState:
    lane, in_flight, key, gone = found
    rate = lane.get(b"rate")
    state, until = _hold(lane, key, gone, now)
    return LaneState(
        state,
        until,
        in_flight,
        limit=min(most, int(float(lane.get(b"limit", most)))),
        failures=int(lane.get(b"failures", 0)),
        requests_per_minute=float(rate) * 60_000 if rate else None,
    )


def _hold(
    lane: Mapping[bytes, bytes], key: Mapping[bytes, bytes], gone: bytes | None, now: int
) -> tuple[State, int | None]:
    """The worst of what holds a lane back."""
    if gone and int(gone) > now:
        return "model_gone", int(gone)
    if b"open_until" in key:
        return "key_rejected", int(key[b"open_until"])
    if b"open_until" in lane:
        until = int(lane[b"open_until"])
        return "open" if until > now else "half_open", until
    paused_until = int(lane.get(b"paused_until", 0))
    return ("paused", paused_until) if paused_until > now else ("closed", None)
