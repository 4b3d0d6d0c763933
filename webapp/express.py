"""POST /api/v1/query on the server's event loop: the steps of `webapp.accept`, but no thread waits for any of them.

Whatever is not plain (`webapp.wire`) or comes while Redis is away is left to the application and its threads.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import orjson
from flask import Flask
from pydantic import ValidationError
from redis import RedisError

from logs import log_context
from storage.answer import Answer, answer_key, bare
from storage.connection import blocking_client, hot_client
from storage.job import Draft
from storage.ledger import Ledger, read_acceptance, read_found, read_glance
from storage.name import DONE
from tasks.dispatch import ring_command
from webapp.accept import (
    Outcome,
    accept,
    after_lost_entry,
    after_lost_message,
    answer_key_of,
    draft_of_miss,
    hit_facts,
    outcome_of,
)
from webapp.access_log import end_request, request_id_of
from webapp.ask import Ask, Envelope, read_ask
from webapp.auth import Door, access_of, check_scope
from webapp.caller import ANYONE, Caller, identify, refuse_strangers
from webapp.draining import is_draining
from webapp.errand import Errand, Waits
from webapp.feed import Feed
from webapp.hit_log import HitLog
from webapp.link import Loop, RedisLink
from webapp.problem import Problem
from webapp.recent import Recent, RecentAnswers
from webapp.refusal import is_quick, over_rate, refused
from webapp.reply import Reply, reply_to, reply_with
from webapp.schema import QueryBody
from webapp.service import Services
from webapp.wire import read_request, write_reply

log = logging.getLogger(__name__)

ROUTE = "/api/v1/query"
IDLE_S = 1.0
LINK_LIMIT_S = 0.25  # as for the other requests: a query is better answered without Redis than late
LOOK_S = 1.0  # a wake-up that got lost costs at most this
SWEEP_S = 0.05  # how often waits are looked through for those that are over
UNEXPECTED = "An unexpected error; it is in the log under this request's id. Nothing that was accepted is lost."


class Server(Loop, Protocol):
    """The event loop and its connections."""

    def respond(self, connection: Any, data: bytes) -> None:
        """Send a reply, and be ready for the connection's next request."""

    @property
    def is_closing(self) -> bool: ...


