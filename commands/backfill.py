"""`candlery backfill`: jobs that make series complete, made, followed, listed and steered."""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable

import msgspec

from app_extensions.wiring import Services, running_services
from blueprints.backfill_schemas import job_out, plan_out
from commands.arguments import Commands, add_range, whole
from commands.backfill_views import LineView, LiveView, View
from commands.backfill_words import (
    Situation,
    attach_words,
    error_words,
    outlook,
    print_job,
    print_jobs,
    print_plan,
    report,
    short,
    state_words,
)
from commands.following import Detached, Follower
from commands.terminal import console, say
from config import BaseConfig
from domain.errors import DatabaseUnavailableError, InvalidParameterError
from domain.time_range import TimeRange
from services.backfill_manager import BackfillManager
from services.backfills import BackfillRequest, Job, Plan

#: Of the jobs kept, the newest are looked through for the beginning of an id.
JOBS_SEARCHED = 1000
JOBS_LISTED = 20

_EPILOG = """\
A job is kept in the database: it survives whatever happens to this command, and servers share its work. On a terminal
the command follows the job and shows how far it came; Ctrl-C detaches from it. Where no server works on jobs, this
command does, for as long as it is attached.

exit codes: 0 the job is done (or was made, where it is not waited for), 1 it failed or was cancelled, or an error,
2 wrong usage, 130 detached by Ctrl-C (143 by SIGTERM) before it was over
"""
_REQUIRED = ("market", "provider", "symbol", "start")
_STEERING = {
    "pause": "begin no more chunks; what is under way is finished",
    "resume": "go on with a paused job",
    "cancel": "end a job; what was fetched stays",
    "retry": "try again what failed",
}


def add(commands: Commands) -> None:
    """Describe it."""
    command = commands.add_parser(
        "backfill",
        help="fetch all that is missing of some series",
        description="Make a job that fetches all that is missing of some symbols, or look after jobs (see ACTION).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--market", help="for example crypto")
    command.add_argument("--provider", help="for example binance")
    command.add_argument("--symbol", action="append", help="for example BTC/USDT; may be repeated")
    add_range(command, start_required=False)
    how = command.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    how.add_argument("--wait", action="store_true", default=None, help="follow the job; the default on a terminal")
    how.add_argument("--no-wait", dest="wait", action="store_false", help="print the job's id and return at once")
    command.add_argument("--json", action="store_true", help="with --dry-run: the plan as JSON")
    command.set_defaults(run=_create, check=_check, fail=command.error)
    _add_actions(command)


def _add_actions(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    action = actions.add_parser("list", help="the newest jobs")
    action.add_argument("--limit", type=whole(1, 1000), default=JOBS_LISTED, metavar="1..1000")
    action.add_argument("--json", action="store_true", help="what GET /api/v1/backfills answers")
    action.set_defaults(run=_list)
    action = actions.add_parser("show", help="all about a job")
    action.add_argument("--json", action="store_true", help="what GET /api/v1/backfills/ID answers")
    action.set_defaults(run=_show)
    _add_id(action)
    action = actions.add_parser("attach", help="follow a job until it is over; Ctrl-C detaches")
    action.set_defaults(run=_attach)
    _add_id(action)
    for name, words in _STEERING.items():
        action = actions.add_parser(name, help=words)
        action.set_defaults(run=_steer)
        _add_id(action)


def _add_id(action: argparse.ArgumentParser) -> None:
    action.add_argument("id", metavar="ID", help="of the job; its beginning is enough where no other begins so")


def _check(options: argparse.Namespace) -> None:
    """Wrong usage that the parser does not see."""
    given = [name for name in (*_REQUIRED, "end", "wait") if getattr(options, name) is not None]
    if options.action is not None:
        if given or options.dry_run:
            options.fail(f"{options.action} takes none of the arguments that a new job takes")
    elif missing := [f"--{name}" for name in _REQUIRED if name not in given]:
        options.fail(f"the following arguments are required: {', '.join(missing)} (or an ACTION)")
    elif options.json and not options.dry_run:
        options.fail("--json goes with --dry-run")


async def _create(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        end_ms = services.clock.now_ms() if options.end is None else options.end
        symbols = tuple(dict.fromkeys(options.symbol))
        request = BackfillRequest(options.market, options.provider, symbols, TimeRange(options.start, end_ms))
        if options.dry_run:
            return _print_plan(await services.backfills.plan(request), as_json=options.json)
        job = await services.backfills.create(request)
        print(job.id, flush=True)
        for error in job.errors:
            say(f"left out: {error_words(error)}")
        if job.state.is_over:
            return report(job)
        if options.wait or (options.wait is None and sys.stdout.isatty()):
            return await _follow(services, job)
        say(outlook(Situation(job, await services.backfills.someone_works())))
        return 0


def _print_plan(plan: Plan, *, as_json: bool) -> int:
    if as_json:
        _print_json(plan_out(plan))
        return 0
    for error in plan.errors:
        say(f"left out: {error_words(error)}")
    print_plan(console(), plan)
    return 0


async def _list(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        jobs = await services.backfills.jobs(limit=options.limit)
    if options.json:
        _print_json({"backfills": [job_out(job) for job in jobs]})
    elif jobs:
        print_jobs(console(), jobs)
    else:
        print("There are no backfills.")
    return 0


async def _show(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        job = await find(services.backfills, options.id)
        someone_works = await services.backfills.someone_works()
    if options.json:
        _print_json(job_out(job))
        return 0
    print_job(job)
    if not job.state.is_over:
        say(outlook(Situation(job, someone_works)))
    return 0


async def _attach(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        job = await find(services.backfills, options.id)
        return report(job) if job.state.is_over else await _follow(services, job)


async def _steer(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        backfills = services.backfills
        steps: dict[str, Callable[[str], Awaitable[Job]]] = {
            "pause": backfills.pause,
            "resume": backfills.resume,
            "cancel": backfills.cancel,
            "retry": backfills.retry,
        }
        job = await steps[options.action]((await find(backfills, options.id)).id)
        print(f"Backfill {short(job.id)} is {state_words(job)}.")
        if options.action in {"resume", "retry"}:
            say(outlook(Situation(job, await backfills.someone_works())))
    return 0


async def _follow(services: Services, job: Job) -> int:
    """Show the job until it is over, or until a signal or the database's absence ends that."""
    out = console()
    view: View = LiveView(out) if out.is_interactive else LineView(sys.stdout)
    try:
        return report(await Follower(services.backfills, services.backfill_workers).follow(job.id, view))
    except Detached as exc:
        say(f"Detached from backfill {short(job.id)}.")
        job = await services.backfills.job(job.id)
        say(outlook(Situation(job, await services.backfills.someone_works())))
        return 128 + exc.number
    except DatabaseUnavailableError:
        say(f"The job is kept. Follow it once the database is there again: {attach_words(job.id)}")
        raise


def _print_json(value: object) -> None:
    """In ASCII, whatever the terminal."""
    print(json.dumps(msgspec.to_builtins(value)))


async def find(backfills: BackfillManager, beginning: str) -> Job:
    """The job whose id begins so.

    Raises:
        NotFoundError: there is none.
        InvalidParameterError: there are several.
    """
    beginning = beginning.strip().lower()
    found = [job for job in await backfills.jobs(limit=JOBS_SEARCHED) if beginning and job.id.startswith(beginning)]
    if not found:
        # An old job is found by its whole id.
        return await backfills.job(beginning)
    if len(found) > 1:
        ids = ", ".join(job.id for job in found)
        raise InvalidParameterError("id", f"Several backfills begin with {beginning!r}: {ids}.")
    return found[0]
