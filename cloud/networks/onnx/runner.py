"""Runs the networks in ONNX Runtime: stacked symbols → decoder → CLIP → embeddings. Knows nothing of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from cloud.engine.prepared import Embedded, Prepared
from cloud.errors import CannotDecode
from cloud.networks.batch_rows import by_decoder, by_tower
from cloud.networks.onnx.clip import OnnxClip
from cloud.networks.onnx.decoders import Decoder
from cloud.networks.onnx.session import Place


class OnnxRunner:
    """Decoders in front of CLIPs, all of them on one device. Nets and CLIPs come with the items that use them.

    Runs exclude each other, so that a canary run cannot disturb the device thread. `run` raises whatever ONNX Runtime
    raises; the engine isolates the culprit.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()

    def picture(self, item: Prepared) -> np.ndarray:
        """One decoded packet → uint8 RGB (H, W, 3). Raises `CannotDecode` for a bundle that gives vectors."""
        if item.net.gives_vectors:
            raise CannotDecode(f"packets of bundle {item.bundle!r} become CLIP vectors here: there is no picture")
        with self._lock:
            return as_picture(item.net(*_stacked([item]))[0])

    def run(self, batch: Sequence[Prepared]) -> Embedded:
        """Embeds a batch for one CLIP; it may mix bundles, layer counts and image files. Embeddings keep its order.

        One decoder call per bundle, then one call per image tower (plain or adapted). Items of a bundle that decodes
        to embeddings skip the tower. On a GPU pictures go from decoder to tower in its memory.
        """
        embeddings = np.empty((len(batch), batch[0].clip.embed_dim), np.float32)
        with self._lock:
            start = time.perf_counter()
            pictures: dict[int, tuple[OnnxClip, list[tuple[list[int], object]]]] = {}  # by image tower
            for rows in by_decoder(batch):
                items = [batch[row] for row in rows]
                decoder: Decoder | None = items[0].net if items[0].model_id else None
                if decoder is not None and decoder.gives_vectors:
                    vectors = decoder(*_stacked(items))
                    embeddings[rows] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                    continue
                images, towers = self._pictures(items, decoder), by_tower([item.clip for item in items])
                if len(towers) > 1 and not isinstance(images, np.ndarray):
                    images = images.numpy()  # what lies in the device's memory cannot be taken apart there
                for tower, places in towers:
                    part = images if len(places) == len(rows) else images[places]
                    pictures.setdefault(id(tower), (tower, []))[1].append(([rows[place] for place in places], part))
            decoded = time.perf_counter()
            for clip, parts in pictures.values():
                for rows, images in _joined(parts):
                    there = not isinstance(images, np.ndarray)
                    embeddings[rows] = clip.encode_images_there(images) if there else clip.encode_images(images)
            end = time.perf_counter()
        return Embedded(embeddings, (decoded - start) * 1000, (end - decoded) * 1000)

    def _pictures(self, items: Sequence[Prepared], decoder: Decoder | None) -> object:
        """Pictures of CLIP's size (B, 3, H, W) in [0, 1]: an array, or what lies in the device's memory."""
        clip: OnnxClip = items[0].clip
        if decoder is None:  # image files, as views uint8 (H, W, 3)
            views = np.stack([item.array for item in items]).transpose(0, 3, 1, 2)
            return clip.fit(np.ascontiguousarray(views, np.float32) / np.float32(255))
        if self._place.kind != "cpu":
            there = decoder.there(*_stacked(items))
            if tuple(there.shape()[2:]) == (clip.image_height, clip.image_width):
                return there
            return clip.fit(there.numpy())
        return clip.fit(decoder(*_stacked(items)))


def as_picture(pixels: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) in [0, 1] → uint8 (H, W, 3)."""
    return np.ascontiguousarray((pixels * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _stacked(items: Sequence[Prepared]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([item.array for item in items]), np.array([item.n_layers for item in items], np.int64)


def _joined(parts: list[tuple[list[int], object]]) -> list[tuple[list[int], object]]:
    """Arrays as one batch; what lies in the device's memory as it is."""
    arrays = [(rows, images) for rows, images in parts if isinstance(images, np.ndarray)]
    there = [(rows, images) for rows, images in parts if not isinstance(images, np.ndarray)]
    if len(arrays) > 1:
        arrays = [([row for rows, _ in arrays for row in rows], np.concatenate([images for _, images in arrays]))]
    return arrays + there
