"""The routes for operators: health, liveness, readiness and Prometheus."""

from collections.abc import Iterator
from typing import Any

from flask import Response
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError

from routing.tier import TIER_NAMES
from tasks.target import lanes_of
from webapp.document import problems
from webapp.draining import is_draining
from webapp.health import DOWN, Checkup
from webapp.service import Services, services
from webapp.view import json_response

operation = APIBlueprint("operation", __name__, abp_tags=[Tag(name="operation")])

_checkup = Checkup()
_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}
_STATES: dict[int, Any] = {
    status: {"description": text, "content": {"application/json": {"schema": _STATUS}}}
    for status, text in ((200, "Fine, or degraded"), (503, "Some queries cannot be answered"))
}


@operation.get("/health", summary="Health of every part", responses={**_STATES, **problems(500)})
def health() -> Response:
    """Each part by name, and what it means when one is down."""
    found = _checkup.run(services())
    return json_response(found, 503 if found["status"] == DOWN else 200)


@operation.get("/livez", summary="Liveness", responses={200: _STATES[200]})
def livez() -> Response:
    """200 while the process can answer at all."""
    return json_response({"status": "ok"})


@operation.get("/readyz", summary="Readiness", responses=_STATES)
def readyz() -> Response:
    """503 while the process is stopping. Redis or the database being away is no reason: queries are still answered."""
    return json_response({"status": "stopping"}, 503) if is_draining() else json_response({"status": "ok"})


@operation.get(
    "/metrics",
    summary="Prometheus",
    responses={200: {"description": "Text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def prometheus() -> Response:
    """`aqr_http_*` are this machine's; `aqr_fleet_*` are the same on every replica: take max(), not sum()."""
    parts = services()
    return Response(parts.meter.expose(_gauges(parts)), mimetype="text/plain", content_type="text/plain; version=0.0.4")


def _gauges(parts: Services) -> Iterator[tuple[str, str, dict[str, str], float]]:
    try:
        for tier, depth in parts.lines.depths(TIER_NAMES).items():
            yield "aqr_fleet_jobs_queued", "Jobs waiting for a worker", {"tier": tier}, depth["queued"]
            yield "aqr_fleet_jobs_running", "Jobs held by a worker", {"tier": tier}, depth["running"]
            alive = len(parts.presence.workers(tier))
            yield "aqr_fleet_workers", "Worker processes alive", {"tier": tier}, alive
        said, unrecorded = parts.presence.recorder(), parts.ledger.unrecorded_hits()
        letters = parts.dead_letters.count()
    except RedisError:
        yield "aqr_fleet_redis_up", "Whether Redis answers", {}, 0
        return
    yield "aqr_fleet_redis_up", "Whether Redis answers", {}, 1
    yield from _lane_gauges(parts)
    yield "aqr_fleet_dead_letters", "Dead letters that may be replayed", {}, letters
    yield "aqr_fleet_unrecorded_hits", "Hits answered but not recorded", {}, unrecorded
    if said:
        yield "aqr_fleet_events_waiting", "Events not yet in SQL", {}, said["waiting_events"]


def _lane_gauges(parts: Services) -> Iterator[tuple[str, str, dict[str, str], float]]:
    for lane, state in parts.admission.states(lanes_of(parts.settings, parts.tiers)).items():
        labels = {"provider": lane.target.provider, "model": lane.target.model, "key_id": lane.key_id}
        yield "aqr_fleet_lane_in_flight", "Calls in flight", labels, state.in_flight
        yield "aqr_fleet_lane_limit", "Calls in flight that are allowed now", labels, state.limit
        yield "aqr_fleet_lane_held", "1 while paused, broken or gone", labels, state.state != "closed"
