"""The id that a request is known by, and the line and the counts that it leaves behind."""

import logging
import re
from typing import Any
from uuid import uuid4

from webapp.caller import Headers
from webapp.meter import Meter

log = logging.getLogger(__name__)

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_QUIET_ROUTES = {"/livez", "/readyz", "/metrics", "/health"}


def request_id_of(headers: Headers) -> str:
    """The id that the caller gave, where it is one, else a new one."""
    given = headers.get("x-request-id") or ""
    return given if _SANE_REQUEST_ID.fullmatch(given) else uuid4().hex


def end_request(meter: Meter, route: str, method: str, status: int, seconds: float, **fields: Any) -> None:
    """Count and log a request that was answered. `fields` are for the log."""
    meter.count_request(route, method, status, seconds)
    level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
    facts = {"route": route, "method": method, "status": status, "ms": round(seconds * 1000, 2), **fields}
    log.log(level, "request.ended", extra=facts)
