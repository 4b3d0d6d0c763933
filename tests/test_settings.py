"""Settings: loud where they do not fit, and documented where a reader looks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from config import Settings

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"simple_query_max_words": 50, "medium_query_max_words": 50}, "SIMPLE_QUERY_MAX_WORDS"),
        ({"simple_query_max_words": 0}, "greater than or equal to 1"),
        ({"max_streams": 120, "web_threads": 128}, "MAX_STREAMS"),
        ({"sync_wait_seconds": 61, "max_wait_seconds": 60}, "SYNC_WAIT_SECONDS"),
        ({"job_deadline_seconds": 10, "max_deadline_seconds": 5}, "JOB_DEADLINE_SECONDS"),
        ({"port": 70_000}, "less than or equal to 65535"),
        ({"local_model": "maybe"}, "auto"),
        ({"database_url": "mysql://x"}, "postgresql://"),
        ({"redis_url": "http://x"}, "redis://"),
        ({"groq_base_url": "notaurl"}, "https://"),
        ({"kafka_bootstrap_servers": "kafka"}, "host:port"),
    ],
)
def test_it_refuses_what_does_not_fit_together(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_it_names_the_postgresql_driver_that_is_installed(scheme: str) -> None:
    assert Settings(database_url=f"{scheme}://u@h/d").sql_url == "postgresql+psycopg2://u@h/d"


def test_servers_may_be_listed_with_spaces() -> None:
    assert Settings(kafka_bootstrap_servers="a:1, b:2").kafka_bootstrap_servers == "a:1,b:2"


def test_one_redis_serves_both_roles_unless_told_otherwise() -> None:
    assert Settings(redis_host="h").cache_url == "redis://h:6379/0"
    assert Settings(redis_url="redis://a/0", cache_redis_url="redis://b/0").cache_url == "redis://b/0"


@pytest.mark.parametrize(
    ("given", "uses"),
    [
        ({}, True),
        ({"groq_api_key": "k"}, False),
        ({"together_api_key": "k"}, False),
        ({"groq_api_key": "k", "local_model": "on"}, True),
        ({"local_model": "off"}, False),
    ],
)
def test_auto_uses_the_local_model_only_without_a_key(given: dict[str, object], uses: bool) -> None:
    assert Settings(**given).uses_local_model is uses  # type: ignore[arg-type]


SECRETS = {
    "groq_api_key": "planted",
    "together_api_key": "planted",
    "flower_basic_auth": "u:planted",
    "redis_url": "redis://:planted@h/0",
    "cache_redis_url": "rediss://u:planted@h/0",
    "database_url": "postgresql://u:planted@h/d",
}


def test_no_secret_shows_when_settings_are_printed() -> None:
    settings = Settings(**SECRETS)  # type: ignore[arg-type]

    assert "planted" not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    assert [url.count("planted") for url in (settings.ledger_url, settings.cache_url, settings.sql_url)] == [1, 1, 1]


def test_no_secret_shows_when_settings_are_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**{**SECRETS, "port": "planted", "redis_url": "http://planted", "database_url": "x://planted"})  # type: ignore[arg-type]

    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", ["redis_url", "cache_redis_url", "database_url"])
@pytest.mark.parametrize("password", ["plan/ted", "plan#ted", "plan?ted", "plan[ted"])
def test_it_says_how_to_write_a_password_that_breaks_its_address(name: str, password: str) -> None:
    scheme = "postgresql" if name == "database_url" else "redis"
    with pytest.raises(ValidationError, match="is no address: in a password write") as refused:
        Settings(**{name: f"{scheme}://u:{password}@h/0"})  # type: ignore[arg-type]

    assert "plan" not in str(refused.value)


def test_a_process_says_which_variable_is_wrong_and_ends() -> None:
    env = {**os.environ, "PORT": "none", "LOCAL_MODEL": "maybe", "ENV_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.doctor"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == os.EX_CONFIG
    assert "PORT: " in done.stderr
    assert "LOCAL_MODEL: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_lists_every_setting() -> None:
    listed = set(re.findall(r"^\| `([A-Z_]+)`", (ROOT / "README.md").read_text(), re.MULTILINE))

    assert listed == {name.upper() for name in Settings.model_fields}
