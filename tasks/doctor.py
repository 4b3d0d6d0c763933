"""`make doctor`: says of every configured target and server whether it can answer, and what to do where not."""

import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import requests
from kafka.errors import KafkaError
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from config import Settings, load_settings
from routing.catalogue import load_catalogue
from storage.connection import hot_client
from storage.database import build_engine, ping
from tasks.relay import make_topics
from tasks.target import TargetReport, report_targets

COLUMNS = "{:<8} {:<9} {:<45} {:<13} {}\n"
PROVIDER_TIMEOUT_S = 5
ADVICE = {
    "redis": "start `make run`, or check REDIS_URL; until then queries are answered without cache and queue",
    "cache": "check CACHE_REDIS_URL; until then every query is a miss",
    "database": "check DATABASE_URL; until then events wait in Redis",
    "kafka": "check KAFKA_BOOTSTRAP_SERVERS; until then events wait in the database",
}


def advise(report: TargetReport, trouble: str = "", listed: frozenset[str] | set[str] = frozenset()) -> str:
    """What there is to say of one target; `trouble` and `listed` are what its provider answered."""
    notes = [f"{report.provider} {trouble}"] if trouble else []
    if listed and report.model not in listed:
        notes.append(f"{report.provider} does not list {report.model}")
    if not report.is_configured:
        how = "LOCAL_MODEL=on" if report.provider == "local" else f"{report.provider.upper()}_API_KEY"
        notes.append(f"not used, for want of {how}")
    if report.is_replaced:
        notes.append(f"retired on {report.retired_on}, {report.model} answers instead")
    elif report.retired_on:
        notes.append(f"retired on {report.retired_on} and still tried (RETIRED_MODELS=try): set another model")
    if not report.is_known:
        notes.append("unknown to the catalogue: costs the tier's flat price; check the spelling")
    return "; ".join(notes) or "ok"


def price(report: TargetReport) -> str:
    if report.input_price is None or report.output_price is None:
        return "flat"
    return f"${report.input_price:g}/${report.output_price:g}"


def ask_provider(settings: Settings, provider: str) -> tuple[str, set[str]]:
    """What is wrong with a provider or any of its keys (or nothing), and the models it lists (none where unsaid)."""
    keys = settings.keys(provider) or ("",)
    names = ["the key"] if len(keys) == 1 else [f"key {n} of {len(keys)}" for n in range(1, len(keys) + 1)]
    found = [_ask_with(settings, provider, key, name) for key, name in zip(keys, names, strict=True)]
    troubles = dict.fromkeys(trouble for trouble, _ in found if trouble)
    return ", ".join(troubles), set().union(*(listed for _, listed in found))


def _ask_with(settings: Settings, provider: str, key: str, name: str) -> tuple[str, set[str]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = requests.get(settings.base_url(provider) + "/models", headers=headers, timeout=PROVIDER_TIMEOUT_S)
        if reply.status_code in (401, 402, 403):
            return f"refuses {name} (HTTP {reply.status_code})", set()
        reply.raise_for_status()
        body = reply.json()
        listed = body["data"] if isinstance(body, dict) else body  # Together lists without an envelope
        return "", {model["id"] for model in listed}
    except requests.HTTPError as error:
        return f"answers HTTP {error.response.status_code} at {provider.upper()}_BASE_URL", set()
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return f"does not answer at {provider.upper()}_BASE_URL ({type(error).__name__})", set()


def check_parts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each server the service talks to, and whether it answers now."""
    engine = build_engine(settings.sql_url)
    checks: list[tuple[str, Callable[[], object]]] = [
        ("redis", lambda: hot_client(settings.ledger_url).ping()),
        ("cache", lambda: hot_client(settings.cache_url).ping()),
        ("database", lambda: ping(engine)),
    ]
    if servers := settings.kafka_bootstrap_servers:
        checks.append(("kafka", lambda: make_topics(servers)))
    for name, ask in checks:
        try:
            ask()
        except (RedisError, SQLAlchemyError, KafkaError) as error:
            yield name, f"does not answer ({type(error).__name__}): {ADVICE[name]}"
        else:
            yield name, "ok"


def main() -> int:
    settings = load_settings()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    reports = report_targets(settings, load_catalogue(), datetime.now(UTC).date())
    write = sys.stdout.write
    write(COLUMNS.format("tier", "provider", "model", "per 1M in/out", ""))
    providers = {report.provider for report in reports if report.is_configured}
    found = {provider: ask_provider(settings, provider) for provider in providers}
    for report in reports:
        advice = advise(report, *found.get(report.provider, ("", set())))
        write(COLUMNS.format(report.tier, report.provider, report.configured_model, price(report), advice))
    write("\n")
    is_well = bool(providers) and not any(trouble for trouble, _ in found.values())
    if not providers:
        write("No provider is configured: set GROQ_API_KEY or TOGETHER_API_KEY, or LOCAL_MODEL=on.\n")
    for name, state in check_parts(settings):
        write(f"{name:<9} {state}\n")
        is_well = is_well and state == "ok"
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
