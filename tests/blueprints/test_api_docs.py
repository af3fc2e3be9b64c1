"""docs/api.md and the application say the same."""

import json
import re
from pathlib import Path

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from app_extensions.error_mapping import HTTP_CODES, INTERNAL, PROBLEMS
from blueprints import backfills, coverage, ohlcv_request
from domain.series import Verdict

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text("utf-8")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(section: str) -> set[str]:
    rows = re.findall(r"^\| (`[^|]+) \|", sections()[section], flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_route_is_described(web: Quart):
    rules = [rule for rule in web.url_map.iter_rules() if rule.rule != "/"]
    routes = {(method, rule.rule.replace("<job_id>", "{id}")) for rule in rules for method in rule.methods or ()}
    wanted = {(method, path) for method, path in routes if method in {"GET", "POST", "PUT", "PATCH", "DELETE"}}
    described = {(method or "GET", path) for method, path in re.findall(r"`(?:([A-Z]+) )?(/[^`]+)`", TEXT)}
    assert wanted - described == set()
    assert {method for method, path in described if path == "/api/v1/backfills"} == {"GET", "POST"}


def test_every_parameter_is_described_and_no_other():
    assert first_cells("`GET /api/v1/ohlcv`") == set(ohlcv_request.NAMES)
    assert first_cells("Backfills") == set(backfills.NAMES)
    assert first_cells("`GET /api/v1/coverage`") == set(coverage.NAMES) | {verdict.value for verdict in Verdict}


def test_every_error_is_described_with_its_status_and_no_other():
    rows = re.findall(r"^\| (\d+) \| (`[^|]+) \|", sections()["Errors"], flags=re.MULTILINE)
    described = {(int(status), code) for status, codes in rows for code in re.findall(r"`([^`]+)`", codes)}
    known = {(problem.status, problem.code) for problem in (*PROBLEMS.values(), INTERNAL)} | set(HTTP_CODES.items())
    assert described == known


async def test_every_metric_of_ours_is_described(client: Client):
    await client.get("/healthz")
    text = (await (await client.get("/metrics")).get_data()).decode()
    names = {name.removesuffix("_created") for name in re.findall(r"^# TYPE (candlery_\w+)", text, flags=re.MULTILINE)}
    described = {name.removesuffix("_total") for name in first_cells("Metrics")}
    described |= {f"candlery_cache{name}" for name in described if name.startswith("_")}
    assert {name.removesuffix("_total") for name in names} - described == set()


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL), ids=lambda text: text[:40])
def test_every_example_is_json(example: str):
    assert json.loads(example)
