"""Times as people and programs write them."""

from datetime import UTC, datetime

from domain.timeframe import DAY_MS

#: Times before 1970 and from 2100 on are taken for mistakes.
LATEST_MS = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1000


def parse_time_ms(text: str) -> int:
    """ISO-8601 (no zone: UTC; a date alone: its midnight) or epoch milliseconds, as UTC epoch milliseconds.

    Raises:
        ValueError: it is neither, or lies before 1970 or after 2099; says what would be right.
    """
    stripped = text.strip()
    digits = stripped.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        value = int(stripped) if len(digits) < 20 else LATEST_MS  # noqa: PLR2004 - longer ones are out of range anyway
    else:
        value = _from_iso(stripped)
    if not 0 <= value < LATEST_MS:
        msg = f"{text[:40]!r} lies outside 1970-01-01 to 2099-12-31; times are ISO-8601 or epoch milliseconds"
        raise ValueError(msg)
    return value


def _from_iso(text: str) -> int:
    try:
        # A plus sign that was not escaped in a URL arrives as a space.
        when = datetime.fromisoformat(text.replace(" ", "+") if _lost_plus(text) else text)
    except ValueError:
        msg = f"{text[:40]!r} is not a time; give ISO-8601 (2024-01-31T12:00:00Z) or epoch milliseconds"
        raise ValueError(msg) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    delta = when - datetime(1970, 1, 1, tzinfo=UTC)
    return delta.days * DAY_MS + delta.seconds * 1000 + delta.microseconds // 1000


def _lost_plus(text: str) -> bool:
    head, _, zone = text.rpartition(" ")
    return "T" in head and zone[:2].isdigit()
