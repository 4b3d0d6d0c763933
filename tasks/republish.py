"""Puts every recorded event back into the outbox, for a broker that has lost its topics (`make republish`)."""

import sys

from config import load_settings
from storage.database import build_engine
from storage.record import mark_unpublished


def main() -> None:
    count = mark_unpublished(build_engine(load_settings().sql_url))
    sys.stdout.write(f"{count} events will be published again; consumers drop repeats by event_id.\n")


if __name__ == "__main__":
    main()
