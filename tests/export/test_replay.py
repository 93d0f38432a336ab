"""Kept views: what was put in comes out together, the oldest go, and another size begins anew."""

from __future__ import annotations

import torch

from export.objective import TowerFeatures
from export.replay import Replay


def views(first: int, count: int, size: int = 4) -> tuple[torch.Tensor, TowerFeatures]:
    marks = torch.arange(first, first + count, dtype=torch.float32)
    trunk = marks[:, None, None, None].expand(count, 3, size, size)
    last = marks[:, None, None, None].expand(count, 5, 2, 2).bfloat16()
    return trunk, TowerFeatures(None, last, marks[:, None].expand(count, 6))


def drawn(replay: Replay, count: int = 200) -> tuple[torch.Tensor, set[int]]:
    trunk, features = replay.draw(count, torch.Generator().manual_seed(0))
    marks = features.pooled[:, 0]
    torch.testing.assert_close(trunk[:, 0, 0, 0].float(), marks)
    torch.testing.assert_close(features.last[:, 0, 0, 0].float(), marks)
    return trunk, {int(mark) for mark in marks}


def test_draws_whole_views_of_the_last_ones_added():
    replay = Replay(capacity=8)
    replay.add(*views(0, 6))
    assert drawn(replay)[1] == set(range(6))
    replay.add(*views(6, 6))
    assert drawn(replay)[1] == set(range(4, 12))


def test_another_size_of_view_begins_anew():
    replay = Replay(capacity=8)
    replay.add(*views(0, 6))
    replay.add(*views(6, 2, size=5))
    trunk, marks = drawn(replay)
    assert marks == {6, 7}
    assert trunk.shape[2:] == (5, 5)
