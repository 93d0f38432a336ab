"""Answers without a link: CLIP's own image tower on the device (an `embedding` bundle) against label vectors.

The label vectors are fetched over `EncodeText` while the link works, and kept beside the spool. The image vector is the
one that the cloud would decode: the bundle's integer symbols through its linear map, both on the device. Such answers
are provisional ("final": false, "answered_by": "device"); the frame stays in the spool and the cloud's answer follows.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge.encoder import Encoder
from edge.errors import Refused, ServerTimeout, described
from edge.line.uplink import Uplink
from thinwire.bundle import Bundle
from thinwire.contract import Reason
from thinwire.errors import BundleError
from thinwire.files import write_whole
from thinwire.label_notes import coinciding

CLIP_SCALE = 100.0  # what CLIP's training ends at (Radford et al. 2021, 2.5), until answers have told the real one
TEXTS_PER_CALL = (1, 32, 256)  # least, first and most: a vector is 1 to 4 kB
QUICK_S = 1.0  # a call that takes less is followed by one of twice as many
MAX_HEADER_BYTES = 1 << 20
FLOATS = {"F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True, eq=False)
class LabelVectors:
    """labels with their unit vectors float32 (L, D), and the temperature that makes probabilities of cosines."""

    labels: tuple[str, ...]
    vectors: np.ndarray
    scale: float = CLIP_SCALE

    @cached_property
    def kept(self) -> np.ndarray:
        """int (K,): the labels that compete. As in the cloud, those with one vector count as the first."""
        return np.flatnonzero(coinciding(self.vectors) == np.arange(len(self.vectors)))

    def rank(self, vector: np.ndarray, top_k: int) -> list[dict[str, Any]]:
        """Unit image vector float32 (D,) → the best labels, best first."""
        cosines = self.vectors[self.kept] @ vector  # (K,)
        logits = self.scale * cosines.astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-cosines, kind="stable")[:top_k]
        return [
            {
                "label": self.labels[self.kept[place]],
                "probability": round(float(shares[place]), 6),
                "similarity": round(float(cosines[place]), 6),
            }
            for place in best
        ]


def gives_vectors(bundle: Bundle) -> bool:
    """Whether a device can tell the CLIP vectors of its packets by itself."""
    return bundle.card.cloud["synthesis"].get("arch") == "embedding"


class ImageVectors:
    """Views → the CLIP vectors that the cloud would decode of an `embedding` bundle's packets.

    Raises `BundleError` when the bundle is of another family, or was installed without its decoder's linear map.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, encoder: Encoder | None = None) -> None:
        """encoder: the bundle's, where it is open already."""
        if not gives_vectors(bundle):
            raise BundleError(
                f"bundle {bundle.name!r} is of family {bundle.card.wire['family']!r}: answers on the device need an "
                "embedding bundle (`thinwire-export embedding`)"
            )
        self.bundle = bundle
        self.encoder = encoder or Encoder(bundle, threads)
        tensors = read_safetensors(bundle.decoder_path)
        try:
            self._axes = tensors["axes.weight"].astype(np.float32)  # (D, C)
            self._mean = tensors["axes.bias"].astype(np.float32)  # (D,)
            if self._axes.shape != (self._mean.size, bundle.latent_shape[0]):
                raise KeyError("axes.weight")
        except KeyError as error:
            raise BundleError(f"{bundle.decoder_path}: lacks {error} of the shape that the card describes") from error

    def vector(self, view: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) view of this bundle → float32 (D,) of unit length."""
        return self.vector_of(self.encoder.symbols(view))

    def vector_of(self, symbols: np.ndarray) -> np.ndarray:
        """int32 (C, 1, 1) → float32 (D,) of unit length."""
        vector = self._axes @ symbols.reshape(-1).astype(np.float32) + self._mean
        return vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))


class Fallback:
    """Holds the label vectors of one question, and answers with them. May be shared by threads.

    folder: where label vectors are kept between runs. question: labels, prompt_set and top_k, as in the spool.
    """

    def __init__(
        self, images: ImageVectors, question: dict[str, Any], folder: Path, say: Callable[[str], None]
    ) -> None:
        self._images, self._question, self._say = images, question, say
        text = json.dumps([question["labels"], question["prompt_set"], images.bundle.model_id.hex()])
        self._path = folder / f"labels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        self._held = self._load()
        self._scale_known = self._held is not None and self._held.scale != CLIP_SCALE
        self.told = ""  # why vectors could not be fetched, so that it is said once
        self._fetched: list[np.ndarray] = []  # rows so far, kept when the link goes in between
        self._fetching = threading.Lock()

    @property
    def ready(self) -> bool:
        return self._held is not None

    @property
    def bundle(self) -> Bundle:
        return self._images.bundle

    def fetch(self, uplink: Uplink) -> None:
        """Gets the label vectors, once. Raises as `Uplink.texts`, and `Refused` for a server of another CLIP."""
        with self._fetching:
            if self._held is not None:
                return
            wanted, server = self.bundle.model_id, uplink.line.server
            if all(each.model_id != wanted for each in uplink.info().bundles):
                # A server takes an embedding bundle only when its CLIP is the very one the bundle was made from
                raise Refused(
                    f"{server} does not hold bundle {self.bundle.name!r}, so its text vectors may not fit: no answers "
                    f"on the device. Start it with `--bundle {self.bundle.path}` too",
                    Reason.UNKNOWN_MODEL,
                )
            labels: Sequence[str] = self._question["labels"]
            rows, count = self._fetched, TEXTS_PER_CALL[1]
            while len(rows) < len(labels):
                started = time.monotonic()
                try:
                    reply = uplink.texts(labels[len(rows) : len(rows) + count], self._question["prompt_set"])
                except ServerTimeout:  # the vectors are too many bytes for this link in that time
                    if count == TEXTS_PER_CALL[0]:
                        raise
                    count = max(TEXTS_PER_CALL[0], count // 4)
                    continue
                rows.extend(np.array(each.values, np.float32) for each in reply.embeddings)
                if time.monotonic() - started < QUICK_S:
                    count = min(TEXTS_PER_CALL[2], 2 * count)
            vectors = np.stack(rows[: len(labels)])
            self._keep(LabelVectors(tuple(labels), vectors))

    def learn(self, predictions: Sequence[Any]) -> None:
        """Takes the server's temperature from one of its answers: ln(p1/p2) / (s1 - s2)."""
        if self._scale_known or self._held is None:
            return
        # Rounded to float32 on the wire: a share too small or two cosines too close would give noise
        usable = [each for each in predictions if each.probability > 1e-5]
        if len(usable) > 1 and usable[0].similarity - usable[-1].similarity > 1e-3:
            first, last = usable[0], usable[-1]
            scale = math.log(first.probability / last.probability) / (first.similarity - last.similarity)
            self._scale_known = True
            self._keep(LabelVectors(self._held.labels, self._held.vectors, scale))

    def answer(self, view: np.ndarray) -> list[dict[str, Any]]:
        """Predictions for a view of `bundle`, best first; only when `ready`."""
        return self._held.rank(self._images.vector(view), self._question["top_k"])

    def _keep(self, held: LabelVectors) -> None:
        self._held = held
        file = io.BytesIO()
        np.savez(file, vectors=held.vectors, scale=held.scale)
        try:
            write_whole(self._path, file.getvalue())
        except OSError as error:  # it works until the next start
            self._say(f"{self._path}: label vectors cannot be kept ({error.strerror or error})")

    def _load(self) -> LabelVectors | None:
        labels = tuple(self._question["labels"])
        try:
            with np.load(self._path, allow_pickle=False) as held:
                vectors, scale = held["vectors"].astype(np.float32), float(held["scale"])
        except (OSError, ValueError, KeyError, EOFError):
            return None
        return LabelVectors(labels, vectors, scale) if vectors.shape[:1] == (len(labels),) else None


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Float tensors of a small safetensors file. The package of that name would be 0.5 MB for these few lines.

    Layout: u64 header length, JSON header, data (https://github.com/huggingface/safetensors#format). Raises
    `BundleError`.
    """
    try:
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        return {
            name: np.frombuffer(body[slice(*each["data_offsets"])], FLOATS[each["dtype"]]).reshape(each["shape"])
            for name, each in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise BundleError(f"{path}: is not a readable safetensors file ({error})") from error


def fetch_in_background(fallback: Fallback, uplink: Uplink, say: Callable[[str], None]) -> None:
    """Fetches beside the frames: the vectors of many labels are more bytes than many frames."""

    def fetch() -> None:
        try:
            fallback.fetch(uplink)
        except Exception as error:  # fetched again with the next connection
            if fallback.told != (text := described(error)):
                fallback.told = text
                say(text)

    threading.Thread(target=fetch, name="thinwire-labels", daemon=True).start()
