"""`python -m tasks.poison list|replay|drop`: the entries that could not be recorded, for an operator."""

import argparse
import sys
from datetime import UTC, datetime

from redis import RedisError

from config import load_settings
from storage.connection import patient_client
from storage.poison import Poison
from storage.usage import Entry


def described(entry: Entry) -> str:
    """One line that says what the entry is about; never a text."""
    at = datetime.fromtimestamp(int(entry.id.split(b"-")[0]) / 1000, UTC)
    facts = " ".join(entry.fields.get(name, b"-").decode("utf-8", "replace") for name in ("kind", "status", "job"))
    return f"{entry.id.decode()}  {at:%Y-%m-%d %H:%M:%S}  {entry.fields.get('reason', b'?').decode()}  {facts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("list", "replay", "drop"))
    parser.add_argument("ids", nargs="*", metavar="ID", help="entries as `list` names them, or `all`")
    given = parser.parse_args()
    if given.verb != "list" and not given.ids:
        parser.error(f"which ones? Name them, or: {given.verb} all")
    poison = Poison(patient_client(load_settings().ledger_url))
    act = {"list": lambda entry: None, "replay": poison.replay, "drop": poison.drop}[given.verb]
    wanted = None if given.verb == "list" or "all" in given.ids else set(given.ids)
    count = 0
    try:
        for entry in list(poison.entries()):
            if wanted is None or entry.id.decode() in wanted:
                act(entry)
                sys.stdout.write(described(entry) + "\n")
                count += 1
    except RedisError as error:
        sys.stderr.write(f"Redis does not answer ({type(error).__name__}): check REDIS_URL.\n")
        return 1
    sys.stdout.write(f"{given.verb}: {count}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
