"""The health of each part, asked for by GET /health; every question gives up by itself."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from providers import PROVIDERS
from routing.catalogue import load_catalogue
from routing.tier import TIER_NAMES
from storage.database import ping
from storage.lane_state import LaneState
from tasks.target import lanes_of, report_targets
from webapp.service import Services

log = logging.getLogger(__name__)

OK, DEGRADED, DOWN, OFF = "ok", "degraded", "down", "off"


class Checkup:
    """One check at a time in a process: who comes meanwhile waits for the next one, and all of them share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun_at, self._found = 0.0, dict[str, Any]()

    def run(self, parts: Services) -> dict[str, Any]:
        came_at = time.monotonic()
        with self._lock:
            if self._begun_at < came_at:
                self._begun_at = time.monotonic()
                self._found = check_health(parts)
            return self._found


def check_health(parts: Services) -> dict[str, Any]:
    """Status of the whole and of each part. `down` means that some queries cannot be answered at all."""
    redis = _ask(parts.ledger.client.ping, "the broker, the job ledger and the usage stream")
    providers = _providers(parts)
    checks = {
        "redis": redis,
        "cache": _ask(parts.cache.ping, "cached answers") if parts.cache else redis,
        "database": _ask(lambda: ping(parts.engine), "analytics; events wait in Redis meanwhile"),
        **_recording(parts),
        "providers": providers,
        "workers": _workers(parts),
    }
    return {"status": _overall(checks), "checked_at": datetime.now(UTC).isoformat(), "parts": checks}


def _overall(checks: dict[str, dict[str, Any]]) -> str:
    # Without Redis the web answers inline and workers do not matter; without a provider nothing is answered.
    redis_down = checks["redis"]["status"] == DOWN
    if checks["providers"]["status"] == DOWN or (checks["workers"]["status"] == DOWN and not redis_down):
        return DOWN
    fine = all(check["status"] in (OK, OFF) for check in checks.values())
    return OK if fine else DEGRADED


def _ask(question: Callable[[], object], serves: str) -> dict[str, Any]:
    try:
        question()
    except (RedisError, SQLAlchemyError) as error:
        return {"status": DOWN, "error": type(error).__name__, "serves": serves}
    return {"status": OK}


def _recording(parts: Services) -> dict[str, dict[str, Any]]:
    """What the recorder says of itself and of Kafka."""
    try:
        said = parts.presence.recorder()
    except RedisError:
        said = None
    configured = bool(parts.settings.kafka_bootstrap_servers)
    if said is None:
        silent = {"status": DOWN, "error": "the recorder is silent: start it, or look at its log"}
        return {"recorder": silent, "kafka": {"status": "unknown" if configured else OFF}}
    kafka = OFF if not configured else OK if said["kafka"] in (OK, "standby") else DOWN
    status = OK if said["database"] in (OK, "starting") else DEGRADED
    return {"recorder": {"status": status, **said}, "kafka": {"status": kafka}}


def _providers(parts: Services) -> dict[str, Any]:
    reports = report_targets(parts.settings, load_catalogue(), datetime.now(UTC).date())
    configured = {name: parts.settings.is_configured(name) for name in PROVIDERS}
    lanes = parts.admission.states(lanes_of(parts.settings, parts.tiers))
    held = {str(lane): lane_view(state) for lane, state in lanes.items() if state.state != "closed"}
    status = OK if any(configured.values()) else DOWN
    if held:
        status = DEGRADED
    replaced = [r.as_dict() for r in reports if r.is_configured and (r.is_replaced or r.retired_on)]
    return {
        "status": status,
        "configured": [name for name, is_set in configured.items() if is_set],
        "targets": {name: [str(t) for t in tier.targets] for name, tier in parts.tiers.items()},
        "held": held,
        "retired": replaced,
    }


def lane_view(state: LaneState) -> dict[str, Any]:
    """A lane that is held: why, and until when at least."""
    until = datetime.fromtimestamp(state.until / 1000, UTC).isoformat() if state.until else None
    return {"state": state.state, "until": until, "failures": state.failures}


def _workers(parts: Services) -> dict[str, Any]:
    try:
        alive = {tier: len(parts.presence.workers(tier)) for tier in TIER_NAMES}
    except RedisError:
        return {"status": "unknown"}
    missing = [tier for tier, count in alive.items() if not count]
    if missing:
        return {"status": DOWN, "alive": alive, "error": f"no worker serves: {', '.join(missing)}"}
    return {"status": OK, "alive": alive}
