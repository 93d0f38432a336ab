"""What a picture answers: its similarities to many texts, as a distribution, and how far two pictures disagree.

The part of the objective that knows what the product is asked. Texts are drawn again for every step, so that no label
set is learned: class names of ImageNet in a prompt, and captions of photos-train, as the shipped clip-lite reads them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import nn
from torch.nn import functional as F

from export.clip_lite.evaluate import Evaluator
from export.clip_lite.texts import captions
from export.objective import CLIP_LITE
from export.teachers import cache_root
from export.towers import text_vectors

CAPTIONS = 2000
TEXTS_PER_STEP = 512
LOGIT_SCALE = 50.0  # half of what CLIP answers with: softer targets also say which wrong labels are near


def texts(seed: int = 0) -> list[str]:
    """1000 class names inside a prompt, then up to 2000 captions of photos-train."""
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).split(",")[0] for index in range(1000)]
    own = sorted({caption for group in captions() for caption in group})
    return [f"a photo of a {name}." for name in names] + random.Random(seed).sample(own, min(CAPTIONS, len(own)))


def _kept(stamp: bytes, vectors_of: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """The vectors of `texts()`, from the export cache where they were made before; `stamp` is all they depend on."""
    cached = cache_root() / f"answer-texts-{hashlib.sha256(stamp).hexdigest()[:16]}.npy"
    if not cached.exists():
        partial = cached.with_suffix(".partial.npy")
        np.save(partial, vectors_of(texts()).numpy())
        partial.rename(cached)
    return torch.from_numpy(np.load(cached))


class AnswerDivergence(nn.Module):
    """KL divergence between the answers of two pictures to `TEXTS_PER_STEP` random texts (Hinton et al. 2015)."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)  # (N, D) unit

    @classmethod
    def of(cls, clip: str, clip_id: str) -> AnswerDivergence:
        """The same of any open_clip model; `clip` as for `export.towers.load_tower`, `clip_id` its `Tower.id`."""
        if clip == "clip-lite":
            return cls.of_clip_lite()
        return cls(_kept("\n".join([clip_id, *texts()]).encode(), lambda asked: text_vectors(clip, asked)))

    @classmethod
    def of_clip_lite(cls) -> AnswerDivergence:
        """The shipped text tower's vectors of `texts()`."""
        stamp = "\n".join(texts()).encode() + (CLIP_LITE / "open_clip_model.safetensors").read_bytes()
        return cls(_kept(stamp, lambda asked: Evaluator(CLIP_LITE).texts(asked)))

    def forward(self, got: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Unit CLIP vectors (B, D) of the decoded and the original pictures → KL(original || decoded) (B,), nats."""
        chosen = torch.randperm(len(self.vectors), generator=generator)[:TEXTS_PER_STEP]
        to = LOGIT_SCALE * self.vectors[chosen.to(self.vectors.device)].T  # (D, T)
        return F.kl_div((got @ to).log_softmax(1), (wanted @ to).log_softmax(1), reduction="none", log_target=True).sum(
            1
        )
