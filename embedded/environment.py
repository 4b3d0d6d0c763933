"""What is configured, what is embedded, and the environment in which the processes find either."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from config import Settings, env_file
from embedded import broker, model, valkey
from embedded.port import free_port
from embedded.server import Server


def missing_servers(settings: Settings, data_dir: Path) -> list[Server]:
    """The embedded servers for what neither the environment nor `.env` names."""
    named = settings.model_fields_set
    servers = []
    if not named & {"redis_url", "redis_host"}:
        servers.append(valkey.server(data_dir, free_port()))
    if "kafka_bootstrap_servers" not in named:
        servers.append(broker.server(free_port()))
    if settings.uses_local_model and "local_base_url" not in named:
        servers.append(model.server(free_port()))
    return servers


def located(settings: Settings, data_dir: Path, servers: list[Server]) -> dict[str, str]:
    """Where the chosen parts are, and the ports. No secret may be in it: it is written to a file."""
    found = {"HOST": settings.host, "PORT": str(settings.port), "FLOWER_PORT": str(settings.flower_port)}
    if "database_url" not in settings.model_fields_set:
        found["DATABASE_URL"] = f"sqlite:///{data_dir}/router.db"
    for server in servers:
        found.update(server.env)
    return found


def child_env(settings: Settings, found: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process: `.env`, over it the launcher's own, over both what was `found`."""
    dotenv = {key.upper(): value for key, value in dotenv_values(env_file()).items()}
    # Empty means "not set", as it does in Settings; Flower would take an empty FLOWER_BASIC_AUTH for a login.
    env = {key: value for layer in (dotenv, os.environ) for key, value in layer.items() if value}
    env.update(found)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    env["ENV_FILE"] = os.devnull  # all of it is merged above, from the launcher's own folder
    # A proxy of the user's must not stand between the service and its own servers.
    env["NO_PROXY"] = env["no_proxy"] = ",".join(filter(None, [env.get("NO_PROXY"), "127.0.0.1,localhost"]))
    if not settings.flower_basic_auth and env.get("FLOWER_ADDRESS", "127.0.0.1") == "127.0.0.1":
        env.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
    return env
