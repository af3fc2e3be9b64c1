"""`/api/v1/backfills`: durable jobs over missing minutes, made, planned, shown, followed and steered."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from quart import Blueprint, Response, request

from blueprints.answers import encode, json_answer
from blueprints.backfill_schemas import JobsOut, job_out, plan_out
from blueprints.context import Backfills, in_time, services, stopping
from blueprints.event_stream import KEEP_ALIVE, KEEP_ALIVE_S, OPENING, event, stream_answer, until_stopped
from blueprints.json_body import JsonBody, read_json
from blueprints.params import Params
from domain.errors import DatabaseUnavailableError, InvalidParameterError, NotFoundError
from domain.time_range import TimeRange
from services.backfills import BackfillRequest, Job

blueprint = Blueprint("backfills", __name__, url_prefix="/api/v1/backfills")
log = logging.getLogger(__name__)

NAMES = ("market", "provider", "symbols", "start", "end", "dry_run")
#: Of one job; more are better made several jobs.
MAX_SYMBOLS = 500
DEFAULT_JOBS = 100
MAX_JOBS = 500

_JOB_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@blueprint.post("")
async def post_backfill() -> Response:
    """Make a job, or show what it would do."""
    Params(request.query_string, allowed=())
    body = await read_json(allowed=NAMES)
    dry_run = body.flag("dry_run")
    wanted = _wanted(body, services().clock.now_ms())
    async with in_time():
        if dry_run:
            return json_answer(plan_out(await services().backfills.plan(wanted)))
        job = await services().backfills.create(wanted)
    response = json_answer(job_out(job))
    response.status_code = 202
    response.headers["Location"] = f"{blueprint.url_prefix}/{job.id}"
    return response


@blueprint.get("")
async def get_backfills() -> Response:
    """The newest jobs, newest first."""
    params = Params(request.query_string, allowed=("limit",))
    limit = params.whole("limit", default=DEFAULT_JOBS, low=1, high=MAX_JOBS)
    async with in_time():
        jobs = await services().backfills.jobs(limit=limit)
    return json_answer(JobsOut(list(map(job_out, jobs))))


@blueprint.get("/<job_id>")
async def get_backfill(job_id: str) -> Response:
    """One job."""
    return json_answer(job_out(await _job(job_id)))


@blueprint.get("/<job_id>/events")
async def get_events(job_id: str) -> Response:
    """A job's progress as server-sent events."""
    await _job(job_id)
    return stream_answer(_events(_follow(services().backfills, job_id), stopping()))


@blueprint.post("/<job_id>/pause")
async def post_pause(job_id: str) -> Response:
    """Begin no more chunks of a job."""
    return await _steered(job_id, services().backfills.pause)


@blueprint.post("/<job_id>/resume")
async def post_resume(job_id: str) -> Response:
    """Go on with a paused job."""
    return await _steered(job_id, services().backfills.resume)


@blueprint.post("/<job_id>/cancel")
async def post_cancel(job_id: str) -> Response:
    """End a job."""
    return await _steered(job_id, services().backfills.cancel)


@blueprint.post("/<job_id>/retry")
async def post_retry(job_id: str) -> Response:
    """Try again what failed of a job."""
    return await _steered(job_id, services().backfills.retry)


def _wanted(body: JsonBody, now_ms: int) -> BackfillRequest:
    market, provider = body.text("market"), body.text("provider")
    symbols = body.texts("symbols", most=MAX_SYMBOLS)
    start_ms = body.required_time_ms("start")
    end_ms = body.time_ms("end")
    if end_ms is not None and end_ms <= start_ms:
        raise InvalidParameterError("end", "end must be after start.")
    if start_ms >= now_ms:
        raise InvalidParameterError("start", "start lies in the future; there is nothing to fetch yet.")
    wanted = TimeRange(start_ms, now_ms if end_ms is None else min(end_ms, now_ms))
    return BackfillRequest(market, provider, tuple(symbols), wanted)


async def _job(job_id: str) -> Job:
    Params(request.query_string, allowed=())
    _check_id(job_id)
    async with in_time():
        return await services().backfills.job(job_id)


async def _steered(job_id: str, steer: Callable[[str], Awaitable[Job]]) -> Response:
    Params(request.query_string, allowed=())
    await read_json(allowed=(), may_be_empty=True)
    _check_id(job_id)
    async with in_time():
        return json_answer(job_out(await steer(job_id)))


def _check_id(job_id: str) -> None:
    """Let nothing that cannot be an id near the database."""
    if not _JOB_ID.fullmatch(job_id):
        raise NotFoundError(f"There is no backfill {job_id[:64]!r}.")


async def _events(jobs: AsyncGenerator[Job, None], ending: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The job's events for the wire; a stream that ends without `end` was broken off by the server's own end."""
    yield OPENING
    number = 0
    async with aclosing(until_stopped(jobs, ending, silence_s=KEEP_ALIVE_S)) as changes:
        async for job in changes:
            if job is None:
                yield KEEP_ALIVE
                continue
            number += 1
            yield event("end" if job.state.is_over else "progress", number, encode(job_out(job)))


async def _follow(backfills: Backfills, job_id: str) -> AsyncGenerator[Job, None]:
    """The job at each change until it is over, across absences of the database."""
    seen: Job | None = None
    while seen is None or not seen.state.is_over:
        try:
            async with aclosing(backfills.watch(job_id)) as jobs:
                async for job in jobs:
                    if job != seen:
                        yield job
                    seen = job
        except DatabaseUnavailableError as exc:
            log.info("the events of backfill %s wait for the database: %s", job_id, exc)
            await asyncio.sleep(exc.retry_after_s)
        except NotFoundError:
            return
