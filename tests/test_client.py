"""The shared HTTP client against a real server: deadlines, limits, connections, aborts."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from providers.call import Aborted, Call, ClientError, ConnectFailed, DeadlinePassed, Reply, ReplyCut, ReplyTooLarge
from providers.client import HttpClient
from providers.connection import SocketHold
from tests.fake_provider import KEYS, FakeProvider, Fault

DEADLINE_S = 0.4
GRACE_S = 2.0


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as server:
        yield server


@pytest.fixture
def client() -> HttpClient:
    return build_client()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that it signs itself, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    said = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fake"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([openssl, *said.split(), *names], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls_fake(certificate: Path) -> Iterator[FakeProvider]:
    with FakeProvider(certificate=certificate) as server:
        yield server


def build_client(*, max_reply_bytes: int = 1024 * 1024) -> HttpClient:
    return HttpClient(pool_size=4, connect_timeout_s=1, max_reply_bytes=max_reply_bytes)


def request(fake: FakeProvider, seconds: float = 5, text: str = "hello") -> tuple[str, dict[str, str], bytes, float]:
    headers = {"Authorization": f"Bearer {KEYS['groq']}", "Content-Type": "application/json"}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    return fake.base_url("groq") + "/chat/completions", headers, body, time.monotonic() + seconds


def post(client: HttpClient, fake: FakeProvider, seconds: float = 5, text: str = "hello") -> Reply:
    return client.post(*request(fake, seconds, text))


def test_it_returns_status_headers_and_the_whole_body(client: HttpClient, fake: FakeProvider) -> None:
    reply = post(client, fake)

    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "answer to: hello"


def test_it_returns_an_error_status_as_a_reply(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault.status(503))

    assert post(client, fake).status == 503


def test_it_gives_the_body_piece_by_piece_as_it_arrives(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault("slow_body", every=0.02))

    with client.open(*request(fake)) as call:
        chunks = call.chunks()
        pieces = [next(chunks) for _ in range(3)]

    assert call.status == 200
    assert set(b"".join(pieces)) == {ord("a")}
    assert len(b"".join(pieces)) < 50


@pytest.mark.parametrize(
    "fault",
    [
        Fault("silence"),
        Fault("slow_headers", every=0.02),
        Fault("slow_body", every=0.02),
        Fault("slow_body_without_length", every=0.02),
    ],
    ids=lambda fault: fault.kind,
)
def test_it_ends_at_the_deadline_however_the_reply_trickles(
    client: HttpClient, fake: FakeProvider, fault: Fault
) -> None:
    fake.fail_next("groq", fault)
    started = time.monotonic()

    with pytest.raises(DeadlinePassed):
        post(client, fake, DEADLINE_S)

    assert DEADLINE_S <= time.monotonic() - started < DEADLINE_S + GRACE_S


def test_it_ends_at_the_deadline_on_a_reused_connection_too(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    fake.fail_next("groq", Fault("slow_headers", every=0.02))
    started = time.monotonic()

    with pytest.raises(DeadlinePassed):
        post(client, fake, DEADLINE_S)

    assert time.monotonic() - started < DEADLINE_S + GRACE_S
    assert fake.connections == 1


def test_it_sends_nothing_when_the_deadline_has_passed(client: HttpClient, fake: FakeProvider) -> None:
    with pytest.raises(DeadlinePassed):
        post(client, fake, -0.1)

    assert fake.connections == 0


def test_the_deadline_of_a_finished_call_does_not_strike_the_next_on_its_connection(
    client: HttpClient, fake: FakeProvider
) -> None:
    post(client, fake, 0.3)

    reply = post(client, fake, 5, "[[latency_ms=600]]")

    assert reply.status == 200
    assert fake.connections == 1


def test_one_connection_serves_calls_one_after_the_other(client: HttpClient, fake: FakeProvider) -> None:
    for _ in range(5):
        post(client, fake)

    assert (fake.calls["groq"], fake.connections) == (5, 1)


@pytest.mark.parametrize("fault", ["endless", "bomb"])
def test_it_stops_reading_over_the_size_limit(client: HttpClient, fake: FakeProvider, fault: str) -> None:
    fake.fail_next("groq", Fault(fault))

    with pytest.raises(ReplyTooLarge):
        post(client, fake)


def test_a_reply_of_just_the_limit_is_read(fake: FakeProvider) -> None:
    size = len(post(build_client(), fake).body)

    assert len(post(build_client(max_reply_bytes=size), fake).body) == size
    with pytest.raises(ReplyTooLarge):
        post(build_client(max_reply_bytes=size - 1), fake)


@pytest.mark.parametrize("fault", ["reset", "hang_up", "cut", "cut_chunk", "garbage"])
def test_it_tells_a_reply_that_was_cut(client: HttpClient, fake: FakeProvider, fault: str) -> None:
    fake.fail_next("groq", Fault(fault))

    with pytest.raises(ReplyCut):
        post(client, fake)

    assert fake.calls["groq"] == 1


def test_a_refused_connection_says_so(client: HttpClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    with pytest.raises(ConnectFailed, match="Connection refused"):
        client.post(f"http://127.0.0.1:{port}/v1", {}, b"", time.monotonic() + 5)


def test_a_server_without_tls_fails_the_handshake(client: HttpClient, fake: FakeProvider) -> None:
    url, headers, body, deadline = request(fake)

    with pytest.raises(ConnectFailed):
        client.post(url.replace("http:", "https:"), headers, body, deadline)


def test_a_handshake_without_an_answer_ends_at_the_deadline(client: HttpClient) -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}/v1"
        with pytest.raises(DeadlinePassed):
            client.post(url, {}, b"", started + DEADLINE_S)

    assert time.monotonic() - started < DEADLINE_S + GRACE_S


@pytest.mark.parametrize("url", ["no scheme", "http://", "ftp://127.0.0.1/"])
def test_a_base_url_that_is_none_is_a_failed_connection(client: HttpClient, url: str) -> None:
    with pytest.raises(ConnectFailed):
        client.post(url, {}, b"", time.monotonic() + 1)


@pytest.mark.parametrize("key", ["two\nlines", "ключ"])
def test_a_key_that_no_header_can_carry_is_not_in_the_error(client: HttpClient, fake: FakeProvider, key: str) -> None:
    url, _, body, deadline = request(fake)

    with pytest.raises(ConnectFailed) as caught:
        client.post(url, {"Authorization": f"Bearer {key}"}, body, deadline)

    assert key not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_it_does_not_follow_a_redirect(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault("redirect"))

    assert post(client, fake).status == 307
    assert fake.calls["stolen"] == 0


def test_a_kept_alive_connection_that_the_server_drops_costs_no_call(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    fake.fail_next("groq", Fault("hang_up"))

    assert post(client, fake).status == 200
    assert (fake.calls["groq"], fake.connections) == (3, 2)


def test_it_tries_a_dropped_connection_only_once_again(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    fake.fail_next("groq", Fault("hang_up"), Fault("hang_up"))

    with pytest.raises(ReplyCut):
        post(client, fake)

    assert fake.calls["groq"] == 3


def test_a_kept_alive_connection_that_breaks_late_is_not_tried_again(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    fake.fail_next("groq", Fault("hang_up"))

    with pytest.raises(ReplyCut):
        post(client, fake, text="[[latency_ms=1100]]")

    assert fake.calls["groq"] == 2


def test_a_call_that_has_its_reply_cannot_end_the_next_on_its_connection(
    client: HttpClient, fake: FakeProvider
) -> None:
    with client.open(*request(fake)) as first:
        assert list(first.chunks())
        fake.fail_next("groq", Fault("slow_body", every=0.02))
        with client.open(*request(fake)) as second:
            first.abort()
            chunks = second.chunks()
            pieces = [next(chunks) for _ in range(10)]

    assert all(pieces)
    assert (fake.calls["groq"], fake.connections) == (2, 1)


def test_a_dropped_connection_takes_the_other_idle_ones_with_it(client: HttpClient, fake: FakeProvider) -> None:
    def call_twice_at_once() -> None:
        with client.open(*request(fake)) as first, client.open(*request(fake)) as second:
            assert list(first.chunks()) and list(second.chunks())

    call_twice_at_once()
    fake.fail_next("groq", Fault("hang_up"))
    post(client, fake)
    call_twice_at_once()

    assert fake.connections == 4


def test_a_call_is_made_though_another_one_has_just_closed_the_connections(
    client: HttpClient, fake: FakeProvider
) -> None:
    post(client, fake)
    call = client.open(*request(fake))
    client.close()

    assert call.reply().status == 200


def test_a_call_that_is_left_early_closes_its_connection(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        call = client.open(url, {}, b"", time.monotonic() + 20)
        served: list[bytes] = []
        serving = threading.Thread(target=serve_until_hang_up, args=(server, served))
        serving.start()
        with call:
            assert next(call.chunks()) == b"begun"
        serving.join(3)

    assert served == [b""]


def test_a_socket_that_comes_after_the_end_of_its_call_is_shut_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hold = SocketHold()
        hold.shut()

        hold.take(ours.fileno(), is_reused=False)

        theirs.settimeout(1)
        assert theirs.recv(1) == b""
        hold.let_go()


def test_a_connection_that_the_deadline_has_shut_is_not_used_again(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault("slow_body", every=0.02))
    with pytest.raises(DeadlinePassed):
        post(client, fake, DEADLINE_S)

    assert post(client, fake).status == 200
    assert fake.connections == 2


@pytest.mark.parametrize("fault", [Fault("silence"), Fault("slow_body", every=0.02)], ids=lambda f: f.kind)
def test_another_thread_can_abort_a_call(client: HttpClient, fake: FakeProvider, fault: Fault) -> None:
    fake.fail_next("groq", fault)
    call = client.open(*request(fake, 20))
    ended: list[ClientError] = []
    waiting = threading.Thread(target=read_to_the_end, args=(call, ended))
    waiting.start()
    wait_until(lambda: fake.calls["groq"] == 1)

    call.abort()
    waiting.join(2)

    assert [type(error) for error in ended] == [Aborted]


def test_a_call_that_is_aborted_before_it_starts_sends_nothing(client: HttpClient, fake: FakeProvider) -> None:
    call = client.open(*request(fake))
    call.abort()

    with pytest.raises(Aborted), call:
        pass

    assert fake.calls["groq"] == 0


def test_a_call_is_aborted_while_it_connects(client: HttpClient) -> None:
    with server_that_does_not_accept() as url:
        call = client.open(url, {}, b"", time.monotonic() + 20)
        ended: list[ClientError] = []
        before = connecting_to(url)
        waiting = threading.Thread(target=read_to_the_end, args=(call, ended))
        waiting.start()
        wait_until(lambda: connecting_to(url) > before)

        call.abort()
        waiting.join(0.5)

    assert [(type(error), error.is_sent) for error in ended] == [(Aborted, False)]


def test_it_says_whether_anything_was_sent(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault("silence"), Fault("cut"), Fault("endless"))
    for _ in range(3):
        with pytest.raises(ClientError) as caught:
            post(client, fake, DEADLINE_S)
        assert caught.value.is_sent

    with server_that_does_not_accept() as url, pytest.raises(ClientError) as caught:
        client.post(url, {}, b"", time.monotonic() + DEADLINE_S)
    assert not caught.value.is_sent


def test_an_error_status_is_a_reply_even_where_its_body_is_cut(client: HttpClient, fake: FakeProvider) -> None:
    fake.fail_next("groq", Fault("cut_error", 503))

    reply = post(client, fake)
    assert (reply.status, reply.body) == (503, b"")


def test_loopback_is_reached_without_the_proxy_of_the_environment(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert post(build_client(), fake).status == 200


def test_other_hosts_are_reached_through_the_proxy_of_the_environment(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{fake.port}")
    monkeypatch.delenv("no_proxy", raising=False)

    reply = build_client().post("http://provider.invalid/v1", {}, b"{}", time.monotonic() + 5)

    assert (reply.status, fake.connections) == (404, 1)


def test_a_proxy_that_trickles_its_tunnel_cannot_outlive_the_deadline(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        threading.Thread(target=trickle_to_one, args=(proxy,), daemon=True).start()
        with pytest.raises(DeadlinePassed):
            build_client().post("https://provider.invalid/v1", {}, b"{}", started + DEADLINE_S)

    assert time.monotonic() - started < DEADLINE_S + GRACE_S


def test_a_forked_child_has_deadlines_and_connections_of_its_own(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    fake.fail_next("groq", Fault("slow_headers", every=0.02))

    child = os.fork()
    if child == 0:
        try:
            post(client, fake, DEADLINE_S)
        except DeadlinePassed:
            os._exit(7)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert fake.connections == 2
    assert post(client, fake).status == 200


def test_many_threads_each_get_their_own_answer(client: HttpClient, fake: FakeProvider) -> None:
    answers: dict[int, bytes] = {}

    def ask(number: int) -> None:
        answers[number] = post(client, fake, text=f"question-{number}-").body

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)

    assert all(f"question-{number}-".encode() in answers[number] for number in range(20))


def test_it_leaves_no_descriptors_open(client: HttpClient, fake: FakeProvider) -> None:
    post(client, fake)
    before = len(os.listdir("/proc/self/fd"))

    for fault in ("reset", "cut", "hang_up", "endless"):
        client.close()
        fake.fail_next("groq", Fault(fault))
        with pytest.raises(ClientError):
            post(client, fake)

    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_it_trusts_the_ca_bundle_of_the_environment(
    tls_fake: FakeProvider, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    client = build_client()

    assert [post(client, tls_fake).status, post(client, tls_fake).status] == [200, 200]
    assert tls_fake.connections == 1


def test_a_certificate_that_it_does_not_trust_is_a_failed_connection(
    client: HttpClient, tls_fake: FakeProvider
) -> None:
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        post(client, tls_fake)

    assert tls_fake.calls["groq"] == 0


@pytest.mark.parametrize("fault", ["slow_headers", "slow_body_without_length", "silence"])
def test_it_ends_at_the_deadline_over_tls_too(
    tls_fake: FakeProvider, certificate: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    tls_fake.fail_next("groq", Fault(fault, every=0.02))
    started = time.monotonic()

    with pytest.raises(DeadlinePassed):
        post(build_client(), tls_fake, DEADLINE_S)

    assert DEADLINE_S <= time.monotonic() - started < DEADLINE_S + GRACE_S


def read_to_the_end(call: Call, ended: list[ClientError]) -> None:
    try:
        with call:
            for _ in call.chunks():
                pass
    except ClientError as error:
        ended.append(error)


@contextmanager
def server_that_does_not_accept() -> Iterator[str]:
    """A port whose queue of connections is full, so that further ones wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/v1"


def connecting_to(url: str) -> int:
    """How many connections to the address wait for its answer (Linux's SYN_SENT)."""
    port = f"{urlsplit(url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port}") and row[3] == "02" for row in rows)


def serve_until_hang_up(server: socket.socket, served: list[bytes]) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbegun")
        connection.settimeout(3)
        served.append(connection.recv(1))


def trickle_to_one(proxy: socket.socket) -> None:
    connection, _ = proxy.accept()
    with connection, suppress(OSError):
        for _ in range(200):
            connection.sendall(b"H")
            time.sleep(0.02)


def wait_until(condition: Callable[[], bool], seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
