"""`GET /`: where to look."""

from quart import Blueprint, Response, request

from blueprints.answers import json_answer
from blueprints.params import Params

blueprint = Blueprint("root", __name__)


@blueprint.get("/")
async def get_root() -> Response:
    """A signpost."""
    Params(request.query_string, allowed=())
    places = {"api": "/api/v1/markets", "health": "/healthz", "ready": "/readyz", "metrics": "/metrics"}
    return json_answer({"name": "Candlery", **places, "documentation": "docs/api.md"})
