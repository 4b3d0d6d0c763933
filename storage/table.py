"""The analytics tables: one row a query, one an attempt, their sums, and the events, which are also Kafka's outbox."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes on both databases; SQLite itself keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return (value if value.tzinfo else value.replace(tzinfo=UTC)) if value else None


queries = Table(
    "queries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64)),
    Column("tenant", String(64), nullable=False),
    Column("request_id", String(64)),
    Column("status", String(16), nullable=False),
    Column("cache", String(16), nullable=False),
    Column("tier", String(16), nullable=False),
    Column("priority", String(16)),
    Column("score", Integer, nullable=False),
    Column("words", Integer, nullable=False),
    Column("provider", String(32)),
    Column("model", String(128)),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cost_usd", Float, nullable=False, default=0.0),
    Column("baseline_usd", Float, nullable=False, default=0.0),
    Column("latency_ms", Float),
    Column("latency_bucket", Integer),
    Column("queued_ms", Float),
    Column("provider_ms", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("error_code", String(64)),
    Column("is_degraded", Boolean, nullable=False, default=False),
    Column("api_key", String(16)),
    Column("query_text", Text),
    Column("answer_text", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Index(None, "created_at"),
    Index("ix_queries_tenant_created_at", "tenant", "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("tier", String(16), nullable=False),
    Column("provider", String(32)),
    Column("model", String(128)),
    Column("outcome", String(32), nullable=False),
    Column("http_status", Integer),
    Column("detail", Text),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cost_usd", Float, nullable=False, default=0.0),
    Column("possible_cost_usd", Float, nullable=False, default=0.0),
    Column("billing", String(8)),
    Column("latency_ms", Float),
    Column("started_at", UtcDateTime, nullable=False),
    Index(None, "started_at"),
    Index("ix_attempts_tenant_started_at", "tenant", "started_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("event_id", String(128), nullable=False),
    Column("type", String(32), nullable=False),
    Column("topic", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("tenant", String(64)),
    Column("payload", JSON, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    UniqueConstraint("event_id"),
    Index(None, "occurred_at"),
    Index(None, "tenant"),
)

# Sums of both, by `storage.rollup`: of a tenant or of all, `minutes` long from `start` on (minutes since 1970, UTC).
rollups = Table(
    "rollups",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("minutes", Integer, primary_key=True),
    Column("start", Integer, primary_key=True),
    Column("tally", Text, nullable=False),
)

# Only the rows that wait for Kafka are indexed, so the outbox stays small however long the history grows.
Index(
    "ix_events_unpublished",
    events.c.seq,
    sqlite_where=events.c.published_at.is_(None),
    postgresql_where=events.c.published_at.is_(None),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("tiers", JSON, nullable=False),
    Column("requests_per_minute", Integer),
    Column("max_open_jobs", Integer),
    Column("tokens_per_day", BigInteger),
    Column("budget_usd_per_day", Float),
    Column("budget_usd_per_month", Float),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Index(None, "tenant"),
)
