"""`make dead`: lists dead letters, replays them after a fix, or drops them."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from redis import RedisError

from config import Settings, load_settings
from routing.tier import TIER_NAMES
from storage.connection import patient_client
from storage.dead_letter import DeadLetters, Filter
from storage.job import Job
from storage.ledger import Ledger
from tasks.build import build_ledger
from tasks.dispatch import Dispatcher

LINE = "{:<32} {:<20} {:<12} {:<8} {:<28} {}\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where something asked for was not there, 69 where Redis is away."""
    asked = _parser().parse_args(arguments)
    settings = load_settings()
    ledger = build_ledger(settings, patient_client(settings.ledger_url))
    try:
        return {"list": _list, "replay": _replay, "drop": _drop}[asked.verb](asked, ledger, settings)
    except RedisError as error:
        sys.stderr.write(f"Dead letters are kept in Redis, which does not answer ({type(error).__name__}).\n")
        return 69


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make dead", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does in (("list", "show them, newest first"), ("replay", "queue them again"), ("drop", "forget them")):
        command = verbs.add_parser(verb, help=does)
        command.add_argument("ids", nargs="*", help="only these; without ids, all that fit the filter")
        command.add_argument("--tenant")
        command.add_argument("--tier", choices=TIER_NAMES)
        command.add_argument("--code", help="why they failed, such as provider_unreachable")
        command.add_argument("--limit", type=int, default=100)
        if verb != "list":
            command.add_argument("--all", action="store_true", help="needed where neither ids nor a filter are given")
    return parser


def _chosen(asked: argparse.Namespace, ledger: Ledger) -> list[Job]:
    letters, wanted = DeadLetters(ledger), Filter(asked.tenant, asked.tier, asked.code)
    if not asked.ids:
        return letters.find(wanted, asked.limit)
    return [job for job_id in asked.ids if (job := letters.get(job_id)) and wanted.fits(job)]


def _list(asked: argparse.Namespace, ledger: Ledger, _: Settings) -> int:
    sys.stdout.write(LINE.format("id", "ended (UTC)", "tenant", "tier", "code", "attempts"))
    for job in _chosen(asked, ledger):
        ended = datetime.fromtimestamp((job.ended_at or 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        code = (job.error or {}).get("code", "")
        tried = ", ".join(str(attempt["outcome"]) for attempt in job.attempts)
        sys.stdout.write(LINE.format(job.id, ended, job.tenant, job.tier, code, tried))
    sys.stdout.write(f"{DeadLetters(ledger).count()} in all\n")
    return 0


def _replay(asked: argparse.Namespace, ledger: Ledger, settings: Settings) -> int:
    dispatcher, deadline_ms = Dispatcher(ledger.client), int(settings.job_deadline_seconds * 1000)

    def replay(job: Job) -> bool:
        replayed = ledger.replay(job.id, deadline_ms)
        if replayed is None:
            return False
        try:
            dispatcher.ring(job.id, *replayed, run=job.replays + 1)
        except RedisError:
            sys.stderr.write(f"{job.id}: no message could be sent; a worker's reaper will send it\n")
        return True

    return _act(asked, ledger, replay, "queued again")


def _drop(asked: argparse.Namespace, ledger: Ledger, _: Settings) -> int:
    letters = DeadLetters(ledger)
    return _act(asked, ledger, letters.drop, "dropped")


def _act(asked: argparse.Namespace, ledger: Ledger, act: Callable[[Job], bool], done: str) -> int:
    if not (asked.ids or asked.tenant or asked.tier or asked.code or asked.all):
        sys.stderr.write("Which ones? Give ids, --tenant, --tier or --code, or say --all.\n")
        return 2
    count = sum(act(job) for job in _chosen(asked, ledger))
    sys.stdout.write(f"{count} {done}\n")
    return 0 if count or not asked.ids else 1


if __name__ == "__main__":
    sys.exit(main())
