"""The `candlery` command."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from app_extensions import event_loop
from app_extensions.logging_setup import configure_logging
from commands import backfill, bars, coverage, import_files, server
from commands.terminal import write_what_can_be_written
from config import BaseConfig, load_config
from domain.errors import CandleryError

#: In the order that the help lists them.
_MODULES = (server, import_files, bars, backfill, coverage)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when all went well, 1 on an error, 2 on wrong usage, 130 after Ctrl-C."""
    write_what_can_be_written()
    options = _parser().parse_args(argv)
    options.check(options)
    try:
        config = load_config()
        config.validate()
        _configure_logging(config, options.command)
        # A command is over too soon for the faster loop to be worth its start.
        run = event_loop.run if options.command == "serve" else asyncio.run
        code: int = run(options.run(config, options))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; what Python would still write at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CandleryError, OSError) as exc:
        print(f"candlery: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("candlery: interrupted", file=sys.stderr)
        return 130
    return code


def _configure_logging(config: BaseConfig, command: str) -> None:
    configure_logging(config.log_level if command == "serve" else "WARNING", config.log_format)
    if command != "serve":
        # A database that is away is told of by the command, in a line; its driver would write a traceback a second.
        logging.getLogger("asyncpg").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="candlery", description="Self-hosted market data server. Settings are read from CANDLERY_* and .env."
    )
    parser.set_defaults(check=lambda _: None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _MODULES:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
