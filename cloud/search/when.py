"""Times as people say them: "2h", "3 days", "yesterday", "last night", "2026-05-04 22:00"."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from cloud.errors import InvalidRequest

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400, "w": 604800, "week": 604800}
NAMED = ("last hour", "today", "yesterday", "last night", "last week")
EXAMPLES = "90m, 2h, 3 days, 2026-05-04, or 2026-05-04T22:00"


def span(name: str, now: datetime) -> tuple[datetime, datetime]:
    """One of `NAMED` → [from, to), in the time zone of `now`. Night is 20:00 to 06:00. Raises `InvalidRequest`.

    >>> from datetime import datetime
    >>> [f"{at:%d. %H:%M}" for at in span("last night", datetime(2026, 5, 4, 9, 30))]
    ['03. 20:00', '04. 06:00']
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    day = timedelta(days=1)
    spans = {
        "last hour": (now - timedelta(hours=1), now),
        "today": (today, now),
        "yesterday": (today - day, today),
        "last night": (today - timedelta(hours=4), min(now, today + timedelta(hours=6))),
        "last week": (now - 7 * day, now),
    }
    if name not in spans:
        raise InvalidRequest(f"{name!r} is no time that is known here: {', '.join(NAMED)}")
    return spans[name]


def moment(text: str, now: datetime) -> datetime:
    """ "2h" (ago) or a date, in the time zone of `now` where it names none. Raises `InvalidRequest`.

    >>> from datetime import datetime
    >>> moment("90m", datetime(2026, 5, 4, 9, 30))
    datetime.datetime(2026, 5, 4, 8, 0)
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+?)s?", text.strip().lower()):
        number, unit = match.groups()
        seconds = _UNITS.get(unit or "s") or _UNITS.get(unit + "s")
        if seconds:
            return now - timedelta(seconds=float(number) * seconds)
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequest(f"{text!r} is no time: write {EXAMPLES}") from None
    return at if at.tzinfo or not now.tzinfo else at.replace(tzinfo=now.tzinfo)
