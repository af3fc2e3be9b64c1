"""Log lines, as text for people or as JSON for machines: one line a record, with its request's id and no secret."""

import json
import logging
import logging.config
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypercorn.config import Config as HypercornConfig

#: The id of the request that is being served; the HTTP layer sets it.
request_id_var: ContextVar[str] = ContextVar("request_id", default="-")

MASK = "***"
_SENSITIVE = (
    r"(?:api[-_]?key|secret|private[-_]?key|key[-_]?id|credentials[-_]?key|password|passphrase|signature|authorization"
    r"|(?<!page[-_])token)"
)
_RULES = (
    # scheme://user:password@host; greedy up to the last @ before a slash, since passwords may hold one
    (re.compile(r"(://[^\s:/@]*:)[^\s/\"']*@"), rf"\1{MASK}@"),
    # name=value, as in queries; the lengths are bounded, or a long word would cost its length squared
    (re.compile(rf"([\w-]{{0,40}}{_SENSITIVE}[\w-]{{0,40}}=)[^\s&\"',;)}}]+", re.IGNORECASE), rf"\1{MASK}"),
    # "name": "value", as in JSON and in a dict's repr
    (
        re.compile(rf"""(["'][\w-]{{0,40}}{_SENSITIVE}[\w-]{{0,40}}["']\s*:\s*(["'])).*?(?<!\\)\2""", re.IGNORECASE),
        rf"\1{MASK}\2",
    ),
    # Name: value, as in HTTP headers
    (re.compile(r"\b((?:Authorization|APCA-API-[\w-]+|X-[\w-]*Key)\s*:\s*).+", re.IGNORECASE), rf"\1{MASK}"),
)
_SENSITIVE_NAME = re.compile(_SENSITIVE, re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "taskName"}


def mask(text: str) -> str:
    """The text with `***` for the secrets of URLs, queries, JSON and headers."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RequestIdFilter(logging.Filter):
    """Puts the current request's id on each record, while its context is still there."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if not hasattr(record, "request_id"):
            record.request_id = request_id_var.get()
        return True


class TextFormatter(logging.Formatter):
    """`time level logger [request id] message name=value`; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback where there is one."""
        # A line break from outside must not forge a second record.
        words = _CONTROL.sub(lambda found: repr(found.group())[1:-1], record.getMessage())
        extras = "".join(f" {name}={json.dumps(value)}" for name, value in _extras(record).items())
        line = f"{_time(record)} {record.levelname:<8} {record.name} [{_request_id(record)}] {mask(words)}{extras}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, request_id, message, the record's extras, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = _extras(record) | {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "request_id": _request_id(record),
            "message": mask(record.getMessage()),
        }
        if trace := _trace(self, record):
            line["exception"] = trace
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _request_id(record: logging.LogRecord) -> str:
    return str(getattr(record, "request_id", "-"))


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    parts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return mask("\n".join(parts))


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: _plain(name, value) for name, value in vars(record).items() if name not in _STANDARD}


def _plain(name: str, value: Any) -> Any:
    """The value in JSON's own types, its secrets masked."""
    if _SENSITIVE_NAME.search(name):
        return MASK
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain("", item) for item in value]
    return mask(str(value))


def configure_logging(level: str = "INFO", fmt: str = "text") -> None:
    """Send every logger's lines of `level` and above to stderr, as `text` or `json`. May be called again."""
    formatter = JsonFormatter if fmt == "json" else TextFormatter
    quiet = max(logging.getLevelNamesMapping()[level], logging.WARNING)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {"line": {"()": formatter}},
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stderr",
                    "formatter": "line",
                    "filters": ["request_id"],
                }
            },
            "root": {"level": level, "handlers": ["stderr"]},
            # At DEBUG these write every frame, and every answer of an exchange, headers and all.
            "loggers": {name: {"level": quiet} for name in ("ccxt", "hpack", "urllib3", "aiohttp.client")},
        }
    )
    logging.captureWarnings(capture=True)


def route_hypercorn(server: "HypercornConfig", *, access: bool = False) -> None:
    """Make Hypercorn log through these handlers; by itself it would add its own beside them."""
    for name in ("hypercorn.error", "hypercorn.access"):
        logging.getLogger(name).handlers.clear()
    server.errorlog = logging.getLogger("hypercorn.error")
    server.accesslog = logging.getLogger("hypercorn.access") if access else None
