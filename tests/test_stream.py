"""Following a job: an event for each change, nothing twice, and never more streams than may wait."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis

from config import Settings
from tests.web_case import EchoChain, app, ask, chain, client, worker
from webapp import create_app

__all__ = ["app", "chain", "client", "worker"]  # fixtures


def follow(client: FlaskClient, job_id: str, **headers: str) -> Any:
    return client.get(f"/api/v1/jobs/{job_id}/events", headers=headers)


def events(response: Any) -> Iterator[dict[str, str]]:
    """Events as a client reads them, each as it comes; comments and `retry` are none."""
    for block in response.response:
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if line and line[0] != ":")
        if "data" in fields:
            yield fields


def test_it_tells_each_change_until_the_end(client: FlaskClient, chain: EchoChain, worker: None) -> None:
    chain.gate.clear()
    job_id = ask(client, wait_seconds=0).json["id"]

    told = []
    for event in events(follow(client, job_id)):
        told.append(event)
        if event["event"] == "running":
            chain.gate.set()
    assert [event["event"] for event in told][-2:] == ["running", "completed"]
    last = json.loads(told[-1]["data"])
    assert last == client.get(f"/api/v1/jobs/{job_id}").json
    assert last["result"]["response"] == "answer to: What is AI?"


@pytest.mark.usefixtures("worker")
def test_it_does_not_repeat_what_the_client_has_seen(client: FlaskClient) -> None:
    job_id = ask(client).json["id"]
    [ended] = events(follow(client, job_id))

    assert list(events(follow(client, job_id, **{"Last-Event-ID": ended["id"]}))) == []
    assert len(list(events(follow(client, job_id, **{"Last-Event-ID": "running-0-0-0"})))) == 1


def test_an_unknown_job_has_no_stream(client: FlaskClient) -> None:
    assert follow(client, "nope").json["code"] == "job_unknown"


def test_streams_are_bounded_and_give_their_place_back(redis: Redis, settings: Callable[..., Settings]) -> None:
    app = create_app(settings(groq_api_key="k", max_streams=1))
    client = app.test_client()
    job_id = ask(client, wait_seconds=0).json["id"]

    first = follow(client, job_id)
    refused = follow(app.test_client(), job_id)
    assert (refused.status_code, refused.json["code"]) == (503, "overloaded")
    first.close()
    again = follow(client, job_id)
    assert (again.status_code, again.mimetype) == (200, "text/event-stream")
    again.close()
