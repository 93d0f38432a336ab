"""What a judge makes of the uncompressed views of a data set, each asked once as far as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.data.views import CACHED_BYTES, Views
from benchmarks.judges.judge import Features, Judge


class Originals:
    """What a judge's CLIP makes of uncompressed views: what decoded ones are compared with."""

    def __init__(self, views: Views, judge: Judge) -> None:
        self._views, self._judge = views, judge
        self._kept: dict[int, Features] = {}
        self._bytes = 0

    def embed(self, indices: Sequence[int]) -> Features:
        """Of the images at `indices` (none of them broken), at most `Judge.batch`."""
        import torch

        missing = [index for index in indices if index not in self._kept]
        fresh = dict(zip(missing, self._rows(self._judge.embed([self._views[i] for i in missing])))) if missing else {}
        rows = [self._kept[index] if index in self._kept else fresh[index] for index in indices]
        for index, row in fresh.items():
            if self._bytes < CACHED_BYTES:
                self._kept[index] = row
                self._bytes += row.embeddings.nbytes + (0 if row.patches is None else row.patches.nbytes)
        patches = None if rows[0].patches is None else torch.stack([row.patches for row in rows])
        return Features(np.stack([row.embeddings for row in rows]), patches)

    @staticmethod
    def _rows(seen: Features) -> list[Features]:
        count = len(seen.embeddings)
        return [Features(seen.embeddings[i], None if seen.patches is None else seen.patches[i]) for i in range(count)]
