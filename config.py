"""Settings from the environment and `.env`, read once at an entry point and passed down as a value."""

import os
import re
import sys
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from routing.query import Target
from routing.tier import TIERS

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]

SPARE_THREADS = 8  # of a web process: for what neither waits nor streams
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _default(tier: str, provider: str) -> str:
    return next(target.model for target in TIERS[tier].targets if target.provider == provider)


def _with_scheme(url: str, *schemes: str) -> str:
    if not url.startswith(schemes):
        raise ValueError(f"must begin with {' or '.join(schemes)}")
    return url


def _readable(url: str) -> SecretStr:
    """Refuses here what a client would refuse later in words that quote a piece of the password."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        escapes = "%3A %2F %3F %23 %40 %5B %5D"
        raise ValueError(f"is no address: in a password write : / ? # @ [ ] as {escapes}") from None
    return SecretStr(url)


class Settings(BaseSettings):
    """Every knob of the service. Field names are the environment variables, in lower case.

    Raises pydantic's ValidationError that names each bad variable.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    # Providers
    groq_api_key: SecretStr | None = None
    groq_base_url: str = "https://api.groq.com/openai/v1"
    groq_simple_model: str = _default("simple", "groq")
    groq_medium_model: str = _default("medium", "groq")
    groq_complex_model: str = _default("complex", "groq")
    together_api_key: SecretStr | None = None
    together_base_url: str = "https://api.together.xyz/v1"
    together_simple_model: str = _default("simple", "together")
    together_medium_model: str = _default("medium", "together")
    together_complex_model: str = _default("complex", "together")
    local_model: Literal["auto", "on", "off"] = "auto"
    local_base_url: str = "http://127.0.0.1:8081/v1"
    local_model_name: str = _default("simple", "local")
    retired_models: Literal["replace", "try"] = "replace"
    provider_connect_timeout_seconds: Seconds = 3
    max_reply_bytes: Count = 4 * 1024 * 1024
    groq_requests_per_minute: Count | None = None
    together_requests_per_minute: Count | None = None
    max_calls_in_flight: Count = 256
    breaker_failures: Count = 5
    breaker_open_seconds: Seconds = 15
    hedging: bool = False

    # Routing
    simple_query_max_words: Count = 10
    medium_query_max_words: Count = 50

    # Servers. Addresses carry passwords: `ledger_url`, `cache_url` and `sql_url` give them in the clear.
    redis_url: SecretStr | None = None
    redis_host: str = "127.0.0.1"
    redis_port: Port = 6379
    cache_redis_url: SecretStr | None = None
    database_url: SecretStr = SecretStr("sqlite:///.data/router.db")
    kafka_bootstrap_servers: str | None = None

    # HTTP
    host: str = "127.0.0.1"
    port: Port = 8000
    web_processes: Count = 2
    web_threads: Annotated[int, Field(ge=8)] = 128
    max_waiters: Count = 1_000
    max_streams: Count = 24
    max_inline_answers: Count = 8
    max_query_chars: Count = 32_000
    max_body_bytes: Count = 256 * 1024

    # Who may ask
    auth: Literal["auto", "on", "off"] = "auto"
    auth_cache_seconds: Annotated[float, Field(gt=0, le=55)] = 30
    cors_origins: str | None = None
    share_cache: bool = False
    recent_answer_seconds: Annotated[float, Field(ge=0, le=60)] = 2

    # Jobs
    sync_wait_seconds: Annotated[float, Field(ge=0)] = 30
    max_wait_seconds: Seconds = 60
    job_deadline_seconds: Seconds = 120
    max_deadline_seconds: Seconds = 3600
    job_ttl_seconds: Count = 24 * 3600
    cache_ttl_seconds: Count = 24 * 3600
    idempotency_ttl_seconds: Count = 24 * 3600
    max_queue_depth: Count = 10_000
    max_tenant_queue_depth: Count = 5_000
    max_callers_per_job: Count = 1_000
    max_unrecorded_events: Count = 1_000_000
    max_completion_entries: Count = 10_000
    batch_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_job_runs: Count = 3
    max_dead_letters: Count = 10_000
    dead_letter_ttl_seconds: Count = 7 * 24 * 3600
    lease_seconds: Seconds = 15
    republish_seconds: Seconds = 10
    reaper_seconds: Seconds = 2

    # Workers
    simple_worker_threads: Count = 32
    medium_worker_threads: Count = 32
    complex_worker_threads: Count = 32

    # Records
    record_query_text: bool = False
    record_answer_text: bool = False
    text_retention_days: Count = 30
    query_retention_days: Count = 90
    attempt_retention_days: Count = 90
    event_retention_days: Count = 30
    max_poison_entries: Count = 10_000
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    # Flower
    flower_port: Port = 5555
    flower_basic_auth: SecretStr | None = None

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, given: SecretStr) -> SecretStr:
        url = given.get_secret_value()
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3 and refuses postgres://; we ship psycopg2.
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                url = "postgresql+psycopg2://" + url.removeprefix(scheme)
        if not url.startswith(("sqlite://", "postgresql+psycopg2://")):
            raise ValueError("use postgresql://user:password@host/name or sqlite:///path/to/file.db")
        return _readable(url)

    @field_validator("groq_base_url", "together_base_url", "local_base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        return _with_scheme(url, "http://", "https://")

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        return url and _readable(_with_scheme(url.get_secret_value(), "redis://", "rediss://", "unix://"))

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_servers(cls, servers: str | None) -> str | None:
        named = [server.strip() for server in servers.split(",")] if servers else []
        for server in named:
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError("use host:port, or several with commas between")
        return ",".join(named) or None

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: str | None) -> str | None:
        named = [origin.strip() for origin in origins.split(",")] if origins else []
        for origin in named:
            if not re.fullmatch(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?", origin):
                raise ValueError("use https://host or http://host:port as browsers send it, without a path or a *")
        return ",".join(named) or None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.simple_query_max_words >= self.medium_query_max_words:
            raise ValueError("SIMPLE_QUERY_MAX_WORDS must be less than MEDIUM_QUERY_MAX_WORDS")
        if self.max_streams + SPARE_THREADS >= self.web_threads:
            raise ValueError(
                f"MAX_STREAMS must be less than WEB_THREADS - {SPARE_THREADS}: other requests need threads"
            )
        if self.sync_wait_seconds > self.max_wait_seconds:
            raise ValueError("SYNC_WAIT_SECONDS must not exceed MAX_WAIT_SECONDS")
        if self.job_deadline_seconds > self.max_deadline_seconds:
            raise ValueError("JOB_DEADLINE_SECONDS must not exceed MAX_DEADLINE_SECONDS")
        if self.idempotency_ttl_seconds > self.job_ttl_seconds:
            raise ValueError("IDEMPOTENCY_TTL_SECONDS must not exceed JOB_TTL_SECONDS: a job is what a key stands for")
        if self.job_ttl_seconds > self.dead_letter_ttl_seconds:
            raise ValueError("JOB_TTL_SECONDS must not exceed DEAD_LETTER_TTL_SECONDS: a dead letter is a job, too")
        return self

    @property
    def ledger_url(self) -> str:
        """Redis of the broker, the ledger and the usage stream."""
        return self.redis_url.get_secret_value() if self.redis_url else f"redis://{self.redis_host}:{self.redis_port}/0"

    @property
    def cache_url(self) -> str:
        """Redis of the answers; the ledger's where none is given."""
        return self.cache_redis_url.get_secret_value() if self.cache_redis_url else self.ledger_url

    @property
    def sql_url(self) -> str:
        """The database of the records."""
        return self.database_url.get_secret_value()

    @property
    def uses_local_model(self) -> bool:
        """`auto` means: only when no provider key is set."""
        if self.local_model == "auto":
            return not (self.keys("groq") or self.keys("together"))
        return self.local_model == "on"

    def target(self, tier: str, provider: str) -> Target:
        """The configured model of a tier at a provider, before any retirement is looked up."""
        if provider == "local":
            return Target(provider, self.local_model_name)
        return Target(provider, getattr(self, f"{provider}_{tier}_model"))

    def is_configured(self, provider: str) -> bool:
        """Whether calls to `provider` can be made: a key is set, or the local model is on."""
        return self.uses_local_model if provider == "local" else bool(self.keys(provider))

    def keys(self, provider: str) -> tuple[str, ...]:
        """The provider's keys in the clear (several are separated by commas); only for building its client."""
        secret: SecretStr | None = getattr(self, f"{provider}_api_key", None)
        listed = secret.get_secret_value().split(",") if secret else []
        return tuple(dict.fromkeys(key.strip() for key in listed if key.strip()))

    def requests_per_minute(self, provider: str) -> int | None:
        """What the operator says that one key of the provider may do; None where it is to be learned."""
        limit: int | None = getattr(self, f"{provider}_requests_per_minute", None)
        return limit

    @property
    def max_waiting_threads(self) -> int:
        """Most threads of a web process that may wait for answers."""
        return min(self.max_waiters, self.web_threads - self.max_streams - SPARE_THREADS)

    @property
    def requires_key(self) -> bool:
        """`auto` means: unless only this machine can reach the API."""
        if self.auth == "auto":
            return self.host not in LOOPBACK
        return self.auth == "on"

    @property
    def origins(self) -> frozenset[str]:
        """Origins whose pages may call the API."""
        return frozenset(self.cors_origins.split(",")) if self.cors_origins else frozenset()

    def base_url(self, provider: str) -> str:
        url: str = getattr(self, f"{provider}_base_url")
        return url


def env_file() -> str:
    """The file beside the environment: `.env`, or what ENV_FILE names."""
    return os.environ.get("ENV_FILE", ".env")


def load_settings() -> Settings:
    """Settings for a process entry; prints what is wrong and exits with 78 where they do not fit together."""
    try:
        return Settings(_env_file=env_file())
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}"
            for e in error.errors(include_input=False, include_url=False)
        ]
        sys.stderr.write("The configuration does not fit (environment and .env):\n" + "\n".join(lines) + "\n")
        sys.exit(os.EX_CONFIG)
