"""Zero-shot heads: labels x templates → a matrix of unit class vectors, built once, cached in memory and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from cloud.engine.one_shot_executor import finished
from thinwire.files import write_whole
from thinwire.label_notes import coinciding, label_notes
from thinwire.labels import fill_templates, spoken

log = logging.getLogger(__name__)

PROMPTS_PER_CALL = 512  # between two calls others get their turn: about two seconds on a core
_DIGEST_BYTES = 32


class TextEncoder(Protocol):
    """What a head needs of a CLIP: an identity, a width, a temperature and a text tower."""

    @property
    def id(self) -> str: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def logit_scale(self) -> float: ...
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Head:
    """Class vectors of one (CLIP, labels, templates).

    classes: float32 (L, D) unit rows, read-only; logit_scale: the CLIP's temperature. kept: int (K,), the labels that
    compete: of those whose vectors coincide only the first, since each more would take a share of its probability.
    notes: sentences about labels that coincide, and about a single one.
    """

    labels: tuple[str, ...]
    classes: np.ndarray
    logit_scale: float
    kept: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
        return self.classes.nbytes + sum(80 + len(label) for label in self.labels)

    def similarities(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit image vectors (B, D) float32 → cosines (B, L) float32."""
        return embeddings @ self.classes.T

    def probabilities(self, similarities: np.ndarray) -> np.ndarray:
        """Cosines (B, L) → zero-shot probabilities (B, L) float32, rows summing to 1."""
        logits = self.logit_scale * similarities.astype(np.float64)
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)


def make_head(
    labels: tuple[str, ...], classes: np.ndarray, logit_scale: float, context_length: int | None = None
) -> Head:
    """Class vectors (L, D) → the head, with labels that coincide found."""
    first = coinciding(classes)
    kept = np.flatnonzero(first == np.arange(len(labels)))
    return Head(labels, classes, logit_scale, kept, label_notes(labels, first, context_length))


