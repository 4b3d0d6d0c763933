"""Runs the HTTP gateway inside the `tensorzero` package, in that package's own environment, with its cache in Redis.

`tensorzero_gateway.py CONFIG REDIS_URL`. It takes a free port, and its address is printed as `BASE http://…`.
"""

import sys
import threading

from tensorzero.tensorzero import _start_http_gateway

gateway = _start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=sys.argv[2], async_setup=False
)
sys.stdout.write(f"BASE {gateway.base_url}\n")
sys.stdout.flush()
threading.Event().wait()
