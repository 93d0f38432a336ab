"""Times as people say them: "2h", "3 days", "yesterday", "last night", "2026-05-04 22:00".

`now` is naive, in this machine's local time, or carries a time zone that knows its own rules (`zoneinfo`). What comes
back is of the same kind, so `timestamp()` takes the UTC offset of the date itself: in most countries it is another one
in summer than in winter, and `now.astimezone()` would freeze today's.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cloud.errors import InvalidRequest

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_DAYS = {"d": 1, "day": 1, "w": 7, "week": 7}
NAMED = ("last hour", "today", "yesterday", "last night", "last week")
EXAMPLES = "90m, 2h, 3 days, 2026-05-04, or 2026-05-04T22:00"


def span(name: str, now: datetime) -> tuple[datetime, datetime]:
    """One of `NAMED` → [from, to). Days are those of the calendar, also when they last 23 or 25 hours; night is 20:00
    to 06:00. Raises `InvalidRequest`.

    >>> from datetime import datetime
    >>> [f"{at:%d. %H:%M}" for at in span("last night", datetime(2026, 5, 4, 9, 30))]
    ['03. 20:00', '04. 06:00']
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    day = timedelta(days=1)
    evening, morning = (today - day).replace(hour=20), today.replace(hour=6)
    spans = {
        "last hour": (_ago(now, 3600), now),
        "today": (today, now),
        "yesterday": (today - day, today),
        "last night": (evening, min(now, morning)),
        "last week": (now - 7 * day, now),
    }
    if name not in spans:
        raise InvalidRequest(f"{name!r} is not a known time: use one of {', '.join(NAMED)}")
    return spans[name]


def moment(text: str, now: datetime) -> datetime:
    """ "2h" (ago) or a date, in the time zone of `now` where it names none. Raises `InvalidRequest`.

    Hours and less are exact; a day ago is the same time by the clock. Of a time that comes twice (clocks set back) the
    first is meant.

    >>> from datetime import datetime
    >>> moment("90m", datetime(2026, 5, 4, 9, 30))
    datetime.datetime(2026, 5, 4, 8, 0)
    """
    try:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower()):
            number, unit = float(match[1]), match[2] if match[2] == "s" else match[2].removesuffix("s")
            if unit in _SECONDS:
                return _ago(now, number * _SECONDS[unit])
            if unit in _DAYS:
                return now - timedelta(days=number * _DAYS[unit])
        at = datetime.fromisoformat(text.strip())
        at = at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
        at.timestamp()
        return at
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(f"{text!r} is not a time: write {EXAMPLES}") from None


def _ago(now: datetime, seconds: float) -> datetime:
    """`seconds` before `now`, as they really pass: across a change of the clock too."""
    at = now.timestamp() - seconds
    return datetime.fromtimestamp(at, UTC).astimezone(now.tzinfo) if now.tzinfo else datetime.fromtimestamp(at)
