"""Views that a codec has coded once, kept in the export cache: what adapting a tower and tuning a decoder share.

In chunks, so that an interrupted command goes on with the next one. What a chunk holds is the caller's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from export.augment import crops
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.photographs.collection import Photographs
from export.teachers import cache_root
from thinwire.bundle import Bundle


class KeptViews:
    """A folder of chunks, named by all that they depend on: the bundle's device side and `said`, plain JSON."""

    def __init__(self, kind: str, version: int, bundle: Bundle, said: Sequence[Any]) -> None:
        """kind: of views, a folder of the cache; version: raised when the same settings give other views."""
        encoder = sorted(entry["sha256"] for entry in bundle.card.edge["files"].values())
        everything = json.dumps([version, bundle.picture_id.hex(), encoder, *said])
        digest = hashlib.sha256(everything.encode()).hexdigest()
        self.folder = cache_root() / kind / f"{bundle.name}-{digest[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def complete(
        self, chunks: Sequence[str], last: str, views: int, title: str, make: Callable[[Path, int], None]
    ) -> list[Path]:
        """Makes the chunks that are missing, `views` views each, and returns all as paths without a suffix.

        make: writes chunk number N of `chunks` at a path; `last`: the suffix of the file that it writes last, so that
        it says that the chunk is whole.
        """
        paths = [self.folder / name for name in chunks]
        with tqdm(total=len(paths) * views, desc=title, unit="view") as bar:
            for number, path in enumerate(paths):
                if not path.with_name(path.name + last).exists():
                    make(path, number)
                bar.update(views)
        return paths


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write at; renamed at the end, so that `path` is there whole or not at all."""
    partial = path.with_suffix(f".partial{path.suffix}")
    yield partial
    partial.rename(path)


def random_views(photographs: Photographs, side: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (count, 3, side, side): crops of random photographs, as training sees them."""
    pixels = crops(photographs, side, count, generator, "cpu") * IMAGE_STD + IMAGE_MEAN
    return pixels.round().clamp(0, 255).to(torch.uint8)


def views_of_step(step: int, batch: int, count: int, seed: int) -> tuple[int, np.ndarray]:
    """Which round over all `count` views a step is in, and the indices (B,) of its views.

    A round takes each view at most once, in an order of its own; what fills no batch is left out of it.
    """
    batch = min(batch, count)
    round_, place = divmod(step, count // batch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + round_))
    return round_, order[place * batch : (place + 1) * batch].numpy()
