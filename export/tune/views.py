"""Photographs coded once by a bundle, with what the tower says of the originals: all that tuning reads.

The device's side never changes, so no encoder runs while the decoder learns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.content import Content
from export.families.front import normalise
from export.kept_views import KeptViews, random_views, written_whole
from export.photographs.collection import Photographs
from export.teacher import Teacher
from synthesis.neck import Entry
from thinwire.bundle import Bundle

VERSION = 1  # raise it when the same settings give other views
CHUNK = 128
BATCH = 16
FIELDS = ("views", "stored", "rungs", "pooled", "last", "entry")


@dataclass(frozen=True)
class CodedViews:
    """Chunks of arrays by field, memory-mapped. views uint8 (N, H, W, 3); stored as `Content.of` gives it; rungs (N,):
    the one that a view was coded at (where content is nested it says nothing); pooled float32 (N, D); last float16,
    what the tower shows at its end; entry float16, what its own blocks give the entry of a neck."""

    chunks: list[dict[str, np.ndarray]]
    size: int

    def __len__(self) -> int:
        return sum(len(chunk["rungs"]) for chunk in self.chunks)

    def get(self, field: str, index: np.ndarray) -> torch.Tensor | None:
        """Rows (B, ...) of a field; None where it was not kept."""
        if field not in self.chunks[0]:
            return None
        return torch.from_numpy(np.stack([self.chunks[i // self.size][field][i % self.size] for i in index]))


class ViewCoder:
    """Codes photographs with `content` and asks `teacher`; `entry` where a neck is to be trained."""

    def __init__(
        self,
        bundle: Bundle,
        content: Content,
        teacher: Teacher,
        entry: Entry | None,
        photographs: Photographs,
        seed: int,
    ) -> None:
        self.bundle, self.content, self.teacher, self.entry = bundle, content, teacher, entry
        self.seed = seed
        joins = None if entry is None else entry.to_card()
        self._kept = KeptViews("tune-views", VERSION, bundle, [teacher.id, seed, photographs.identity, joins])

    def coded(self, name: str, photographs: Photographs, count: int) -> CodedViews:
        """About `count` random views, in whole chunks; `name` keeps training and unseen views apart."""
        size = min(CHUNK, count)
        names = [f"{name}-{size}-{number:04d}" for number in range(-(-count // size))]
        paths = self._kept.complete(
            names,
            ".json",
            size,
            f"coded {name} views",
            lambda path, number: self._make(path, photographs, number, size),
        )
        return CodedViews([_opened(path) for path in paths], size)

    def bytes_per_view(self) -> int:
        """Disk that a coded view takes."""
        pixels = 3 * self.bundle.input_size[0] * self.bundle.input_size[1]
        blank = torch.zeros(1, 3, *self.bundle.input_size)
        with torch.no_grad():
            seen = self.teacher(blank.to(self.teacher.mean.device))
            entry = (
                0 if self.entry is None else 2 * self.teacher.at_entry(blank.to(seen.pooled.device), self.entry).numel()
            )
        return pixels + 2 * (0 if seen.last is None else seen.last.numel()) + entry + 4 * seen.pooled.numel()

    def _make(self, target: Path, photographs: Photographs, number: int, size: int) -> None:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        parts: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
        for start in range(0, size, BATCH):
            batch = min(BATCH, size - start)
            views = random_views(photographs, self.bundle.input_size[0], batch, generator)  # (B, 3, H, W)
            rungs = torch.randint(1, self.content.rungs + 1, (batch,), generator=generator).numpy()
            parts["views"].append(views.permute(0, 2, 3, 1).numpy())
            parts["rungs"].append(rungs)
            parts["stored"].append(self.content.of(parts["views"][-1], rungs))
            x = normalise(views).to(self.teacher.mean.device).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                seen = self.teacher(x)
                parts["pooled"].append(self.teacher.embedding(seen).float().cpu().numpy())
                if seen.last is not None:
                    parts["last"].append(seen.last.cpu().half().numpy())
                if self.entry is not None:
                    parts["entry"].append(self.teacher.at_entry(x, self.entry).cpu().half().numpy())
        kept = [field for field, values in parts.items() if values]
        for field in kept:
            with written_whole(_file(target, field)) as file:
                np.save(file, np.ascontiguousarray(np.concatenate(parts[field])))
        with written_whole(target.with_suffix(".json")) as file:
            file.write_text(json.dumps(kept))


def _opened(chunk: Path) -> dict[str, np.ndarray]:
    fields = json.loads(chunk.with_suffix(".json").read_text())
    return {field: np.load(_file(chunk, field), mmap_mode="r") for field in fields}


def _file(chunk: Path, field: str) -> Path:
    return chunk.with_suffix(f".{field}.npy")
