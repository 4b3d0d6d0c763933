"""The least that a cached answer can cost in Flask, gunicorn and Redis: one GET, and the stored bytes as they are.

No keys, no validation, no record: not a product, but the bound that the product is held against.
"""

import hashlib
import os

import orjson
import redis
import urllib3
from flask import Flask, Response, request

_TTL_S = 3600


def create_app() -> Flask:
    app = Flask(__name__)
    store = redis.Redis.from_url(os.environ["REDIS_URL"])
    http = urllib3.PoolManager(maxsize=512, retries=False, timeout=120)
    url = os.environ["PROVIDER_URL"] + "/v1/chat/completions"

    def ask(question: str) -> bytes:
        body = orjson.dumps({"model": "fake", "messages": [{"role": "user", "content": question}]})
        reply = orjson.loads(http.request("POST", url, body=body, headers={"Content-Type": "application/json"}).data)
        return orjson.dumps({"response": reply["choices"][0]["message"]["content"], "usage": reply["usage"]})

    @app.get("/healthz")
    def is_up() -> str:
        return "ok"

    @app.post("/api/v1/query")
    def answer() -> Response:
        question = orjson.loads(request.get_data(cache=False))["query"]
        key = b"floor:" + hashlib.sha256(question.strip().lower().encode()).digest()
        found = store.get(key)
        if found is None:
            found = ask(question)
            store.set(key, found, ex=_TTL_S)
        return Response(found, mimetype="application/json")

    return app
