"""Drafts, claims and endings for the tests of the ledger."""

import json
from dataclasses import replace

from redis import Redis

from storage.job import INTERACTIVE, Claim, Draft
from storage.ledger import Ending, Ledger
from storage.name import USAGE

ANSWER = b'{"tier":"simple"}\n{"response":"42"}'
DONE_WELL = Ending(
    status="completed", facts={"tier": "simple"}, attempts=[{"outcome": "ok"}], answer=ANSWER, cache=("f1", 5_000)
)


def draft(job_id: str = "j1", **changes: object) -> Draft:
    """A query of tenant `t`; `key` is its API key's id."""
    key, tenant = str(changes.pop("key", "")), str(changes.pop("tenant", "t"))
    made = Draft(
        id=job_id,
        tenant=tenant,
        tier="simple",
        priority=INTERACTIVE,
        fingerprint="f1",
        coalesce=True,
        deadline_ms=60_000,
        payload=json.dumps({"tenant": tenant, "query": {"text": "q"}, "routing": {}}).encode(),
        caller=json.dumps({"id": job_id, "tenant": tenant, "key": key}).encode(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def claimed(ledger: Ledger, job_id: str = "j1", token: str = "token") -> Claim:
    """The next job's claim, which must be this one's."""
    claim = ledger.claim("simple", token, "worker")
    assert claim is not None
    assert claim.job_id == job_id
    return claim


def usage_kinds(redis: Redis) -> list[bytes]:
    return [fields[b"kind"] for _, fields in redis.xrange(USAGE)]
