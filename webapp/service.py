"""What the routes work with, built once per process in `create_app`."""

from collections.abc import Mapping
from dataclasses import dataclass

from flask import Flask, current_app
from sqlalchemy import Engine

from config import Settings
from routing.classifier import Thresholds
from routing.tier import Tier
from storage.admission import Admission
from storage.answer import ANSWER_VERSION, AnswerCache
from storage.connection import blocking_client, hot_client
from storage.database import build_engine
from storage.dead_letter import DeadLetters
from storage.follow import BLOCK_MS
from storage.idempotency import Idempotency
from storage.ledger import Ledger
from storage.line import Lines
from storage.presence import Presence
from tasks.build import build_admission, build_answerer, build_ledger, build_tiers
from tasks.dispatch import Dispatcher
from webapp.inline import AlwaysHeld, Inline
from webapp.meter import Meter
from webapp.waiter import CompletionListener, Waiter
from webapp.withdrawal import Withdrawals


@dataclass(frozen=True, slots=True)
class Services:
    """`cache` is None where answers live in the ledger's Redis. `policy` changes whenever answers might."""

    settings: Settings
    tiers: Mapping[str, Tier]
    thresholds: Thresholds
    policy: str
    ledger: Ledger
    lines: Lines
    dead_letters: DeadLetters
    idempotency: Idempotency
    cache: AnswerCache | None
    dispatcher: Dispatcher
    waiter: Waiter
    withdrawals: Withdrawals
    inline: Inline
    presence: Presence
    admission: Admission
    engine: Engine
    keys_engine: Engine
    meter: Meter


def build_services(settings: Settings) -> Services:
    """Connects to nothing yet: every client does so at first use."""
    client = hot_client(settings.ledger_url)
    ledger = build_ledger(settings, client)
    tiers = build_tiers(settings)
    thresholds = Thresholds(settings.simple_query_max_words, settings.medium_query_max_words)
    cache = AnswerCache(hot_client(settings.cache_url)) if settings.cache_redis_url else None
    listener = CompletionListener(blocking_client(settings.ledger_url, BLOCK_MS / 1000))
    engine = build_engine(settings.sql_url)
    admission = build_admission(settings, client)
    answerer = build_answerer(
        settings,
        ledger,
        AlwaysHeld(),
        admission,
        tiers=tiers,
        cache=cache,
        worker="web",
        pool_size=settings.max_inline_answers,
    )
    return Services(
        settings=settings,
        tiers=tiers,
        thresholds=thresholds,
        policy=policy_of(tiers, thresholds),
        ledger=ledger,
        lines=Lines(client),
        dead_letters=DeadLetters(ledger),
        idempotency=Idempotency(client, settings.idempotency_ttl_seconds),
        cache=cache,
        dispatcher=Dispatcher(client),
        waiter=Waiter(ledger, listener, settings.max_waiting_threads, settings.max_streams),
        withdrawals=Withdrawals(ledger),
        inline=Inline(answerer, engine, settings.max_inline_answers),
        presence=Presence(client),
        admission=admission,
        engine=engine,
        keys_engine=build_engine(settings.sql_url),  # of its own: statistics must not keep anybody at the door
        meter=Meter(),
    )


def policy_of(tiers: Mapping[str, Tier], thresholds: Thresholds) -> str:
    """A name for everything configured that changes answers: part of every fingerprint."""
    return repr(
        (ANSWER_VERSION, thresholds, sorted((tier.name, tier.targets, tier.max_tokens) for tier in tiers.values()))
    )


def attach(app: Flask, services: Services) -> None:
    app.extensions["services"] = services


def services() -> Services:
    """The services of the current request's app."""
    found: Services = current_app.extensions["services"]
    return found
