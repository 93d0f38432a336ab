"""Photographs from one or several sources as training wants them: drawn by weight, split, with their captions."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from export import photos
from export.photographs.decode import stored_bytes
from export.photographs.errors import PhotographsError
from export.photographs.index import Index
from export.photographs.sources import CACHE_GB, EXAMPLE, Source, parse_source
from export.photographs.views import Views
from export.teachers import cache_root

FEWEST = 32  # usable photographs, below which nothing is trained
PACK_SIDE = 160  # pixels of a view of our own pack, whose pictures are hardly larger
SIDE = 224
SAMPLE_FOLDER = "skimage"
NAMED = 5
_SOURCE = 1 << 40  # ids: number of the source times this, plus the number of the picture


class Photographs:
    """Pictures of `side` pixels. `ids` are int64: a source and a picture of it.

    `draw` gives random ids, `take` their pixels. `training` and `unseen` are the two parts of a held-out split.
    """

    def __init__(self, sources: Sequence[Source], views: Sequence[Views], keep: tuple[int, bool] | None = None) -> None:
        """keep: (step, whether of each `step` pictures only the first belongs here, or only the others)."""
        self.sources, self._views, self._keep = list(sources), list(views), keep
        self.weights = [source.weight for source in sources]

    @property
    def side(self) -> int:
        return self._views[0].side

    def __len__(self) -> int:
        return sum(map(self._count, range(len(self._views))))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), self.side, self.side, 3

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random ids (count,), with repetition, sources by their shares."""
        if len(self._views) == 1:
            return self._ids(0, torch.randint(0, self._count(0), (count,), generator=generator))
        shares = torch.tensor(self.shares())
        which = torch.multinomial(shares, count, replacement=True, generator=generator)
        places = torch.rand(count, generator=generator, dtype=torch.float64)
        sizes = torch.tensor([self._count(source) for source in range(len(self._views))])[which]
        numbers = (places * sizes).long()
        ids = torch.empty(count, dtype=torch.int64)
        for source in range(len(self._views)):
            own = which == source
            ids[own] = self._ids(source, numbers[own])
        return ids

    def shares(self) -> list[float]:
        """Of the draws, by source: its weight, or by size of what the weights leave."""
        sizes = [self._count(source) for source in range(len(self._views))]
        stated = sum(weight for weight in self.weights if weight is not None)
        if all(weight is not None for weight in self.weights):
            return [weight / stated for weight in self.weights]
        free = sum(size for size, weight in zip(sizes, self.weights) if weight is None)
        return [
            weight if weight is not None else (1 - stated) * size / max(1, free)
            for size, weight in zip(sizes, self.weights)
        ]

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """At most `count` ids without repetition, sorted; sources by their shares as far as they reach."""
        rng = np.random.default_rng(seed)
        if len(self._views) == 1:
            numbers = np.sort(rng.permutation(self._count(0))[:count])
            return self._ids(0, torch.from_numpy(numbers)).numpy()
        parts = []
        for source, share in enumerate(self.shares()):
            numbers = np.sort(rng.permutation(self._count(source))[: round(count * share)])
            parts.append(self._ids(source, torch.from_numpy(numbers)).numpy())
        return np.concatenate(parts)

    def take(self, ids: np.ndarray | torch.Tensor) -> np.ndarray:
        """ids (B,) → uint8 (B, side, side, 3) RGB."""
        ids = np.asarray(ids, np.int64)
        self.ahead(ids)
        out = np.empty((len(ids), self.side, self.side, 3), np.uint8)
        for source, views in enumerate(self._views):
            own = np.flatnonzero(ids // _SOURCE == source)
            if len(own):
                out[own] = views.take(ids[own] % _SOURCE)
        return out

    def stored(self, photo: int) -> bytes:
        """The bytes of a picture's file. Raises `PhotographsError` when they cannot be read."""
        place = self._views[photo // _SOURCE].index.place(photo % _SOURCE)
        try:
            return stored_bytes(place)
        except OSError as error:
            raise PhotographsError(f"{place[3]}: cannot be read ({error.strerror or error})") from error

    def name(self, photo: int) -> str:
        """A picture's name in its source."""
        return self._views[photo // _SOURCE].index.name(photo % _SOURCE)

    def ahead(self, ids: np.ndarray | torch.Tensor) -> None:
        """Starts decoding what `take` will be asked for."""
        ids = np.asarray(ids, np.int64)
        for source, views in enumerate(self._views):
            views.ahead(ids[ids // _SOURCE == source] % _SOURCE)

    def split(self, most: int) -> tuple[Photographs, Photographs]:
        """(what is trained on, about `most` that no step sees), from all over: a source's end is of one kind."""
        step = max(4, len(self) // most)
        return tuple(Photographs(self.sources, self._views, (step, unseen)) for unseen in (False, True))

    def all_ids(self) -> np.ndarray:
        """Every id, in order."""
        parts = [self._ids(source, torch.arange(self._count(source))) for source in range(len(self._views))]
        return torch.cat(parts).numpy()

    def captions(self) -> list[tuple[str, ...]]:
        """Of every picture, in the order of `all_ids`."""
        return [self._views[i // _SOURCE].index.captions.get(i % _SOURCE, ()) for i in self.all_ids().tolist()]

    def labels(self) -> list[str]:
        """The class of every picture, "" where it has none, in the order of `all_ids`."""
        return [self._views[i // _SOURCE].index.labels.get(i % _SOURCE, "") for i in self.all_ids().tolist()]

    def source_numbers(self) -> np.ndarray:
        """(N,): of which source every picture is, from 0 in the order they were given, in the order of `all_ids`."""
        return self.all_ids() // _SOURCE

    def captioned(self) -> list[str]:
        """All captions, each once, sorted."""
        return sorted({text for views in self._views for group in views.index.captions.values() for text in group})

    def finish_index(self) -> None:
        """Waits until all sources are wholly searched. Raises `PhotographsError` where that fails."""
        for views in self._views:
            views.index.finish()

    @property
    def identity(self) -> str:
        """Names sources, sizes and contents: what cached results of them depend on."""
        parts = [f"{s.key}:{v.index.stamp}:{len(v)}" for s, v in zip(self.sources, self._views)]
        return f"{self.side};{self._keep};{self.weights};" + ",".join(parts)

    def described(self) -> str:
        """For a card: names of the sources, counts and shares; says where they are scikit-image's photographs."""
        parts = []
        for source, views, share in zip(self.sources, self._views, self.shares()):
            name = Path(source.places[0]).name if source.kind != "hub" else source.text
            name = name.removesuffix(".tar")
            more = f" and {len(source.places) - 1} more" if source.kind == "tar" and len(source.places) > 1 else ""
            weight = f", {share:.0%} of the draws" if len(self.sources) > 1 else ""
            parts.append(f"{name}{more} ({len(views)} photographs{weight})")
        return "; ".join(parts) + (" (scikit-image's photographs: a smoke test, no training)" if self._smoke() else "")

    def broken(self) -> list[str]:
        """What is wrong with each picture that could not be decoded so far."""
        return [text for views in self._views for text in views.broken.values()]

    def report(self, say: Callable[[str], None] | None = None) -> None:
        """Says once how many pictures were broken, and names some."""
        broken = self.broken()
        if broken:
            say = say or (lambda text: print(text, file=sys.stderr))
            more = f" (and {len(broken) - NAMED} more)" if len(broken) > NAMED else ""
            say(f"{len(broken)} pictures could not be decoded and were left out: {'; '.join(broken[:NAMED])}{more}")

    def close(self) -> None:
        for views in self._views:
            views.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in self.all_ids():
            yield self.take([number])[0]

    def _smoke(self) -> bool:
        return any(SAMPLE_FOLDER in Path(place).parts for source in self.sources for place in source.places)

    def _count(self, source: int) -> int:
        count = len(self._views[source])
        if self._keep is None:
            return count
        step, unseen = self._keep
        first = -(-count // step)
        return first if unseen else count - first

    def _ids(self, source: int, numbers: torch.Tensor) -> torch.Tensor:
        if self._keep is not None:
            step, unseen = self._keep
            numbers = numbers * step if unseen else numbers + numbers // (step - 1) + 1
        return numbers + source * _SOURCE


def open_photographs(
    images: Sequence[str] = (),
    *,
    side: int | None = None,
    cache_gb: float = CACHE_GB,
    caption: str | None = None,
    workers: int | None = None,
) -> Photographs:
    """The photographs of every `--images SOURCE[=WEIGHT]` (see `sources.parse_source`), as views of `side` pixels.

    Without any: ../shared/data/photos-train.tar where it lies beside the checkout. cache_gb: disk for indices and
    decoded views, shared by the sources; caption: the column or field that holds captions; workers: processes that
    decode (default: the cores but one). Raises `PhotographsError` for a source that cannot be used, and when fewer than
    32 pictures can be decoded.
    """
    own = photos.default_source()
    if not images and not own.is_file():
        raise PhotographsError(f"no photographs: give some with --images: {EXAMPLE}")
    sources = [parse_source(text, caption) for text in images] or [parse_source(str(own), caption)]
    side = side or (SIDE if images else PACK_SIDE)
    if len({source.key for source in sources}) < len(sources):
        raise PhotographsError("--images names one source twice: leave one out, or give it a larger weight")
    stated = sum(source.weight or 0 for source in sources)
    if any(source.weight is None for source in sources) and stated >= 1:
        raise PhotographsError(f"--images: the weights add up to {stated:g}, which leaves nothing for the others")
    budget = int(max(0.0, cache_gb) * (1 << 30)) // len(sources)
    views = []
    for source in sources:
        folder = cache_root() / "photographs" / source.key
        index = Index(source, folder)
        if not len(index):
            raise PhotographsError(f"--images {source.text}: holds no pictures; give {EXAMPLE}")
        views.append(Views(index, side, folder, budget, workers))
    found = Photographs(sources, views)
    atexit.register(found.close)
    usable = 0
    for each in views:
        usable += each.usable(FEWEST - usable) if usable < FEWEST else 0
    if usable < FEWEST:
        broken = f"; {found.broken()[0]}" if found.broken() else ""
        raise PhotographsError(
            f"--images: only {usable} usable pictures in {', '.join(source.text for source in sources)}, "
            f"at least {FEWEST} are needed{broken}"
        )
    return found
