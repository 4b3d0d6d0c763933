"""Starts one target at a time, whatever it is: the fake provider itself, the product, or a rival."""

import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.install import install
from bench.load import Call
from bench.machine import Roots
from bench.product import SETTINGS, Product, environment, product, redis_server
from bench.provider import FakeProvider
from bench.rival import CHAT, QUERY, RIVALS, Rival
from embedded.port import free_port
from embedded.supervisor import Supervisor

TARGETS = ("direct", "product", *RIVALS)
NOTES = {
    "direct": "the fake provider itself, asked without any gateway",
    "product": "AI Query Router: web (2 processes), three workers, recorder, Flower; keys, events and metrics on",
} | {rival.name: rival.note for rival in RIVALS.values()}
_READY_S = 300  # a machine under load; LiteLLM alone imports for ten quiet seconds
_ADDRESS = re.compile(r"^BASE http://[^:]+:(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Ground:
    """What every target stands on: a folder that is its own, the fake provider, a kind of database."""

    folder: Path
    provider: FakeProvider
    database: str = "sqlite"


@dataclass(frozen=True)
class Running:
    """A started target. `roots` are read anew, since workers may be added; `product` is None for all others."""

    call: Call
    roots: Callable[[], Roots]
    settle_s: float = 1
    product: Product | None = None


@contextmanager
def start(name: str, ground: Ground, settings: str = "default") -> Iterator[Running]:
    """Start a target on an empty Redis and stop it at the end. `settings`, a row of SETTINGS, are the product's alone.

    Raises NotInstalled, or ProcessFailed where it does not come up.
    """
    if name == "direct":
        call = Call(ground.provider.port, "/v1/chat/completions", CHAT)
        yield Running(call, lambda: {"provider": ground.provider.pid}, 0)
    elif name == "product":
        with product(
            ground.folder, ground.provider.url, settings=SETTINGS[settings], database=ground.database
        ) as service:
            call = Call(service.port, "/api/v1/query", QUERY, {"Authorization": f"Bearer {service.key}"})
            yield Running(call, lambda: service.roots, 2, service)
    else:
        with _rival(RIVALS[name], ground) as running:
            yield running


@contextmanager
def _rival(rival: Rival, ground: Ground) -> Iterator[Running]:
    home, port, redis = install(rival), free_port(), redis_server(ground.folder, free_port())
    names = {
        "home": str(home),
        "folder": str(ground.folder),
        "port": str(port),
        "provider": ground.provider.url,
        "redis_url": redis.env["REDIS_URL"],
        "redis_port": redis.env["REDIS_URL"].rpartition(":")[2].partition("/")[0],
    }
    for file, text in rival.files.items():
        (ground.folder / file).write_text(Template(text).substitute(names))
    env = environment() | {"TMPDIR": str(ground.folder)} | _filled(rival.env, names)
    with Supervisor(ground.folder, env) as supervisor:
        redis.start(supervisor)
        quoted = {name: shlex.quote(text) for name, text in names.items()}
        supervisor.start(rival.name, Template(rival.command).substitute(quoted))
        supervisor.wait(lambda: _port(rival, port, supervisor) > 0, _READY_S, rival.name)
        port = _port(rival, port, supervisor)
        supervisor.wait(lambda: _answers(port, rival.ready), _READY_S, rival.name)
        roots = {name: supervisor.pid(name) or 0 for name in (rival.name, redis.name)}
        call = Call(port, rival.path, rival.body, _filled(rival.headers, names))
        yield Running(call, lambda: roots, rival.settle_s)


def _filled(texts: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {name: Template(text).substitute(names) for name, text in texts.items()}


def _port(rival: Rival, wanted: int, supervisor: Supervisor) -> int:
    """Where it listens; 0 while it has not said so."""
    if not rival.picks_port:
        return wanted
    found = _ADDRESS.search(supervisor.log(rival.name).read_text("utf-8", "replace"))
    return int(found[1]) if found else 0


def _answers(port: int, path: str) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
