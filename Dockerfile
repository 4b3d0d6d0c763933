# One image for every process; docker-compose.yml gives each its command.

FROM python:3.11-slim AS builder
COPY requirements.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin router \
    && mkdir -p /app/.data && chown router /app/.data
WORKDIR /app
COPY --from=builder /venv /venv
COPY alembic.ini *.py ./
COPY migrations migrations
COPY routing routing
COPY providers providers
COPY storage storage
COPY tasks tasks
COPY webapp webapp
RUN /venv/bin/python -m compileall -q .

ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
USER router
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["gunicorn", "-c", "gunicorn.conf.py", "webapp:create_app()"]
