"""What the teacher says of views of photographs: asked once, kept in the export cache as float16.

A view is a square of a photograph, the same for the same photograph and number. The student sees it at its own size,
the teacher at the teacher's: what is small for the one is sharp for the other.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from export.families.front import normalise
from export.photographs.collection import Photographs
from export.teachers import cache_root
from export.towers import Tower
from synthesis.folding import fold_batch_norm

VERSION = 1  # raise it when the same settings give other views
LEAST_SCALE = 0.5  # of a photograph's side, of every view but the first
SAME = 0.99  # cosine of a teacher in bfloat16 with itself, on photographs
PROBES = 8  # photographs
SAVE_EVERY = 2048  # vectors


class Targets:
    """Views of `photographs` and the teacher's vectors of them, `views` of each.

    View 0 is the whole photograph, the others are random squares of at least half its side.
    """

    def __init__(
        self, photographs: Photographs, teacher: Tower, size: int, views: int, seed: int, count: int | None = None
    ) -> None:
        """size: of the student's side, pixels; count: of photographs, drawn by `seed`; None: all."""
        self.photographs, self.teacher, self.size, self.views, self.seed = photographs, teacher, size, views, seed
        self.ids = photographs.all_ids() if count is None else photographs.sample(count, seed)
        self._net = _quick(teacher, photographs.take(self.ids[:PROBES]))
        said = json.dumps([VERSION, teacher.id, views, seed, len(self.ids), photographs.identity])
        folder = cache_root() / "student-targets"
        folder.mkdir(exist_ok=True)
        stem = folder / hashlib.sha256(said.encode()).hexdigest()[:16]
        with torch.inference_mode():
            dim = self._asked(photographs.take(self.ids[:1]), np.ones((1, 3)) * [1, 0, 0]).shape[1]
        shape = (views, len(self.ids), dim)
        self._known = stem.with_suffix(".known.npy")
        self._vectors = _mapped(stem.with_suffix(".f16"), shape)
        self._has = np.zeros(shape[:2], bool)
        if self._known.exists():
            kept = np.load(self._known)
            if kept.shape == self._has.shape:
                self._has = kept
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        return self._vectors.shape[2]

    def take(self, places: np.ndarray, view: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Places among the photographs (B,) → pixels float 0..255 (B, 3, size, size) for the student, and the teacher's
        unit vectors (B, D)."""
        pictures = self.photographs.take(self.ids[places])
        boxes = self._boxes(places, view)
        lacking = np.flatnonzero(~self._has[view, places])
        if len(lacking):
            with torch.inference_mode():
                self._vectors[view, places[lacking]] = self._asked(pictures[lacking], boxes[lacking]).numpy()
            self._has[view, places[lacking]] = True
            self._unsaved += len(lacking)
            if self._unsaved >= SAVE_EVERY:
                self.save()
        wanted = torch.from_numpy(self._vectors[view, places].astype(np.float32))
        return _cut(pictures, boxes, (self.size, self.size)), F.normalize(wanted, dim=-1)

    def save(self) -> None:
        """Writes down which vectors are known."""
        self._vectors.flush()
        partial = self._known.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, self._has)
        partial.rename(self._known)
        self._unsaved = 0

    def _boxes(self, places: np.ndarray, view: int) -> np.ndarray:
        """float (B, 3): side, left and top of each square, as shares of the photograph's side and of what is left."""
        if view == 0:
            return np.tile([1.0, 0.0, 0.0], (len(places), 1))
        drawn = np.stack([np.random.default_rng([self.seed, view, int(place)]).random(3) for place in places])
        drawn[:, 0] = LEAST_SCALE + (1 - LEAST_SCALE) * drawn[:, 0]
        return drawn

    def _asked(self, pictures: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
        """uint8 (B, S, S, 3) → the teacher's vectors float16 (B, D)."""
        pixels = _cut(pictures, boxes, (self.teacher.height, self.teacher.width))
        return _vectors(self._net, pixels).half()


def _mapped(path, shape: tuple[int, ...]) -> np.memmap:
    size = 2 * int(np.prod(shape))
    mode = "r+" if path.exists() and path.stat().st_size == size else "w+"
    return np.memmap(path, np.float16, mode, shape=shape)


def _cut(pictures: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """uint8 (B, S, S, 3), one square of each → float 0..255 (B, 3, *size), antialiased."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    side = x.shape[-1]
    if (boxes[:, 0] == 1).all():
        parts = x.float()
        return (
            parts
            if parts.shape[-2:] == size
            else F.interpolate(parts, size, mode="bicubic", antialias=True).clamp(0, 255)
        )
    out = torch.empty(len(x), 3, *size)
    for row, (scale, left, top) in enumerate(boxes):
        width = round(side * scale)
        x0, y0 = round(left * (side - width)), round(top * (side - width))
        part = x[row : row + 1, :, y0 : y0 + width, x0 : x0 + width].float()
        out[row] = F.interpolate(part, size, mode="bicubic", antialias=True)[0]
    return out.clamp_(0, 255)


def _vectors(net: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    dtype = next(net.parameters()).dtype
    x = normalise(pixels).to(dtype).contiguous(memory_format=torch.channels_last)
    return F.normalize(net(x).float(), dim=-1)


@torch.inference_mode()
def _quick(teacher: Tower, pictures: np.ndarray) -> nn.Module:
    """The teacher folded and in bfloat16, each where its vectors of photographs stay the same."""
    pixels = _cut(pictures, np.tile([1.0, 0.0, 0.0], (len(pictures), 1)), (teacher.height, teacher.width))
    wanted = _vectors(teacher.net, pixels)
    best = teacher.net
    for change in (fold_batch_norm, lambda net: net.to(torch.bfloat16)):
        try:
            changed = change(copy.deepcopy(best)).to(memory_format=torch.channels_last)
            if (_vectors(changed, pixels) * wanted).sum(1).min() >= SAME:
                best = changed
        except Exception:  # layers that do not fold, or take no half precision
            continue
    return best
