"""Times as people say them, on days when the clock changes and across them."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cloud.cli import _parser
from cloud.errors import InvalidRequest
from cloud.search.client_commands import filter_of
from cloud.search.when import moment, span

BERLIN = ZoneInfo("Europe/Berlin")
WINTER = datetime(2026, 11, 28, 9, 30, tzinfo=BERLIN)


def utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("text", "at"),
    [("2h", "07:30"), ("90 min", "08:00"), ("1 day", "09:30"), ("2026-05-04", "00:00"), ("2026-05-04T03:15", "03:15")],
)
def test_moments(text, at):
    assert f"{moment(text, datetime(2026, 5, 4, 9, 30)):%H:%M}" == at


@pytest.mark.parametrize("text", ["", "soon", "2 parsecs", "2026-13-01", "-3h", "1e9d", "99999999999 weeks", "9" * 400])
def test_no_moments(text):
    with pytest.raises(InvalidRequest, match=r"is not a (known )?time"):
        moment(text, datetime(2026, 5, 4, 9, 30))
    with pytest.raises(InvalidRequest):
        span(text, datetime(2026, 5, 4, 9, 30))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-06-01", "05-31 22:00"),  # summer time, though it is winter now
        ("2026-01-01", "12-31 23:00"),
        ("2026-06-01T12:00", "06-01 10:00"),
        ("2026-06-01T12:00+05:00", "06-01 07:00"),
        ("2026-10-25T02:30", "10-25 00:30"),  # comes twice: the first
        ("2026-03-29T02:30", "03-29 01:30"),  # never comes: half an hour after the change
        ("34 days", "10-25 08:30"),  # the same time by the clock
        ("816h", "10-25 08:30"),
        ("840h", "10-24 08:30"),  # 35 days, of which one had 25 hours: 10:30 by the clock
        ("35d", "10-24 07:30"),
    ],
)
def test_a_date_has_the_offset_of_its_own_day(text, at):
    assert utc(moment(text, WINTER)) == at


@pytest.mark.parametrize(
    ("now", "name", "begin", "end"),
    [
        (datetime(2026, 10, 25, 12, tzinfo=BERLIN), "today", "10-24 22:00", "10-25 11:00"),
        (datetime(2026, 10, 26, 12, tzinfo=BERLIN), "yesterday", "10-24 22:00", "10-25 23:00"),  # 25 hours
        (datetime(2026, 10, 25, 12, tzinfo=BERLIN), "last night", "10-24 18:00", "10-25 05:00"),
        (datetime(2026, 3, 29, 12, tzinfo=BERLIN), "today", "03-28 23:00", "03-29 10:00"),
        (datetime(2026, 3, 30, 12, tzinfo=BERLIN), "yesterday", "03-28 23:00", "03-29 22:00"),  # 23 hours
        (datetime(2026, 3, 29, 12, tzinfo=BERLIN), "last night", "03-28 19:00", "03-29 04:00"),
        (datetime(2026, 3, 29, 3, 30, tzinfo=BERLIN), "last hour", "03-29 00:30", "03-29 01:30"),
        (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), "last hour", "10-25 00:30", "10-25 01:30"),
        (datetime(2026, 3, 30, 12, tzinfo=BERLIN), "last week", "03-23 11:00", "03-30 10:00"),
    ],
)
def test_days_on_which_the_clock_changes(now, name, begin, end):
    assert [utc(at) for at in span(name, now)] == [begin, end]


@pytest.fixture
def in_berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not os.path.exists("/usr/share/zoneinfo/Europe/Berlin"), reason="needs the system's time zones")
@pytest.mark.parametrize(
    ("words", "after", "before"),
    [
        (["--before", "2026-06-01"], "", "05-31 22:00"),
        (["--after", "2026-07-01T00:30", "--before", "2026-12-01"], "06-30 22:30", "11-30 23:00"),
        (["--when", "today"], "11-27 23:00", "11-28 08:30"),
        (["--after", "2h"], "11-28 06:30", ""),
    ],
)
def test_the_command_line_asks_in_the_machine_s_own_time(in_berlin, words, after, before):
    args = _parser().parse_args(["forget", *words])
    found = filter_of(args, datetime(2026, 11, 28, 9, 30))
    told = [found.after_unix_ms, found.before_unix_ms]
    assert [utc(datetime.fromtimestamp(at / 1000, UTC)) if at else "" for at in told] == [after, before]
