"""The routes for dead letters: see what failed, and replay it after the fix. Admins see their own tenant's."""

from contextlib import suppress
from typing import Any

from flask import Response
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError

from storage.dead_letter import Filter
from storage.job import PRIORITIES, Job
from webapp.auth import caller
from webapp.document import problems, with_headers
from webapp.problem import Problem
from webapp.schema import DeadLetterList, DeadLetterQuery, DeadLetterView, JobPath, ReplayBody, ReplayView
from webapp.service import services
from webapp.view import iso, json_response

dead_letters = APIBlueprint("dead_letters", __name__, url_prefix="/api/v1", abp_tags=[Tag(name="dead letters")])
ERRORS = (404, 422, 500, 503)
AWAY = "Dead letters are kept in Redis, which is away."


@dead_letters.get(
    "/dead-letters",
    summary="List dead letters",
    responses={200: with_headers(DeadLetterList), **problems(422, 500, 503)},
)
def list_dead_letters(query: DeadLetterQuery) -> Response:
    """Jobs that ended without an answer through no fault of their callers, newest first; never their texts."""
    try:
        found = services().dead_letters.find(_filter(query), query.limit)
    except RedisError:
        raise Problem("redis_unavailable", AWAY, retry_after=1) from None
    return json_response({"dead_letters": [_view(job) for job in found]})


@dead_letters.get(
    "/dead-letters/<string:id>",
    summary="Read a dead letter",
    responses={200: with_headers(DeadLetterView), **problems(*ERRORS)},
)
def get_dead_letter(path: JobPath) -> Response:
    """One dead letter, with its reason and attempts."""
    try:
        return json_response(_view(_visible(path.id)))
    except RedisError:
        raise Problem("redis_unavailable", AWAY, retry_after=1) from None


@dead_letters.post(
    "/dead-letters/<string:id>/replay",
    summary="Replay a dead letter",
    responses={202: with_headers(ReplayView), **problems(*ERRORS)},
)
def replay_dead_letter(path: JobPath) -> Response:
    """Queue it again, with JOB_DEADLINE_SECONDS to end; whoever polls the job sees what becomes of it."""
    try:
        job = _visible(path.id)
        if not _replay(job):
            raise _unknown()
    except RedisError:
        raise Problem("redis_unavailable", AWAY, retry_after=1) from None
    return json_response({"replayed": [job.id]}, 202)


@dead_letters.post(
    "/replays",
    summary="Replay dead letters by filter",
    responses={202: with_headers(ReplayView), **problems(400, 413, 415, 422, 500, 503)},
)
def replay_dead_letters(body: ReplayBody) -> Response:
    """Queue all that fit again, up to `limit`, the newest first."""
    try:
        found = services().dead_letters.find(_filter(body), body.limit)
        return json_response({"replayed": [job.id for job in found if _replay(job)]}, 202)
    except RedisError:
        raise Problem("redis_unavailable", AWAY, retry_after=1) from None


@dead_letters.delete(
    "/dead-letters/<string:id>",
    summary="Drop a dead letter",
    responses={204: {"description": "It is no dead letter any more; its job can be read until its time is up"}}
    | problems(*ERRORS),
)
def drop_dead_letter(path: JobPath) -> Response:
    """Take it off the list, so that it is never replayed."""
    try:
        if not services().dead_letters.drop(_visible(path.id)):
            raise _unknown()
    except RedisError:
        raise Problem("redis_unavailable", AWAY, retry_after=1) from None
    return Response(status=204)


def _visible(job_id: str) -> Job:
    job = services().dead_letters.get(job_id, caller().visible_tenant)
    if job is None:
        raise _unknown()
    return job


def _unknown() -> Problem:
    return Problem("dead_letter_unknown", "No dead letter has this id.")


def _filter(asked: DeadLetterQuery) -> Filter:
    """Of the caller's tenant; an operator may name any, or none for all."""
    own = caller().visible_tenant
    return Filter(own if own is not None else asked.tenant, asked.tier, asked.code, asked.before)


def _replay(job: Job) -> bool:
    parts = services()
    replayed = parts.ledger.replay(job.id, int(parts.settings.job_deadline_seconds * 1000))
    if replayed is None:
        return False
    with suppress(RedisError):  # then the reaper rings for it
        parts.dispatcher.ring(job.id, *replayed, run=job.replays + 1)
    return True


def _view(job: Job) -> dict[str, Any]:
    error = job.error or {}
    names = {value: name for name, value in PRIORITIES.items()}
    return {
        "id": job.id,
        "tenant": job.tenant,
        "tier": job.tier,
        "priority": names[job.priority],
        "status": job.status,
        "code": error.get("code"),
        "attempts": [{name: value for name, value in tried.items() if name != "said"} for tried in job.attempts],
        "replays": job.replays,
        "created_at": iso(job.created_at),
        "ended_at": iso(job.ended_at) if job.ended_at else None,
        "ended_at_ms": job.ended_at,
    }