class Express:
    """Takes whole requests off connections, and has the server answer them."""

    def __init__(self, app: Flask, server: Server) -> None:
        self._parts: Services = app.extensions["services"]
        self._door: Door = app.extensions["door"]
        self._server = server
        settings = self._parts.settings
        self._link = RedisLink(hot_client(settings.ledger_url), server, LINK_LIMIT_S)
        has_own_cache = self._parts.cache is not None
        self._cache = RedisLink(hot_client(settings.cache_url), server, LINK_LIMIT_S) if has_own_cache else None
        self._feed = Feed(blocking_client, settings.ledger_url, DONE, server, self._hear)
        self._wake_threads = self._parts.waiter.rely_on_loop()
        self._recent = RecentAnswers(settings.recent_answer_seconds)
        self._hits = HitLog(self._parts.ledger, self._link, server)
        self._access = access_of(ROUTE)
        self._waits = Waits()
        self._sweep_at = 0.0

    @property
    def patience_s(self) -> float:
        """How long the loop may sleep at most."""
        if self._waits.count:
            return SWEEP_S
        return LINK_LIMIT_S if not self.is_open or self._link.is_busy else IDLE_S

    @property
    def is_open(self) -> bool:
        """Whether requests are taken now."""
        has_cache = self._cache is None or self._cache.is_up
        return self._link.is_up and has_cache and self._feed.is_up and not self._server.is_closing

    def tend(self) -> None:
        """To be called after every round of the loop."""
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._sweep(now)
        for link in (self._cache, self._link, self._feed):  # a lost cache makes work for the ledger
            if link:
                link.flush()
                link.tend()
        if not self._feed.is_up:  # nobody says what has changed
            self._recent.clear()
        self._hits.tend()

    def take(self, connection: Any, data: bytes) -> Errand | None:
        """Begin to answer the request that is `data`; None where it is one for the application."""
        started = time.perf_counter()
        request = read_request(data) if self.is_open else None
        if request is None or len(request[1]) > self._parts.settings.max_body_bytes:
            return None
        headers, body = request
        try:
            caller = self._caller(headers)
            query = QueryBody.model_validate(orjson.loads(body))
            ask = read_ask(query, Envelope(headers, caller, request_id_of(headers)), self._parts)
            errand = Errand(connection, started, ask, answer_key_of(ask, self._parts))
        except (LookupError, Problem, ValidationError, orjson.JSONDecodeError):
            return None
        except Exception:  # the application meets it, too, and on the loop it would end all connections
            log.exception("query.unread")
            return None
        return errand if self._begin(errand) else None

    def close(self) -> None:
        """The loop has ended."""
        self._hits.close()

    def abandon(self, errand: Errand) -> None:
        """The caller is gone. Its job goes on: it may come back and poll."""
        if errand.is_over:  # but for the sending, which it has not waited for
            return
        self._close(errand)
        end_request(self._parts.meter, ROUTE, "POST", 499, time.perf_counter() - errand.started, **_who(errand.ask))

    def _caller(self, headers: dict[str, str]) -> Caller:
        """Raises Problem, and LookupError where only the database knows the key."""
        if not self._door.requires_key:
            refuse_strangers(headers["host"], headers, self._parts.settings)
            return ANYONE
        caller = identify(headers, self._door.cache.known, self._door.store.now())
        check_scope(self._access, caller)
        return caller

    def _begin(self, errand: Errand) -> bool:
        """Look the answer up, where it may be looked up in one go."""
        ask = errand.ask
        if not ask.may_read_cache or (self._cache and ask.caller.rate):
            return False
        recent = self._recent.get(bare(errand.key)) if self._hits.has_room and not ask.caller.rate else None
        if recent:
            self._step(errand, self._answer_again)(recent)
            return True
        errand.changes = self._recent.changes
        if self._cache:
            self._cache.ask(("GET", answer_key(errand.key)), self._step(errand, self._looked_up))
        else:
            command = self._parts.ledger.find_command(errand.key, hit_facts(ask), ask.caller.rate)
            self._link.ask(command, self._step(errand, self._found))
        return True

    def _answer_again(self, errand: Errand, recent: Recent) -> None:
        self._hits.record(hit_facts(errand.ask), recent.facts)
        self._answer(errand, Outcome("HIT", answer=recent.answer))

    def _looked_up(self, errand: Errand, found: Any) -> None:
        """The cache that is apart has said what it has."""
        if not isinstance(found, bytes):
            return self._enter(errand)  # a lost cache is a miss
        ledger, facts = self._parts.ledger, hit_facts(errand.ask)

        def recorded(errand: Errand, reply: Any) -> None:
            outcome = Outcome("HIT", answer=self._recent.keep(bare(errand.key), found, errand.changes))
            if isinstance(reply, RedisError):
                self._apart(errand, lambda: _recorded_late(outcome, ledger, facts, found))
            else:
                self._answer(errand, outcome)

        self._link.ask(ledger.record_hit_command(facts, found), self._step(errand, recorded))

    def _found(self, errand: Errand, reply: Any) -> None:
        if isinstance(reply, RedisError):
            return self._start_again(errand)
        found = read_found(reply)
        if isinstance(found, int):
            raise over_rate(found)
        if found is None:
            return self._enter(errand)
        self._answer(errand, Outcome("HIT", answer=self._recent.keep(bare(errand.key), found, errand.changes)))

    def _enter(self, errand: Errand) -> None:
        draft = errand.draft = draft_of_miss(errand.ask, errand.key, self._parts)
        # Before Redis can know of it: its end may be heard of before its beginning.
        self._waits.add(errand.ask.id, errand)
        entered = self._step(errand, self._entered)
        command = self._parts.ledger.accept_command(draft)
        self._link.ask(command, lambda reply: self._ring_for(draft, reply) if errand.is_over else entered(reply))

    def _start_again(self, errand: Errand) -> None:
        """On a thread, and under the same id: what Redis has done with it after all is recorded as one."""
        self._apart(errand, lambda: accept(errand.ask, self._parts))

    def _ring_for(self, draft: Draft, reply: Any) -> None:
        """Its caller has left meanwhile, but its job is there, and others may join it."""
        if isinstance(reply, RedisError):
            return
        if read_acceptance(reply).needs_message:
            self._link.ask(ring_command(draft.id, draft.tier, draft.priority), lambda reply: None)

    def _entered(self, errand: Errand, reply: Any) -> None:
        draft, ask, parts = errand.draft, errand.ask, self._parts
        assert draft  # noqa: S101 - `_enter` made it
        if isinstance(reply, RedisError):
            if str(reply).startswith("NOSCRIPT"):  # a Redis that was emptied: nothing has happened yet
                return self._start_again(errand)
            return self._apart(errand, lambda: after_lost_entry(ask, draft, parts, reply))
        accepted = read_acceptance(reply)
        match accepted.kind:
            case "hit":
                self._answer(errand, Outcome("HIT", answer=Answer.decode(accepted.answer or b"")))
            case "follower":
                self._waits.remove(ask.id, errand)
                errand.leader = accepted.job_id or ""
                self._waits.add(errand.leader, errand)
                self._wait(errand, is_done=True)
            case "leader":
                if not accepted.needs_message:
                    return self._wait(errand, is_done=errand.is_done)
                self._link.ask(ring_command(draft.id, draft.tier, draft.priority), self._step(errand, self._rung))
            case _ if is_quick(draft, accepted, parts):
                raise refused(draft, accepted, parts)
            case _:
                self._apart(errand, lambda: _refuse(draft, accepted, parts))

    def _rung(self, errand: Errand, reply: Any) -> None:
        draft, ask = errand.draft, errand.ask
        if isinstance(reply, RedisError) and draft:
            return self._apart(errand, lambda: after_lost_message(ask, draft, self._parts, reply))
        self._wait(errand, is_done=errand.is_done)

    def _wait(self, errand: Errand, *, is_done: bool) -> None:
        errand.is_entered = True
        if errand.ask.wait_s <= 0:
            return self._apart(errand, lambda: Outcome(errand.cache))
        if self._waits.count > self._parts.settings.max_waiters:
            return self._conclude(errand)
        now = time.monotonic()
        errand.until, errand.look_at = now + errand.ask.wait_s, now + LOOK_S
        if is_done:
            self._look(errand)

    def _hear(self, told: dict[bytes, bytes]) -> None:
        """A job has ended, an answer has changed, or a tenant's answers were erased."""
        if b"erased" in told:
            self._recent.clear()
        if answer := told.get(b"answer"):
            self._recent.evict(answer.decode())
        if job_id := told.get(b"job"):
            self._wake_threads(told)
            self._job_ended(job_id.decode())

    def _job_ended(self, job_id: str) -> None:
        for errand in self._waits.by_job.get(job_id, ()):
            errand.is_done = True
            if errand.is_entered:
                self._look(errand)

    def _look(self, errand: Errand) -> None:
        glance = self._parts.ledger.glance_command
        if errand.leader:
            self._link.ask(glance(errand.ask.id), self._step(errand, self._looked_at_own))
            self._link.ask(glance(errand.leader, is_leader=True), self._step(errand, self._looked))
        else:
            self._link.ask(glance(errand.ask.id), self._step(errand, self._looked))

    def _looked_at_own(self, errand: Errand, reply: Any) -> None:
        """A follower's own entry says no more than whether it has left."""
        if errand.is_entered and not isinstance(reply, RedisError) and read_glance(reply):
            self._conclude(errand)

    def _looked(self, errand: Errand, reply: Any) -> None:
        if isinstance(reply, RedisError) or not errand.is_entered:
            return  # it is looked at again, or was by an earlier look, which is being answered
        glance = read_glance(reply)
        if glance and glance.is_answered:
            answer = Answer.decode(glance.answer or b"")
            self._answer(errand, Outcome(errand.cache, answer=answer, is_paid=glance.payer == errand.ask.id))
        elif not glance or not glance.is_open:
            self._conclude(errand)

    def _sweep(self, now: float) -> None:
        for errand in [errand for waiting in self._waits.by_job.values() for errand in waiting if errand.is_entered]:
            if now >= errand.until or is_draining():
                self._conclude(errand)
            elif now >= errand.look_at:
                errand.look_at = now + LOOK_S
                self._look(errand)

    def _conclude(self, errand: Errand) -> None:
        """Answer with what the job is now."""
        ask, parts = errand.ask, self._parts

        def conclude() -> Outcome:
            try:
                job = parts.ledger.job(ask.id)
            except RedisError:
                return Outcome(errand.cache)
            return outcome_of(job, ask, errand.cache)

        self._apart(errand, conclude)

    def _step(self, errand: Errand, go_on: Callable[[Errand, Any], None]) -> Callable[[Any], None]:
        """The step as what to do with a reply; whatever it raises is the errand's answer."""

        def step(reply: Any) -> None:
            if errand.is_over:
                return
            try:
                go_on(errand, reply)
            except Exception as error:
                if errand.is_over:  # one request, one reply
                    raise
                self._send(errand, _failure(error, errand.ask))

        return step

    def _apart(self, errand: Errand, decide: Callable[[], Outcome]) -> None:
        """Answer with what `decide` comes to; it may ask Redis, and wait, so it does that on a thread."""
        self._waits.remove(errand.leader or errand.ask.id, errand)
        errand.is_entered = False
        ask, parts = errand.ask, self._parts

        def work() -> Reply:
            with log_context(**_who(ask)):
                try:
                    return reply_to(ask, decide(), parts, time.perf_counter() - errand.started)
                except Exception as error:  # noqa: BLE001 - its caller waits for an answer
                    return _failure(error, ask)

        self._server.apart(work, lambda reply: None if errand.is_over else self._send(errand, reply))

    def _answer(self, errand: Errand, outcome: Outcome) -> None:
        seconds = time.perf_counter() - errand.started
        self._send(errand, reply_to(errand.ask, outcome, self._parts, seconds))

    def _send(self, errand: Errand, reply: Reply) -> None:
        self._close(errand)
        ask, parts = errand.ask, self._parts
        is_last, varies = self._server.is_closing, bool(parts.settings.origins)
        data = write_reply(reply, ask.request_id, int(time.time()), varies=varies, is_last=is_last)
        self._server.respond(errand.connection, data)
        end_request(parts.meter, ROUTE, "POST", reply.status, time.perf_counter() - errand.started, **_who(ask))

    def _close(self, errand: Errand) -> None:
        errand.is_over = True
        self._waits.remove(errand.leader or errand.ask.id, errand)


def _who(ask: Ask) -> dict[str, str]:
    who = {"request_id": ask.request_id}
    return who | {"tenant": ask.caller.tenant, "key_id": ask.caller.key_id} if ask.caller.key_id else who


def _refuse(draft: Draft, accepted: Any, parts: Services) -> Outcome:
    raise refused(draft, accepted, parts)


def _failure(error: Exception, ask: Ask) -> Reply:
    if not isinstance(error, Problem):
        log.error("request.failed", exc_info=error, extra=_who(ask))
        error = Problem("internal_error", UNEXPECTED)
    return reply_with(error, ask.request_id)


def _recorded_late(outcome: Outcome, ledger: Ledger, facts: bytes, found: bytes) -> Outcome:
    """The outcome, its use recorded after all: the script was not known yet, or a connection broke."""
    try:
        ledger.record_hit(facts, found)
    except RedisError as error:
        log.warning("hit.unrecorded", extra={"error": type(error).__name__})
    return outcome
