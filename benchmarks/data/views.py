"""A data set's canonical views and what CLIP makes of them, each made once as far as memory allows."""

from __future__ import annotations

import numpy as np

from benchmarks.data.sets import Dataset
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view, open_image

CACHED_BYTES = 1 << 30


class Views:
    """Canonical views of a data set. A broken image raises each time it is asked."""

    def __init__(self, data: Dataset, height: int, width: int) -> None:
        self.data, self.size = data, (height, width)
        self._made: dict[int, np.ndarray | ThinwireError] = {}
        self._room = CACHED_BYTES // (height * width * 3)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), read-only. Raises `ImageError`, which names the file."""
        found = self._made.get(index)
        if found is None:
            item = self.data.items[index]
            try:
                found = canonical_view(open_image(self.data.read(item), item.name), *self.size)
                found.setflags(write=False)
            except ThinwireError as error:
                found = error
            if len(self._made) < self._room:
                self._made[index] = found
        if isinstance(found, ThinwireError):
            raise found
        return found
