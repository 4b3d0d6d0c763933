"""Answering in the web process while Redis is away: no cache, no queue, but an answer, and its record in SQL."""

import logging
import threading

import orjson
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from providers.abort import AbortSignal
from storage.answer import Answer
from storage.event import rows_of
from storage.job import Claim, Draft
from storage.ledger import Ending
from storage.record import write
from tasks.answer import Answerer
from tasks.ending import facts_of
from webapp.problem import Problem

log = logging.getLogger(__name__)


class AlwaysHeld:
    """Leases of claims that nobody else can see."""

    def hold(self, claim: Claim) -> AbortSignal:
        return AbortSignal()

    def drop(self, claim: Claim) -> None: ...


class NotTaken(Problem):
    """Refused before any provider was asked."""


class Inline:
    """A bounded number of answers at a time; more than that are refused, so that the process stays responsive."""

    def __init__(self, answerer: Answerer, engine: Engine, at_most: int) -> None:
        self._answerer, self._engine = answerer, engine
        self._slots = threading.BoundedSemaphore(at_most)

    def has_room(self) -> bool:
        """Whether one more answer would be taken on now."""
        if not self._slots.acquire(blocking=False):
            return False
        self._slots.release()
        return True

    def answer(self, draft: Draft, limit_s: float) -> Answer:
        """The answer, within `limit_s`.

        Raises Problem where no provider answers, NotTaken where too many queries are being answered so.
        """
        if not self._slots.acquire(blocking=False):
            detail = "Redis is away and this process already answers as many queries as it may on its own."
            raise NotTaken("overloaded", detail, retry_after=1)
        try:
            return self._run(draft, limit_s)
        finally:
            self._slots.release()

    def record_refusal(self, draft: Draft, refusal: NotTaken) -> None:
        """End a query in the record that Redis may have announced as accepted before it was taken back."""
        facts = facts_of(draft.tier, orjson.loads(draft.payload)["routing"], refusal.code)
        self._record(draft, Ending("failed", facts), self._answerer.now_ms())

    def _run(self, draft: Draft, limit_s: float) -> Answer:
        started = self._answerer.now_ms()
        payload = orjson.loads(draft.payload)
        claim = Claim(draft.id, "inline", 1, int(limit_s * 1000), draft.tier, payload, started)
        ending = self._answerer.run(claim, AbortSignal())
        self._record(draft, ending, started)
        if ending.error:
            raise Problem(**ending.error)
        return Answer.decode(ending.answer)

    def _record(self, draft: Draft, ending: Ending, started: int) -> None:
        caller = {**orjson.loads(draft.caller), "cache": "BYPASS", "degraded": True}
        entry = {
            "kind": b"ended",
            "at": str(self._answerer.now_ms()).encode(),
            "job": draft.id.encode(),
            "status": ending.status.encode(),
            "facts": orjson.dumps(ending.facts),
            "started_at": str(started).encode(),
            "callers": orjson.dumps([{"at": started, "caller": caller}]),
            "attempts": orjson.dumps(list(ending.attempts)),
            "text": draft.text.encode(),
        }
        try:
            write(self._engine, rows_of([entry], keeps_answers=True))
        except SQLAlchemyError:
            # Redis and SQL both away: the log is the last place left.
            facts = {name: fact for name, fact in ending.facts.items() if name != "answer_text"}
            log.exception("usage.unrecorded", extra={"query_id": draft.id, "facts": facts})
