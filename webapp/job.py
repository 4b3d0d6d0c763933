"""The routes of jobs: poll, follow, cancel."""

from flask import Response, request
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError

from storage.job import Job
from tasks.ending import facts_of
from webapp.auth import caller
from webapp.document import problems, with_headers
from webapp.problem import Problem
from webapp.schema import JobPath, JobView
from webapp.service import services
from webapp.stream import job_stream
from webapp.view import job_body, json_response, poll_after
from webapp.waiter import NoSlot

EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "description": "The job's status"},
        "data": {"type": "string", "description": "The job, as JSON"},
    },
}
NOT_KNOWN = {"score": 0, "words": 0}  # of a job that was given up before: nothing is recorded of it again

jobs = APIBlueprint("jobs", __name__, url_prefix="/api/v1", abp_tags=[Tag(name="jobs")])


@jobs.get(
    "/jobs/<string:id>",
    summary="Poll a job",
    responses={200: with_headers(JobView), 202: with_headers(JobView, "Retry-After"), **problems(404, 422, 500, 503)},
)
def get_job(path: JobPath) -> Response:
    """200 when the job has ended, 202 with Retry-After while it is open. Ended jobs are kept for JOB_TTL_SECONDS."""
    try:
        return _job_response(visible_job(path.id))
    except RedisError:
        raise _jobs_away() from None


@jobs.post(
    "/jobs/<string:id>/cancel",
    summary="Cancel a job",
    responses={
        200: with_headers(JobView),
        202: with_headers(JobView, "Retry-After"),
        **problems(404, 409, 422, 500, 503),
    },
)
def cancel_job(path: JobPath) -> Response:
    """200 when the job is cancelled, 202 while its call is being aborted, 409 when it had ended before.

    Others that wait for the same answer still get it.
    """
    parts = services()
    try:
        job = visible_job(path.id)
        routing = job.payload.get("routing") or NOT_KNOWN
        said = parts.ledger.cancel(job, facts_of(job.tier, routing, "cancelled"))
        if said == "missing":
            raise _job_unknown()
        if said not in ("cancelled", "cancelling"):
            raise Problem("job_ended", f"The job has ended before: {said}.")
        return _job_response(visible_job(path.id))
    except RedisError:
        raise _jobs_away() from None


@jobs.get(
    "/jobs/<string:id>/events",
    summary="Follow a job",
    responses={
        200: {
            "description": "Server-sent events: one for each change, named by the status, with the job as its data",
            "content": {"text/event-stream": {"schema": EVENT}},
        },
        **problems(404, 422, 500, 503),
    },
)
def follow_job(path: JobPath) -> Response:
    """The job now and whenever it changes, until it has ended. `Last-Event-ID` says what the client has seen."""
    try:
        return job_stream(visible_job(path.id), request.headers.get("Last-Event-ID", ""), services())
    except NoSlot:
        raise Problem(
            "overloaded", "As many streams are open here as may be; poll the job instead.", retry_after=1
        ) from None
    except RedisError:
        raise _jobs_away() from None


def visible_job(job_id: str) -> Job:
    """The job, where it exists for this caller. Redis errors pass through."""
    job = services().ledger.job(job_id)
    if job is None or not caller().may_see(job.tenant):
        raise _job_unknown()
    return job


def _job_unknown() -> Problem:
    return Problem("job_unknown", "No job has this id; ended jobs are forgotten after a while.")


def _jobs_away() -> Problem:
    return Problem("redis_unavailable", "Jobs live in Redis, which is away; the job goes on.", retry_after=1)


def _job_response(job: Job) -> Response:
    body = job_body(job, services())
    if not job.is_open:
        return json_response(body)
    return json_response(body, 202, {"Retry-After": poll_after(body)})
