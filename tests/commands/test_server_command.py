"""`candlery serve`: what it does before the server begins."""

import argparse
import gc

import pytest

from app_extensions import server
from commands.server import add
from config import TestingConfig


async def test_a_server_starts_with_what_was_imported_out_of_the_way_of_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[int] = []

    async def serve(_config: object) -> int:
        frozen.append(gc.get_freeze_count())
        return 7

    monkeypatch.setattr(server, "serve", serve)
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    options = parser.parse_args(["serve"])
    try:
        assert await options.run(TestingConfig(), options) == 7
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000
