"""A job's life as server-sent events: what changes, when it changes, until it has ended."""

import time
from collections.abc import Iterator

import orjson
from flask import Response
from redis import RedisError

from storage.job import Job
from webapp.service import Services
from webapp.view import job_body
from webapp.waiter import Watch

HEARTBEAT_S = 10.0  # comments that keep proxies from closing a quiet stream
LONGEST_S = 900.0  # then the client comes back with Last-Event-ID, as it would after a cut, and shows its key again


def job_stream(job: Job, last_id: str, parts: Services) -> Response:
    """Streams the job from now on, but for the state that the client saw last. Raises `webapp.waiter.NoSlot`."""
    longest_s = parts.settings.auth_cache_seconds if parts.settings.requires_key else LONGEST_S
    watch = parts.waiter.follow(job.id, longest_s, job.leader)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = Response(_events(watch, last_id, parts), mimetype="text/event-stream", headers=headers)
    response.call_on_close(watch.close)
    return response


def _events(watch: Watch, told: str, parts: Services) -> Iterator[bytes]:
    quiet_since = time.monotonic()
    yield b"retry: 1000\n\n"
    try:
        for job in watch:
            body = job_body(job, parts)
            state = f"{job.status}-{body['queue_position'] or 0}-{len(job.attempts)}-{job.replays}"
            if state != told:
                told, quiet_since = state, time.monotonic()
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (state.encode(), job.status.encode(), orjson.dumps(body))
            elif time.monotonic() - quiet_since >= HEARTBEAT_S:
                quiet_since = time.monotonic()
                yield b": still %b\n\n" % job.status.encode()
    except RedisError:
        return  # the client comes back by itself, and finds the job when Redis does
