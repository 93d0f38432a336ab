"""Exact nearest neighbours in memory: blocks of unit vectors in order of arrival, one matrix product each.

Why no approximate index: see docs/search.md, with measurements. A block is pruned by its time span; deletion rewrites
blocks; adding is a copy of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud.search.frames import Filter

BLOCK = 8192  # rows: 12.6 MB of 384 floats


@dataclass(eq=False)
class Block:
    """Rows [0, n) are valid and never change; one writer appends behind them."""

    ids: np.ndarray  # int64 (BLOCK,), ascending
    at_ms: np.ndarray  # int64 (BLOCK,)
    devices: np.ndarray  # int32 (BLOCK,), codes
    labels: np.ndarray  # int32 (BLOCK,), codes
    vectors: np.ndarray  # float32 (BLOCK, D)
    n: int = 0

    @classmethod
    def empty(cls, dim: int) -> Block:
        ids, at_ms = np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.int64)
        return cls(ids, at_ms, np.zeros(BLOCK, np.int32), np.zeros(BLOCK, np.int32), np.zeros((BLOCK, dim), np.float32))

    def kept(self, keep: np.ndarray) -> Block:
        """A copy of the rows for which bool (n,) `keep` holds."""
        made = Block.empty(self.vectors.shape[1])
        made.n = int(keep.sum())
        for name in ("ids", "at_ms", "devices", "labels", "vectors"):
            getattr(made, name)[: made.n] = getattr(self, name)[: self.n][keep]
        return made


class Codes:
    """Strings ↔ small integers, so that a filter compares integers. Only grows: devices and labels are few."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    def known(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._codes[text] for text in texts if text in self._codes], np.int32)


class Vectors:
    """Unit vectors of one CLIP. One thread may add and remove while others search: they see a state of before or
    after, never between."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._blocks: tuple[Block, ...] = ()
        self._devices, self._labels = Codes(), Codes()

    def __len__(self) -> int:
        return sum(block.n for block in self._blocks)

    def add(self, frame_id: int, at_ms: int, device_id: str, label: str, vector: np.ndarray) -> None:
        """`frame_id` must be greater than every one before."""
        if not self._blocks or self._blocks[-1].n == BLOCK:
            self._blocks = (*self._blocks, Block.empty(self.dim))
        block = self._blocks[-1]
        row = block.n
        block.ids[row], block.at_ms[row], block.vectors[row] = frame_id, at_ms, vector
        block.devices[row], block.labels[row] = self._devices.of(device_id), self._labels.of(label.casefold())
        block.n = row + 1  # last: from here on searches see it

    def matching(self, wanted: Filter) -> np.ndarray:
        """int64 (N,): ids that the filter lets through, ascending."""
        found = [block.ids[rows] for block, rows, _ in self._let_through(wanted)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def remove(self, ids: np.ndarray) -> None:
        blocks = []
        for block in self._blocks:
            keep = ~np.isin(block.ids[: block.n], ids)
            if keep.all():
                blocks.append(block)
            elif keep.any():
                blocks.append(block.kept(keep))
        self._blocks = tuple(blocks)

    def nearest(self, vector: np.ndarray, wanted: Filter, count: int) -> list[tuple[int, float]]:
        """Unit vector float32 (D,) → at most `count` of (id, cosine), nearest first; equal ones oldest first."""
        ids, cosines = [], []
        for block, rows, n in self._let_through(wanted):
            if len(rows) > n // 4:  # the whole product is cheaper than gathering most of its rows
                block_cosines = (block.vectors[:n] @ vector)[rows]
            else:
                block_cosines = block.vectors[rows] @ vector
            if len(rows) > count:
                best = np.argpartition(-block_cosines, count - 1)[:count]
                best.sort()
                rows, block_cosines = rows[best], block_cosines[best]
            ids.append(block.ids[rows])
            cosines.append(block_cosines)
        if not ids:
            return []
        all_ids, all_cosines = np.concatenate(ids), np.concatenate(cosines)
        order = np.argsort(-all_cosines, kind="stable")[:count]
        return [(int(all_ids[row]), float(all_cosines[row])) for row in order]

    def _let_through(self, wanted: Filter):
        """(block, int64 rows, rows looked at) for every block with at least one row."""
        devices = self._devices.known(wanted.device_ids)
        labels = self._labels.known([label.casefold() for label in wanted.labels])
        for block in self._blocks:
            n = block.n
            keep = np.ones(n, bool)
            if wanted.after_ms:
                keep &= block.at_ms[:n] >= wanted.after_ms
            if wanted.before_ms:
                keep &= block.at_ms[:n] < wanted.before_ms
            if wanted.device_ids:
                keep &= np.isin(block.devices[:n], devices)
            if wanted.labels:
                keep &= np.isin(block.labels[:n], labels)
            if wanted.ids:
                keep &= np.isin(block.ids[:n], np.array(wanted.ids, np.int64))
            rows = np.flatnonzero(keep)
            if len(rows):
                yield block, rows, n
