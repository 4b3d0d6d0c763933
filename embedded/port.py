"""Ports on this machine: find a free one, or see whether a wanted one is free."""

import secrets
import socket

# Below the range of outgoing connections (from 32768 on Linux, 49152 on macOS). A client that keeps trying a
# dead server inside that range can be given the server's own port, connect to itself, and so keep the server
# from ever coming back.
_LOWEST, _HIGHEST = 20_000, 32_000
_handed_out: set[int] = set()  # those may be taken any moment


def free_port() -> int:
    """A port on the loopback address that nobody listens on now, and that this process has not been given before."""
    for _ in range(200):
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if port not in _handed_out and is_free(port):
            _handed_out.add(port)
            return port
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST}")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `host`:`port` now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: without it a port whose last connections are still in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError:
            return False
    return True


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something takes connections on `host`:`port`."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
