"""Makes the statistics' roll-ups anew from the rows: after rows were changed by hand, or by an older recorder."""

import sys

from config import load_settings
from storage.database import build_engine
from storage.rollup import recount


def main() -> None:
    count = 0
    with build_engine(load_settings().sql_url).begin() as connection:
        for page in recount(connection):
            count += page
            sys.stdout.write(f"\r{count} rows counted")
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
