"""Photographs coded once by a bundle, with what the tower says of the originals: all that tuning reads.

The device's side never changes, so no encoder runs while the decoder learns. Kept in the export cache, in chunks, so
that an interrupted command goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from export.augment import crops
from export.content import Content
from export.families.front import IMAGE_MEAN, IMAGE_STD, normalise
from export.photographs.collection import Photographs
from export.teacher import Teacher
from export.teachers import cache_root
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
        self.photographs, self.seed = photographs, seed

    def coded(self, name: str, photographs: Photographs, count: int) -> CodedViews:
        """About `count` random views, in whole chunks; `name` keeps training and unseen views apart."""
        size = min(CHUNK, count)
        folder = self._folder()
        chunks = range(-(-count // size))
        with tqdm(total=len(chunks) * size, desc=f"coded {name} views", unit="view") as bar:
            for number in chunks:
                if not (folder / f"{name}-{size}-{number:04d}.json").exists():
                    self._make(folder, f"{name}-{size}-{number:04d}", photographs, number, size)
                bar.update(size)
        return CodedViews([self._opened(folder, f"{name}-{size}-{number:04d}") for number in chunks], size)

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

    def _folder(self) -> Path:
        """Named by all that the views depend on."""
        encoder = sorted(entry["sha256"] for entry in self.bundle.card.edge["files"].values())
        said = [VERSION, self.bundle.model_id.hex(), encoder, self.teacher.id, self.seed, self.photographs.identity]
        said.append(None if self.entry is None else self.entry.to_card())
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        folder = cache_root() / "tune-views" / f"{self.bundle.name}-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _make(self, folder: Path, name: str, photographs: Photographs, number: int, size: int) -> None:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        parts: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
        for start in range(0, size, BATCH):
            batch = min(BATCH, size - start)
            pixels = crops(photographs, self.bundle.input_size[0], batch, generator, "cpu") * IMAGE_STD + IMAGE_MEAN
            views = pixels.round().clamp(0, 255).to(torch.uint8)  # (B, 3, H, W)
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
        for field, values in parts.items():
            if values:
                partial = folder / f"{name}.{field}.partial.npy"
                np.save(partial, np.ascontiguousarray(np.concatenate(values)))
                partial.rename(folder / f"{name}.{field}.npy")
        kept = [field for field, values in parts.items() if values]
        (folder / f"{name}.json").write_text(json.dumps(kept))  # last: it says that the chunk is whole

    @staticmethod
    def _opened(folder: Path, name: str) -> dict[str, np.ndarray]:
        fields = json.loads((folder / f"{name}.json").read_text())
        return {field: np.load(folder / f"{name}.{field}.npy", mmap_mode="r") for field in fields}
