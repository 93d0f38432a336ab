"""Rate control on a simulated link with a clock of its own; cap and budget."""

from __future__ import annotations

import pytest

from edge.errors import ConnectionOptionsError
from edge.field.rate_control import Budget, Cap, LinkMeter, RateControl
from edge.field.spool import Spool

SIZES = [300, 600, 1350]
DEADLINE_S = 2.0


class Link:
    """One frame after the other at `bytes_per_s(t)`, 50 ms of delay; frames come every `gap_s` seconds."""

    def __init__(self, bytes_per_s, gap_s: float) -> None:
        self.now, self._rate, self._gap_s = 0.0, bytes_per_s, gap_s

    def run(self, control: RateControl, frames: int) -> tuple[float, list[int]]:
        """Share of answers in time, and the layers sent."""
        meter = LinkMeter(lambda: self.now)
        accepted = [n * self._gap_s for n in range(frames)]
        layers, flying, free_at, in_time, sent = [], [], 0.0, 0, 0
        while sent < frames or flying:
            for key in [key for key, at in flying if at <= self.now]:
                meter.answered(key)
                in_time += self.now - accepted[key] <= DEADLINE_S
                flying = [each for each in flying if each[0] != key]
            while sent < frames and accepted[sent] <= self.now and len(flying) < 16:
                backlog = sum(1 for at in accepted[sent + 1 :] if at <= self.now)
                count = control.layers(SIZES, self.now - accepted[sent], backlog, meter)
                layers.append(count)
                meter.sent(sent, SIZES[count - 1])
                start = max(free_at, self.now)
                free_at = start + SIZES[count - 1] / self._rate(start)
                flying.append((sent, free_at + 0.05))
                sent += 1
            self.now += 0.01
        return in_time / frames, layers


def swinging(t: float) -> float:
    return 2500.0 if int(t / 5) % 2 else 250_000.0  # 20 kbit/s and 2 Mbit/s


def test_a_swinging_link_keeps_its_deadlines_and_uses_its_good_times():
    share, layers = Link(swinging, 0.33).run(RateControl(DEADLINE_S), 300)
    assert share >= 0.95
    assert layers.count(3) >= 100
    fixed, _ = Link(swinging, 0.33).run(RateControl(DEADLINE_S, fixed=3), 300)
    assert fixed < 0.95 <= share


def test_a_fast_link_gets_everything_and_a_hopeless_one_the_least():
    share, layers = Link(lambda _: 1e6, 0.2).run(RateControl(DEADLINE_S), 50)
    assert share == 1
    assert layers[0] == 2  # nothing is known yet
    assert set(layers[4:]) == {3}
    _, layers = Link(lambda _: 400.0, 0.5).run(RateControl(DEADLINE_S), 30)
    assert set(layers[5:]) == {1}


def test_what_is_overdue_counts_before_it_is_answered():
    now = [0.0]
    meter = LinkMeter(lambda: now[0])
    for key in range(5):
        meter.sent(key, 1000)
        now[0] += 0.05
        meter.answered(key)
    assert meter.s_per_byte < 1e-6
    assert RateControl(2).layers(SIZES, 0, 0, meter) == 3
    meter.sent("x", 1000)
    now[0] += 2
    assert meter.s_per_byte > 1e-3
    assert RateControl(2).layers(SIZES, 0, 0, meter) == 1
    meter.lost()
    assert meter.in_flight_bytes == 0


def test_backlog_budget_and_cap_ask_for_less():
    now = [0.0]
    meter = LinkMeter(lambda: now[0])
    for key, delay in enumerate((0.05, 0.05 + 600 / 10_000)):
        meter.sent(key, 600)
        now[0] += delay
        meter.answered(key)
    control = RateControl(2)
    assert control.layers(SIZES, 0, 0, meter) == 3
    assert control.layers(SIZES, 0, 50, meter) == 1
    assert control.layers(SIZES, 1.14, 0, meter) == 1
    assert control.layers(SIZES, 50, 0, meter) == 3  # late anyway
    assert control.layers(SIZES, 0, 0, meter, frame_bytes=700) == 2
    assert control.layers(SIZES, 0, 0, meter, least_s_per_byte=1 / 600) == 2
    assert RateControl(2, fixed=2).layers(SIZES, 1.9, 50, meter) == 2


def test_a_cap_holds_over_time():
    now = [100.0]
    cap = Cap(8, lambda: now[0])  # 1000 bytes a second
    sent = 0
    while now[0] < 130:
        if cap.wait_s() == 0:
            cap.spent(700)
            sent += 700
        else:
            now[0] += cap.wait_s() + 1e-6
    assert 29_000 <= sent <= 32_000
    assert Cap(None).wait_s() == 0
    with pytest.raises(ConnectionOptionsError):
        Cap(0)


def test_a_budget_survives_a_crash_and_a_clock_set_back_and_ends_at_midnight(tmp_path):
    now = [86400.0 * 20_000 + 40_000]
    with Spool(tmp_path / "s.db") as spool:
        budget = Budget(spool, 100_000, lambda: now[0])
        spent = 0
        while budget.allows(900):
            budget.spent(900)
            spent += 900
            if spent == 45_000:  # a crash: what was in memory is gone
                budget = Budget(spool, 100_000, lambda: now[0])
                assert budget.used_bytes >= 45_000
        assert 100_000 - 900 - (16 << 10) <= spent <= 100_000
        now[0] -= 2 * 86400
        assert not budget.allows(900)
        assert budget.resumes_in_s() > 86400
        now[0] += 2 * 86400 + budget.resumes_in_s()
        now[0] = 86400.0 * 20_001
        assert budget.allows(900)
        assert budget.used_bytes == 0


def test_a_budget_is_spread_over_the_day(tmp_path):
    now = [86400.0 * 20_000]
    with Spool(tmp_path / "s.db") as spool:
        budget = Budget(spool, 86_400, lambda: now[0])
        assert budget.frame_bytes() == float("inf")
        for _ in range(100):
            budget.spent(1)
            now[0] += 1
        assert 0.9 < budget.frame_bytes() < 1.1
