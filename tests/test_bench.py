"""The harness of `make bench`: its load and its provider on real sockets, its arithmetic on made-up rows."""

import json
import os
import random
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import choose, main
from bench.cell import CELLS
from bench.comparison import visits
from bench.goal import GOALS, Figure, Goal, verdicts
from bench.load import POOL, Call, closed_loop, new_seed, pooled_tokens, unique_tokens
from bench.machine import describe, memory_mb, usage
from bench.open_loop import hold, open_loop
from bench.product import SETTINGS, environment
from bench.provider import FakeProvider, start_provider
from bench.rival import CHAT, QUERY, RIVALS
from bench.special import SPECIALS
from bench.table import number, render
from config import Settings
from embedded.supervisor import Supervisor

Reply = Callable[[int, bytes], bytes]


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def one_at_a_time(reply: Reply) -> Iterator[Call]:
    """A server of one thread: what it does for one request, all connections wait for. `reply` gets number and bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening, reply), daemon=True)
        thread.start()
        yield Call(listening.getsockname()[1], "/", QUERY)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def serve(listening: socket.socket, reply: Reply) -> None:
    selector, served = selectors.DefaultSelector(), 0
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                try:
                    selector.register(listening.accept()[0], selectors.EVENT_READ)
                except OSError:  # the test is over
                    selector.close()
                    return
                continue
            connection: Any = key.fileobj
            try:
                asked = connection.recv(65536)
            except ConnectionResetError:
                asked = b""
            answer = reply(served, asked) if asked else b""
            served += bool(asked)
            if answer:
                connection.sendall(answer)
            else:
                selector.unregister(connection)
                connection.close()


def echo(_number: int, asked: bytes) -> bytes:
    return http(200, asked.partition(b"\r\n\r\n")[2])


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[FakeProvider]:
    with Supervisor(tmp_path, environment()) as supervisor:
        yield start_provider(supervisor)


def chat(provider: FakeProvider, path: str = "/v1") -> requests.Response:
    body = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Who is q12?"}]}
    return requests.post(f"{provider.url}{path}/chat/completions", json=body, timeout=10)


def test_the_provider_answers_as_openai_does(provider: FakeProvider) -> None:
    reply = chat(provider).json()

    assert reply["object"] == "chat.completion" and reply["model"] == "m"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert "Who is q12?" in reply["choices"][0]["message"]["content"]
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
    assert "x_groq" not in reply


def test_the_provider_answers_as_groq_does_on_groqs_path(provider: FakeProvider) -> None:
    response = chat(provider, "/openai/v1")

    assert response.json()["x_groq"]["id"] and response.json()["usage"]["total_time"] > 0
    assert int(response.headers["x-ratelimit-remaining-requests"]) > 0


def test_the_provider_is_slow_or_fails_as_it_is_told_and_counts_its_calls(provider: FakeProvider) -> None:
    provider.control(latency_ms=80, fail_every=2)
    began = time.monotonic()
    statuses = [chat(provider).status_code for _ in range(4)]

    assert statuses == [200, 503, 200, 503]
    assert time.monotonic() - began >= 0.16
    assert (provider.control().calls, provider.control().failed) == (4, 2)
    assert provider.control(latency_ms=0).calls == 0


def test_the_provider_fails_as_groq_alone_so_that_the_fallback_answers(provider: FakeProvider) -> None:
    provider.control(fail_every=2, fails_as_groq=True)

    assert [chat(provider, "/openai/v1").status_code for _ in range(2)] == [200, 503]
    assert [chat(provider, "/v1").status_code for _ in range(2)] == [200, 200]


def test_the_provider_keeps_a_thousand_connections(provider: FakeProvider) -> None:
    provider.control(latency_ms=300)

    held = hold(Call(provider.port, "/v1/chat/completions", CHAT), 1000, 0.1, unique_tokens(new_seed()))

    assert (held.asked, held.answered, held.failed) == (100, 100, 0)  # those that fell due in the tenth of a second
    assert provider.control().most_waiting == 100


def test_a_503_that_says_when_to_come_back_is_told_apart() -> None:
    def refuse(number: int, _asked: bytes) -> bytes:
        plain = http(503, b"{}")
        return plain if number % 2 else plain.replace(b"\r\n", b"\r\nRetry-After: 1\r\n", 1)

    with one_at_a_time(refuse) as call:
        seen = open_loop(call, 100, 0.1, unique_tokens(new_seed()), connections=1)
    assert (seen.unavailable, seen.other, seen.failed) == (5, 5, 10)


def test_every_request_of_an_open_loop_is_sent_and_answered_once() -> None:
    with one_at_a_time(echo) as call:
        outcome = open_loop(call, 400, 0.5, unique_tokens(new_seed()))

    assert (outcome.asked, outcome.answered, outcome.failed) == (200, 200, 0)
    assert outcome.p50_ms <= outcome.p95_ms <= outcome.p99_ms <= outcome.max_ms


def test_a_stall_is_charged_to_every_request_that_fell_due_in_it() -> None:
    """A closed loop would see it once: 1 slow answer of 200."""

    def stalls(number: int, asked: bytes) -> bytes:
        if number == 50:
            time.sleep(0.5)
        return echo(number, asked)

    with one_at_a_time(stalls) as call:
        outcome = open_loop(call, 200, 1, unique_tokens(new_seed()), connections=4)

    assert (outcome.answered, outcome.failed) == (200, 0)
    assert outcome.max_ms >= 490
    assert outcome.p95_ms >= 400  # 100 fell due in the stall; of all 200 a twentieth waited for more than 0.45 s
    assert outcome.p50_ms < outcome.p95_ms


def test_an_answer_to_another_question_is_wrong() -> None:
    with one_at_a_time(lambda number, asked: http(200, b'{"response": "q0000x0000000"}')) as call:
        outcome = open_loop(call, 100, 0.1, unique_tokens("other"))

    assert (outcome.wrong, outcome.answered, outcome.failed) == (10, 0, 10)
    assert "q0000x" in outcome.sample


def test_refusals_are_no_failures_and_are_not_asked_again_at_once() -> None:
    with one_at_a_time(lambda number, asked: http((202, 429, 503)[number % 3], b"{}")) as call:
        outcome = hold(call, 3, 1.5, unique_tokens(new_seed()), pause_s=10)

    assert (outcome.accepted, outcome.refused, outcome.other, outcome.failed) == (1, 1, 1, 1)


def test_a_connection_that_is_cut_is_one_failure_and_is_made_anew() -> None:
    with one_at_a_time(lambda number, asked: b"" if number == 3 else echo(number, asked)) as call:
        outcome = open_loop(call, 100, 0.2, unique_tokens(new_seed()), connections=2)

    assert (outcome.broken, outcome.answered) == (1, 19)


@pytest.mark.slow
def test_wrk_checks_every_answer() -> None:
    if shutil.which("wrk") is None:
        assert not os.environ.get("CI"), "wrk is missing: bench/install.sh"
        pytest.skip("wrk is missing: bench/install.sh")

    def sometimes_mixed_up(number: int, asked: bytes) -> bytes:
        if number % 10 == 9:
            return http(429, b"{}")
        return http(200, b"another") if number % 10 == 5 else echo(number, asked)

    with one_at_a_time(sometimes_mixed_up) as call:
        missed = closed_loop(call, 4, 1, seed=new_seed())
        hit = closed_loop(call, 4, 1, seed=new_seed(), pool=POOL)

    for outcome in (missed, hit):
        assert outcome.answered > 10
        assert outcome.wrong == pytest.approx(outcome.answered / 8, abs=5)
        assert outcome.refused == pytest.approx(outcome.answered / 8, abs=5)
        assert 0 <= outcome.asked - outcome.answered - outcome.wrong - outcome.refused <= 4


def test_tokens_are_of_one_length_and_a_runs_own() -> None:
    one, other = new_seed(), new_seed()
    tokens = unique_tokens(one)

    assert one != other
    assert len({next(tokens) for _ in range(1000)}) == 1000
    assert {len(next(pooled_tokens(seed))) for seed in (one, other)} == {len(next(tokens))}
    assert len({token for token, _ in zip(pooled_tokens(one), range(5000), strict=False)}) == POOL


@pytest.mark.parametrize("body", [CHAT, QUERY, *(rival.body for rival in RIVALS.values())])
def test_a_request_says_its_length_whatever_its_token(body: str) -> None:
    head, _, sent = (
        Call(1, "/p", body)
        .request()
        .replace(b"@TOKEN@", next(unique_tokens(new_seed())).encode())
        .partition(b"\r\n\r\n")
    )

    assert f"Content-Length: {len(sent)}".encode() in head
    assert json.loads(sent)


def test_cpu_and_memory_of_a_group_count_its_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('done', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as group:
        roots = {"burner": group.pid}
        assert group.stdout and group.stdout.readline()
        used, memory = usage(roots).groups["burner"], memory_mb(roots)["burner"]
        group.communicate(b"\n")

    assert used >= 0.28
    assert memory > 1
    assert usage(roots).groups["burner"] == 0  # gone


def row(target: str, cell: str, repetition: int, **figures: float) -> dict[str, Any]:
    return {"target": target, "cell": cell, "repetition": repetition, **figures}


TIMES = Goal(
    "x", Figure("hit@32", "per_second"), 10, is_least=True, beside=Figure("hit@32", "per_second", "litellm"), unit="×"
)
rates = st.floats(1, 1e5)


@given(st.lists(st.tuples(rates, st.floats(0.1, 100)), min_size=1, max_size=9), st.randoms())
def test_a_ratio_is_taken_within_a_repetition_so_a_slow_spell_cancels_out(
    repetitions: list[tuple[float, float]], chance: random.Random
) -> None:
    """Ours is 12 times theirs in every repetition, however fast the machine was then."""
    rows = [
        row(target, "hit@32", number, per_second=rate * times)
        for number, (rate, _) in enumerate(repetitions)
        for target, times in (("product", 12), ("litellm", 1))
    ]
    chance.shuffle(rows)

    assert TIMES.measured(rows) == pytest.approx(12)


@given(st.lists(rates, min_size=1, max_size=9))
def test_a_figure_is_the_median_of_its_repetitions(found: list[float]) -> None:
    goal = Goal("x", Figure("hit@1", "p50_ms"), 5, is_least=False)
    measured = goal.measured([row("product", "hit@1", n, p50_ms=value) for n, value in enumerate(found)])

    assert measured is not None and min(found) <= measured <= max(found)
    assert sum(value <= measured for value in found) * 2 >= len(found)
    assert sum(value >= measured for value in found) * 2 >= len(found)


def test_a_goal_without_its_rival_is_not_judged() -> None:
    rows = [row("product", "hit@32", 1, per_second=1000.0), row("litellm", "hit@32", 2, per_second=10.0)]

    assert TIMES.measured(rows) is None
    assert next(v for v in verdicts(rows) if v["goal"] == "hit@32: throughput beside litellm")["met"] is None


@pytest.mark.parametrize(("is_least", "met"), [(True, [False, True, True]), (False, [True, True, False])])
def test_a_bound_that_is_just_reached_is_met(is_least: bool, met: list[bool]) -> None:
    goal = Goal("x", Figure("hit@1", "p50_ms"), 5, is_least=is_least)

    assert [goal.is_met(value) for value in (4.9, 5.0, 5.1)] == met


def test_every_goal_is_about_a_cell_that_exists() -> None:
    special = {"memory", "workers", *(each.name for each in SPECIALS)}
    for goal in GOALS:
        cell = goal.figure.cell
        known = cell in {each.name for each in CELLS} or cell.split("=")[0].split("@")[0].split("_")[0] in special
        assert known or cell in special or cell.startswith(("hit@32, 10^", "miss0@8, 10^")), cell


def test_every_raised_setting_is_one_and_they_fit_together() -> None:
    for name, changes in SETTINGS.items():
        given_values: dict[str, Any] = {key.lower(): value for key, value in changes.items()}
        assert set(given_values) <= set(Settings.model_fields), name
        Settings(**given_values)
    assert {each.settings for each in (*CELLS, *SPECIALS)} <= set(SETTINGS)


def test_cells_are_chosen_by_name_and_by_kind() -> None:
    assert [cell.name for cell in choose("hit,miss0@32", False)] == ["hit@1", "hit@32", "hit@200", "miss0@32"]
    assert [cell.name for cell in choose("growth", True)] == ["growth", "growth"]
    assert len(choose("", False)) == 4
    assert len(choose("", True)) == len(CELLS) + len(SPECIALS)
    with pytest.raises(SystemExit, match="No such cell: hot"):
        choose("hot", False)


def test_the_product_is_started_anew_for_other_settings_and_a_rival_is_not() -> None:
    every = choose("", True)

    assert [settings for settings, _ in visits("product", every)] == list(SETTINGS)
    assert [settings for settings, _ in visits("litellm", every)] == ["default"]
    assert sum(len(cells) for _, cells in visits("product", every)) == len(every)
    assert not any("hit" in cell.name for _, cells in visits("direct", every) for cell in cells)


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "machine": describe(),
        "started": "now",
        "database": "sqlite",
        "repetitions": 1,
        "targets": {"product": "ours"},
        "left_out": {"portkey": "npm is missing"},
        "rows": rows,
    }


def test_the_table_shows_ratios_verdicts_memory_and_what_was_left_out() -> None:
    groups = {"web": 1.5, "redis": 0.25}
    load = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "failed": 0, "cpu_ms": 1.5, "noise_cores": 0.05}
    rows: list[dict[str, Any]] = [
        {**row("product", "hit@32", 1, per_second=1600.0), **load, "cpu_ms_by_group": groups},
        {**row("litellm", "hit@32", 1, per_second=100.0), **load},
        {**row("product", "memory_idle", 1, memory_mb=500.0), "memory_mb_by_group": {"web": 500.0}},
    ]
    shown = render(result(rows))

    assert "| hit@32: throughput beside litellm | ≥ 15× | 16× | yes |" in shown
    assert "| memory_idle: memory of the whole stack | ≤ 450 MB | 500 MB | **no** |" in shown
    assert "web 1.50, (redis 0.250)" in shown
    assert "| hit@32 | litellm | 100 | 16 |" in shown
    assert "Not measured: portkey: npm is missing" in shown
    assert "Noisy" not in shown


def test_the_table_warns_of_a_noisy_machine() -> None:
    shown = render(result([row("product", "hit@32", 1, per_second=1.0, noise_cores=0.9)]))

    assert "**Noisy machine**: in 1 of 1 rows" in shown and "at most 90%" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.slow
def test_the_whole_harness_measures_the_product(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("wrk", "redis-server"):
        if shutil.which(program) is None:
            assert not os.environ.get("CI"), f"{program} is missing: bench/install.sh"
            pytest.skip(f"{program} is missing: bench/install.sh")
    file = tmp_path / "latest.json"
    asked = ["--targets", "direct,product", "--only", "hit@1,miss0@1", "--seconds", "1", "--file", str(file)]

    assert main(asked) == 0

    rows = {(row["target"], row["cell"]): row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {("direct", "miss0@1"), ("product", "hit@1"), ("product", "miss0@1")}
    assert all(row["answered"] > 0 and row["failed"] == 0 for row in rows.values())
    assert rows["product", "hit@1"]["calls_per_request"] == 0
    assert rows["product", "miss0@1"]["calls_per_request"] == pytest.approx(1, abs=0.01)
    assert {"web", "worker-medium", "recorder", "redis"} <= set(rows["product", "miss0@1"]["cpu_ms_by_group"])
    assert "| miss0@1: p50 over the provider's own | ≤ 6 ms |" in capsys.readouterr().out
