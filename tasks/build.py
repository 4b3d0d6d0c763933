"""Parts built from the settings, the same way in every process."""

from collections.abc import Mapping
from datetime import UTC, datetime

from clock import now_ms
from config import Settings
from providers import PROVIDERS, build_providers
from providers.chain import Chain
from routing.catalogue import load_catalogue
from routing.tier import Tier
from storage.admission import Admission, AdmissionLimits
from storage.answer import AnswerCache
from storage.connection import RedisClient
from storage.ledger import Ledger, LedgerLimits
from tasks.answer import Answerer, Leases
from tasks.target import resolve_tiers


def build_ledger(settings: Settings, client: RedisClient) -> Ledger:
    return Ledger(
        client,
        LedgerLimits(
            max_queue_depth=settings.max_queue_depth,
            max_tenant_queue_depth=settings.max_tenant_queue_depth,
            max_callers_per_job=settings.max_callers_per_job,
            max_unrecorded_events=settings.max_unrecorded_events,
            max_completion_entries=settings.max_completion_entries,
            max_runs=settings.max_job_runs,
            max_dead_letters=settings.max_dead_letters,
            lease_ms=_ms(settings.lease_seconds),
            republish_ms=_ms(settings.republish_seconds),
            keep_ms=_ms(settings.job_ttl_seconds),
            keep_dead_ms=_ms(settings.dead_letter_ttl_seconds),
            batch_share=settings.batch_share,
        ),
        holds_cache=settings.cache_redis_url is None,
    )


def build_tiers(settings: Settings) -> dict[str, Tier]:
    return resolve_tiers(settings, load_catalogue(), datetime.now(UTC).date())


def build_admission(settings: Settings, client: RedisClient) -> Admission:
    given = {name: settings.requests_per_minute(name) for name in PROVIDERS}
    return Admission(
        client,
        AdmissionLimits(
            requests_per_minute={name: limit for name, limit in given.items() if limit},
            max_in_flight=settings.max_calls_in_flight,
            breaker_failures=settings.breaker_failures,
            breaker_open_ms=_ms(settings.breaker_open_seconds),
            max_unrecorded_events=settings.max_unrecorded_events,
        ),
    )


def build_answerer(
    settings: Settings,
    ledger: Ledger,
    leases: Leases,
    admission: Admission,
    *,
    tiers: Mapping[str, Tier],
    cache: AnswerCache | None,
    worker: str,
    pool_size: int,
) -> Answerer:
    """The answerer of a worker, or of a web process that answers inline; `pool_size` = calls at the same time."""
    catalogue = load_catalogue()
    providers = build_providers(settings, pool_size=pool_size)
    chain = Chain(providers, catalogue, admission, now_ms=now_ms, hedging=settings.hedging)
    return Answerer(ledger, chain, tiers, catalogue, leases, worker, cache, settings.record_answer_text)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
