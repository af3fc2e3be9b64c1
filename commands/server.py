"""`candlery serve` and `candlery migrate`."""

import argparse
import gc

from app_extensions.migrations import migrate
from app_extensions.wiring import running_pool
from commands.arguments import Commands
from config import BaseConfig


def add(commands: Commands) -> None:
    """Describe them."""
    command = commands.add_parser("serve", help="run the server")
    command.set_defaults(run=_serve)
    command = commands.add_parser("migrate", help="bring the database to this version's schema")
    command.set_defaults(run=_migrate)


async def _serve(config: BaseConfig, _: argparse.Namespace) -> int:
    from app_extensions.server import serve  # noqa: PLC0415 - the web, which other commands need not wait for

    # What was imported stays, so no collection need look at it again: a full one would hold everything up for 25 ms.
    gc.freeze()
    # Answers make many short-lived objects, and hardly any cycles.
    gc.set_threshold(10_000, 20, 20)
    return await serve(config)


async def _migrate(config: BaseConfig, _: argparse.Namespace) -> int:
    async with running_pool(config, beside_server=True) as pool:
        flavour = await migrate(pool)
    print(f"The database is up to date ({flavour.value}).")
    return 0
