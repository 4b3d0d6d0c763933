"""`make doctor`: says of every configured target and server whether it can answer, and what to do where not."""

import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

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
ADVICE = {
    "redis": "check REDIS_URL; until then queries are answered without cache and queue",
    "cache": "check CACHE_REDIS_URL; until then every query is a miss",
    "database": "check DATABASE_URL; until then events wait in Redis",
    "kafka": "check KAFKA_BOOTSTRAP_SERVERS; until then events wait in the database",
}


def advise(report: TargetReport) -> str:
    """What there is to say of one target."""
    notes = []
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


def check_parts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each server the service talks to, and whether it answers now."""
    engine = build_engine(settings.database_url)
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
    for report in reports:
        row = (report.tier, report.provider, report.configured_model, price(report), advise(report))
        write(COLUMNS.format(*row))
    write("\n")
    is_well = any(report.is_configured for report in reports)
    if not is_well:
        write("No provider is configured: set GROQ_API_KEY or TOGETHER_API_KEY, or LOCAL_MODEL=on.\n")
    for name, found in check_parts(settings):
        write(f"{name:<9} {found}\n")
        is_well = is_well and found == "ok"
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