def head_key(clip_id: str, labels: Sequence[str], templates: Sequence[str]) -> str:
    """SHA-256 hex of (CLIP id, labels in order and how they are spoken, templates in order): the cache name; it does
    not reveal the labels."""
    said = [label if spoken(label) == label else [label, spoken(label)] for label in labels]
    text = json.dumps([clip_id, said, list(templates)], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_head_key = lru_cache(maxsize=8)(head_key)  # many devices ask with few label sets, and one may hold thousands


def default_cache_dir() -> Path:
    """`$THINWIRE_CACHE/heads`, or `~/.cache/thinwire/heads`; a folder of this process where nobody has a home."""
    if own := os.environ.get("THINWIRE_CACHE"):
        return Path(own) / "heads"
    try:
        return Path.home() / ".cache" / "thinwire" / "heads"
    except RuntimeError:  # neither HOME nor an entry in passwd: `docker run --user 12345`
        return Path(_own_folder().name) / "heads"


@lru_cache(maxsize=1)
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    log.warning("this user has no home: text heads are kept for this run only; THINWIRE_CACHE names a folder for them")
    return tempfile.TemporaryDirectory(prefix="thinwire-", ignore_cleanup_errors=True)


class HeadCache:
    """Heads of one CLIP by (labels, templates): an LRU cache in memory; on disk the oldest files are deleted first.

    Guarantees: a file that is truncated, altered or of another shape is never used (each carries its SHA-256) and is
    built again; files appear atomically, so that several servers may share a folder; a folder that cannot be written
    costs a warning, not an answer. Clients choose the labels, so memory and disk both have a budget in bytes.
    Thread-safe. `cache_dir=None` keeps heads in memory only.
    """

    def __init__(
        self,
        clip: TextEncoder,
        cache_dir: Path | None = None,
        *,
        memory_bytes: int = 128 << 20,
        disk_bytes: int = 512 << 20,
    ) -> None:
        self.clip = clip
        self._dir = cache_dir
        self._memory_budget = memory_bytes
        self._disk_budget = disk_bytes
        self._lock = threading.Lock()
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._held_bytes = 0
        self._progress: dict[str, int] = {}
        self._warned = False
        self.counts = {"memory_hits": 0, "disk_hits": 0, "builds": 0, "bad_files": 0}

    def key(self, labels: Sequence[str], templates: Sequence[str]) -> str:
        return _head_key(self.clip.id, tuple(labels), tuple(templates))

    def lookup(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Head | None:
        """The head if memory or disk holds it; costs at most one file read."""
        key = self.key(labels, templates)
        with self._lock:
            if key in self._heads:
                self._heads.move_to_end(key)
                self.counts["memory_hits"] += 1
                return self._heads[key]
        classes = self._read(key, len(labels))
        if classes is None:
            return None
        self.counts["disk_hits"] += 1
        return self._keep(key, labels, classes)

    def load(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Head:
        """The head from memory, from disk, or built with the text tower (seconds, when it is new and large)."""
        return self.lookup(labels, templates) or self.build(labels, templates)

    def build(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Head:
        """Runs the text tower over labels x templates: the mean of a label's unit prompt vectors, made unit again."""
        return finished(self._build_steps(labels, templates))

    def load_steps(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Generator[None, None, Head]:
        """`load` in steps of `PROMPTS_PER_CALL` texts; `progress` tells how far it is."""
        if len(labels) * len(templates) <= PROMPTS_PER_CALL:
            return self.load(labels, templates)
        return self.lookup(labels, templates) or (yield from self._build_steps(labels, templates))

    def progress(self, labels: Sequence[str], templates: Sequence[str]) -> tuple[int, int]:
        """(texts whose vectors are made, texts in all) of a head that waits, is being built or is held."""
        key, texts = self.key(labels, templates), len(labels) * len(templates)
        made = self._progress.get(key)  # first: a head that is built is held before it leaves here
        return (texts if key in self._heads else 0) if made is None else made, texts

    def _build_steps(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Generator[None, None, Head]:
        key = self.key(labels, templates)
        prompts = [prompt for label in labels for prompt in fill_templates(label, templates)]
        sums = np.zeros((len(labels), self.clip.embed_dim), np.float32)
        try:
            for start in range(0, len(prompts), PROMPTS_PER_CALL):
                vectors = self.clip.encode_texts(prompts[start : start + PROMPTS_PER_CALL])
                np.add.at(sums, np.arange(start, start + len(vectors)) // len(templates), vectors)
                self._progress[key] = start + len(vectors)
                yield
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            classes = sums / np.maximum(norms, np.finfo(np.float32).tiny)
            self.counts["builds"] += 1
            self._write(key, classes)
            return self._keep(key, labels, classes)
        finally:
            self._progress.pop(key, None)

    def _keep(self, key: str, labels: tuple[str, ...], classes: np.ndarray) -> Head:
        classes.setflags(write=False)
        head = make_head(labels, classes, self.clip.logit_scale, getattr(self.clip, "context_length", None))
        with self._lock:
            if key not in self._heads:
                self._heads[key] = head
                self._held_bytes += head.nbytes
            while self._held_bytes > self._memory_budget and len(self._heads) > 1:
                self._held_bytes -= self._heads.popitem(last=False)[1].nbytes
        return head

    # A file is SHA-256 of the rest, then float32 little-endian (L, D); both lengths are known from the key.

    def _path(self, key: str) -> Path | None:
        return self._dir / f"{key}.head" if self._dir else None

    def _read(self, key: str, n_labels: int) -> np.ndarray | None:
        path = self._path(key)
        expected = _DIGEST_BYTES + 4 * n_labels * self.clip.embed_dim
        try:
            if path is None or not path.exists():
                return None
            with path.open("rb") as file:
                data = file.read(expected + 1)
        except OSError as error:
            self._warn(error)
            return None
        payload = data[_DIGEST_BYTES:]
        if len(data) != expected or hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
            self.counts["bad_files"] += 1
            log.warning("text-head cache file %s is damaged; building it again", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its age decides what is dropped first
        return np.frombuffer(payload, "<f4").reshape(n_labels, self.clip.embed_dim).astype(np.float32)

    def _write(self, key: str, classes: np.ndarray) -> None:
        path = self._path(key)
        if path is None:
            return
        payload = classes.astype("<f4").tobytes()
        try:
            write_whole(path, hashlib.sha256(payload).digest() + payload)
            self._prune()
        except OSError as error:
            self._warn(error)

    def _prune(self) -> None:
        files = []
        for path in self._dir.glob("*.head"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another server pruned it
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files)[:-1]:
            if total <= self._disk_budget:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("text-head cache %s is not usable (%s); heads are kept in memory only", self._dir, error)
