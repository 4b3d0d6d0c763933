"""Fills Redis with what a long life leaves there: cached answers, queued jobs; clones of a real one of each."""

import uuid
from typing import Any

import orjson
from redis import Redis

from bench.product import TIER, Product
from config import Settings
from storage.answer import answer_key
from storage.job import BATCH, Draft
from storage.line import Lines
from storage.name import job_key
from tasks.build import build_ledger

TENANT = "prefilled"
_LONG_MS = 3_600_000
_CHUNK = 10_000
_COPY = """
local value = redis.call('GET', KEYS[1])
for number = ARGV[2], ARGV[3] do redis.call('SET', ARGV[1] .. number, value, 'PX', ARGV[4]) end
"""


def answers(service: Product, wanted: int) -> None:
    """Copies of a real cached answer, until there are so many in all."""
    client = Redis.from_url(service.env["REDIS_URL"])
    model = next(client.scan_iter(answer_key("*"), count=1000))
    have = sum(1 for _ in client.scan_iter(answer_key("*"), count=_CHUNK))
    for first in range(have + 1, wanted + 1, _CHUNK):
        last = min(first + _CHUNK - 1, wanted)
        client.eval(_COPY, 1, model, answer_key(f"{TENANT}:"), first, last, _LONG_MS)


def jobs(service: Product, wanted: int) -> None:
    """Batch jobs through the ledger, until so many are queued; under `DEEP` the tier's workers leave them there."""
    client = Redis.from_url(service.env["REDIS_URL"])
    given: dict[str, Any] = {name.lower(): text for name, text in service.env.items() if text}
    ledger, payload = build_ledger(Settings(**given, _env_file=None), client), _real_payload(client)
    for _ in range(wanted - Lines(client).depths([TIER])[TIER]["queued"]):
        accepted = ledger.accept(_draft(payload))
        if accepted.kind != "leader":
            raise RuntimeError(f"a prefilled job was not taken: {accepted.kind}")


def _real_payload(client: Redis) -> bytes:
    """Of any job that was answered."""
    found = (client.hget(key, "payload") for key in client.scan_iter(job_key("*"), count=1000))
    return next(payload for payload in found if isinstance(payload, bytes) and payload)


def _draft(payload: bytes) -> Draft:
    job_id = uuid.uuid4().hex
    caller = {"id": job_id, "tenant": TENANT, "key": None, "request_id": job_id, "priority": "batch"}
    return Draft(
        id=job_id,
        tenant=TENANT,
        tier=TIER,
        priority=BATCH,
        fingerprint=f"{TENANT}:{job_id}",
        coalesce=False,
        deadline_ms=_LONG_MS,
        payload=payload,
        caller=orjson.dumps(caller | {"cache": "MISS", "tier": TIER, "score": 1, "words": 20}),
    )
