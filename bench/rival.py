"""The servers that the product is measured beside: where each comes from, how it is started, how it is asked.

In commands, headers and files `$home` is where it is installed, `$port` its own, `$provider` the fake provider's
address, `$redis_url` and `$redis_port` its empty Redis, `$folder` a folder for its files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

CHAT = '{"model":"fake","messages":[{"role":"user","content":"@QUESTION@"}]}'
QUERY = '{"query":"@QUESTION@"}'


@dataclass(frozen=True)
class Rival:
    """`pip` and `npm` are what is installed; `picks_port`: it prints its address as `BASE …`; `note`: for the table."""

    name: str
    command: str
    ready: str
    path: str
    body: str
    note: str
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    picks_port: bool = False
    settle_s: float = 1


FLOOR = Rival(
    name="floor",
    note="bare Flask + gunicorn gthread + one Redis GET, 2 processes of 128 threads, no keys, no records",
    command="gunicorn -b 127.0.0.1:$port -w 2 -k gthread --threads 128 --worker-connections 2000 --backlog 2048 "
    "--keep-alive 75 --no-control-socket 'bench.floor:create_app()'",
    ready="/healthz",
    path="/api/v1/query",
    body=QUERY,
    env={"REDIS_URL": "$redis_url", "PROVIDER_URL": "$provider"},
)

# As its page on production says: a worker for each core, Redis by host and port, no debug logs; and no database.
LITELLM = Rival(
    name="litellm",
    note="litellm[proxy] 1.106.2, 2 workers, Redis cache, master key, no database",
    pip=("litellm[proxy]==1.106.2",),
    command="$home/bin/litellm --config $folder/litellm.yaml --host 127.0.0.1 --port $port --num_workers 2",
    ready="/health/liveliness",
    path="/v1/chat/completions",
    body=CHAT,
    headers={"Authorization": "Bearer sk-bench"},
    env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"},
    files={
        "litellm.yaml": """\
model_list:
  - model_name: fake
    litellm_params: {model: openai/fake, api_base: $provider/v1, api_key: sk-fake}
litellm_settings:
  cache: true
  cache_params: {type: redis, host: 127.0.0.1, port: $redis_port, ttl: 3600}
  request_timeout: 600
  set_verbose: false
  json_logs: true
general_settings:
  master_key: sk-bench
"""
    },
    settle_s=5,  # its second worker may still be on its way when the first answers
)

PORTKEY = Rival(
    name="portkey",
    note="@portkey-ai/gateway 1.15.2, one Node process as shipped; this package has no cache",
    npm=("@portkey-ai/gateway@1.15.2",),
    command="node $home/node_modules/@portkey-ai/gateway/build/start-server.js --port=$port --headless",
    ready="/",
    path="/v1/chat/completions",
    body=CHAT,
    headers={
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": "$provider/v1",
        "Authorization": "Bearer sk-fake",
    },
    env={"NODE_ENV": "production"},
)

TENSORZERO = Rival(
    name="tensorzero",
    note="tensorzero 2026.6.0 (Rust), the gateway inside its Python package, Redis cache, observability off",
    pip=("tensorzero==2026.6.0",),
    command="$home/bin/python bench/tensorzero_gateway.py $folder/tensorzero.toml $redis_url",
    ready="/health",
    path="/openai/v1/chat/completions",
    body='{"model":"tensorzero::model_name::fake","messages":[{"role":"user","content":"@QUESTION@"}],'
    '"tensorzero::cache_options":{"enabled":"on"}}',
    env={"RUST_LOG": "error"},
    files={
        "tensorzero.toml": """\
[gateway]
observability.enabled = false
[models.fake]
routing = ["fake"]
[models.fake.providers.fake]
type = "openai"
model_name = "fake"
api_base = "$provider/v1"
api_key_location = "none"
"""
    },
    picks_port=True,
)

RIVALS = {rival.name: rival for rival in (FLOOR, LITELLM, PORTKEY, TENSORZERO)}
