"""Photographs as a codec leaves them, with what the frozen tower says of the originals: what an adapter learns from.

The codec is frozen, so each view is coded once and kept in the export cache: what a packet of the bundle holds at a
rate (`export.content`), through its decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import synthesis
from export.content import content_of
from export.families.front import normalise
from export.kept_views import KeptViews, random_views, written_whole
from export.photographs.collection import Photographs
from export.towers import Tower
from export.train import HELD_OUT
from synthesis.decoder_identity import decoder_hash, grain_hash
from synthesis.merging import variant_net
from synthesis.variant import DecoderVariant
from thinwire.bundle import Bundle

VERSION = 3  # raise it when the same settings give other views
CHUNK = 128  # originals
PER_VIEW = 1  # rates at which each original is decoded: photographs seen twice are learned by heart, docs/adapting.md
BATCH = 16


@dataclass(frozen=True)
class Views:
    """decoded uint8 (N, H, W, 3) RGB; layers int64 (N,): how many were sent; wanted float32 (N, D) unit vectors."""

    decoded: Sequence[np.ndarray]  # of chunks, memory-mapped
    layers: np.ndarray
    wanted: np.ndarray

    def __len__(self) -> int:
        return len(self.layers)

    def pictures(self, index: np.ndarray) -> np.ndarray:
        """int (B,) → uint8 (B, H, W, 3)."""
        size = len(self.decoded[0])
        return np.stack([self.decoded[i // size][i % size] for i in index])


class ViewMaker:
    """Codes photographs with one bundle at some of its rates; `tower` is the teacher."""

    def __init__(
        self,
        bundle: Bundle,
        tower: Tower,
        layers: Sequence[int],
        seed: int,
        photographs: Photographs,
        variant: DecoderVariant | None = None,
    ) -> None:
        self.bundle, self.tower, self.layers, self.seed = bundle, tower, list(layers), seed
        self._net = (
            variant_net(variant, tower.net.visual, tower.height, tower.width)
            if variant
            else synthesis.load(bundle, device_of(tower.net))
        )
        self._decoder = variant.digest if variant else decoder_hash(bundle) or grain_hash(bundle) or ""
        self._content = content_of(bundle)
        self._kept = KeptViews(
            "adapt-views",
            VERSION,
            bundle,
            [self._decoder, tower.id, self.layers, seed, photographs.identity, PER_VIEW, HELD_OUT],
        )
        self.images, self.unseen = photographs.split(HELD_OUT)  # as the codec's training does

    def training(self, count: int) -> Views:
        """`count` decoded views, rounded up to whole chunks; each original is drawn at random and decoded at
        `PER_VIEW` of the rates."""
        per_view = min(PER_VIEW, len(self.layers))
        originals = min(CHUNK, -(-count // per_view))
        names = [f"{number:03d}-{originals}" for number in range(-(-count // (originals * per_view)))]
        return self._chunks(names, self.images, originals, per_view, "decoded training views")

    def held_out(self, originals: int = HELD_OUT) -> Views:
        """Photographs that no step sees, each at every rate."""
        return self._chunks([f"unseen-{originals}"], self.unseen, originals, len(self.layers), "decoded unseen views")

    def _chunks(self, names: list[str], images: Photographs, originals: int, per_view: int, title: str) -> Views:
        paths = self._kept.complete(
            names,
            ".npz",
            originals * per_view,
            title,
            lambda path, number: self._make(path, images, number, originals, per_view),
        )
        told = [np.load(path.with_suffix(".npz")) for path in paths]
        return Views(
            [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in paths],
            np.concatenate([each["layers"] for each in told]),
            np.concatenate([each["wanted"] for each in told]),
        )

    def _make(self, target: Path, images: Photographs, number: int, originals: int, per_view: int) -> None:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        side, sizes = self.bundle.input_size[0], [min(BATCH, originals - start) for start in range(0, originals, BATCH)]
        views = torch.cat([random_views(images, side, size, generator) for size in sizes])  # (N, 3, H, W)
        decoded, layers, wanted = [], [], []
        for start in range(0, originals, BATCH):
            part = slice(start, start + BATCH)
            with torch.inference_mode():
                vectors = tower_vectors(self.tower.net, self.tower, views[part]).cpu().numpy()
            order = torch.stack([torch.randperm(len(self.layers), generator=generator) for _ in vectors])
            for place in range(per_view):
                sent = np.array(self.layers)[order[:, place].numpy()]  # (B,)
                decoded.append(self._decode(views[part].permute(0, 2, 3, 1).numpy(), sent))
                layers.append(sent)
                wanted.append(vectors)
        with written_whole(target.with_suffix(".npy")) as file:
            np.save(file, np.concatenate(decoded))
        with written_whole(target.with_suffix(".npz")) as file:
            np.savez(file, layers=np.concatenate(layers), wanted=np.concatenate(wanted))

    def _decode(self, views: np.ndarray, sent: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) and layer counts (B,) → the same as the cloud decodes them."""
        device = device_of(self.tower.net)
        layers = torch.from_numpy(sent).to(device)
        shown = self._content.shown(torch.from_numpy(self._content.of(views, sent)).to(device), layers)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            image = self._net(shown, layers).float()  # (B, 3, H, W) in [0, 1]
        return image.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def tower_vectors(net: torch.nn.Module, tower: Tower, views: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, H, W) → unit vectors float32 (B, D) of `net`, which takes what `tower` takes, on its device.

    Gradients as asked.
    """
    device = device_of(net)
    x = views.to(device).float()
    if x.shape[-2:] != (tower.height, tower.width):
        x = F.interpolate(x, (tower.height, tower.width), mode="bicubic", antialias=True).clamp(0, 255)
    x = normalise(x).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        vectors = net(x).float()
    return F.normalize(vectors, dim=-1)  # some towers normalise in half precision under autocast


def device_of(net: torch.nn.Module) -> torch.device:
    return next(net.parameters()).device
