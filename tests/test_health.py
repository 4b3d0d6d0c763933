"""GET /health names the part that is down and says what still works."""

from collections.abc import Callable

import pytest
from redis import Redis

from config import Settings
from providers.key import key_id
from routing.lane import CallReport, Grant, Lane
from routing.query import Target
from routing.tier import TIER_NAMES
from storage.admission import Admission, AdmissionLimits
from storage.database import build_engine
from storage.presence import Presence
from tests.conftest import migrate
from webapp import create_app

FINE = {"database": "ok", "kafka": "ok", "waiting_events": 0}


@pytest.fixture
def all_well(redis: Redis, sqlite_url: str) -> Presence:
    migrate(build_engine(sqlite_url))
    presence = Presence(redis)
    presence.show_worker("w1", TIER_NAMES, 4)
    presence.report_recorder("r1", FINE)
    return presence


@pytest.mark.usefixtures("all_well")
def test_all_is_well(settings: Callable[..., Settings]) -> None:
    response = create_app(settings(groq_api_key="k")).test_client().get("/health")

    assert (response.status_code, response.json["status"]) == (200, "ok")
    assert response.json["parts"]["kafka"]["status"] == "off"
    assert response.json["parts"]["workers"]["alive"] == {"simple": 1, "medium": 1, "complex": 1}


def test_it_names_a_tier_without_workers(all_well: Presence, settings: Callable[..., Settings]) -> None:
    all_well.hide_worker("w1", ["medium"])
    response = create_app(settings(groq_api_key="k")).test_client().get("/health")

    assert (response.status_code, response.json["status"]) == (503, "down")
    assert response.json["parts"]["workers"]["error"] == "no worker serves: medium"


@pytest.mark.usefixtures("all_well")
def test_it_is_down_without_any_provider(settings: Callable[..., Settings]) -> None:
    response = create_app(settings()).test_client().get("/health")

    assert (response.status_code, response.json["parts"]["providers"]["status"]) == (503, "down")


def test_it_is_degraded_without_redis(settings: Callable[..., Settings]) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k"))
    response = app.test_client().get("/health")

    assert (response.status_code, response.json["status"]) == (200, "degraded")
    assert response.json["parts"]["redis"]["status"] == "down"


@pytest.mark.usefixtures("all_well")
def test_it_is_degraded_without_the_database(settings: Callable[..., Settings]) -> None:
    app = create_app(settings(database_url="postgresql://nobody@127.0.0.1:1/none", groq_api_key="k"))
    response = app.test_client().get("/health")

    assert (response.status_code, response.json["status"]) == (200, "degraded")
    assert response.json["parts"]["database"]["status"] == "down"


def test_it_passes_on_what_the_recorder_says_of_kafka(all_well: Presence, settings: Callable[..., Settings]) -> None:
    app = create_app(settings(kafka_bootstrap_servers="127.0.0.1:1", groq_api_key="k"))
    all_well.report_recorder("r1", {**FINE, "kafka": "down"})
    assert app.test_client().get("/health").json["parts"]["kafka"]["status"] == "down"

    all_well.report_recorder("r1", FINE)
    assert app.test_client().get("/health").json["parts"]["kafka"]["status"] == "ok"


def test_it_says_when_the_recorder_is_silent(
    all_well: Presence, redis: Redis, settings: Callable[..., Settings]
) -> None:
    redis.delete("aqr:recorder:r1")
    response = create_app(settings(groq_api_key="k")).test_client().get("/health")

    assert response.json["status"] == "degraded"
    assert "recorder is silent" in response.json["parts"]["recorder"]["error"]


@pytest.mark.usefixtures("all_well")
def test_it_says_which_models_are_retired_and_which_targets_are_held(
    redis: Redis, settings: Callable[..., Settings]
) -> None:
    admission, lane = Admission(redis, AdmissionLimits()), Lane(Target("groq", "openai/gpt-oss-20b"), key_id("k"))
    granted = admission.admit([lane], 10)
    assert isinstance(granted, Grant)
    admission.settle(granted, CallReport("throttled", 5.0, retry_after_s=60))
    found = create_app(settings(groq_api_key="k")).test_client().get("/health").json

    assert found["status"] == "degraded"
    providers = found["parts"]["providers"]
    assert {lane: held["state"] for lane, held in providers["held"].items()} == {str(lane): "paused"}
    assert providers["retired"][0]["configured_model"] == "llama-3.1-8b-instant"
    assert providers["retired"][0]["model"] == "openai/gpt-oss-20b"


def test_a_worker_that_falls_silent_is_forgotten(redis: Redis) -> None:
    presence = Presence(redis)
    presence.show_worker("w1", ["simple"], 4)
    presence.show_worker("w2", ["simple"], 4)
    redis.delete("aqr:worker:simple:w1")

    assert presence.workers("simple") == {"w2": 4}
    assert redis.smembers("aqr:names:worker:simple") == {b"w2"}


def test_the_recorders_together_are_as_bad_as_the_worst(redis: Redis) -> None:
    presence = Presence(redis)
    presence.report_recorder("r1", {**FINE, "kafka": "standby", "waiting_events": 3})
    presence.report_recorder("r2", {**FINE, "kafka": "ok", "database": "down"})
    assert presence.recorder() == {"database": "down", "kafka": "ok", "waiting_events": 3}

    presence.report_recorder("r2", {**FINE, "kafka": "down"})
    assert presence.recorder() == {"database": "ok", "kafka": "down", "waiting_events": 3}


def test_nobody_is_dead_because_redis_is_full(redis: Redis) -> None:
    presence = Presence(redis)
    presence.show_worker("w1", ["simple"], 4)
    redis.config_set("maxmemory", 1)
    try:
        presence.show_worker("w2", ["simple"], 4)
    finally:
        redis.config_set("maxmemory", 0)

    assert set(presence.workers("simple")) == {"w1", "w2"}
