"""What a picture answers: its similarities to many texts, as a distribution, and how far two pictures disagree.

The part of the objective that knows what the product is asked. Texts are drawn again for every step, so that no label
set is learned: class names of ImageNet in a prompt, and captions of the training photographs, as the
teacher reads them.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import nn
from torch.nn import functional as F

from export.teachers import cache_root
from export.towers import text_vectors
from thinwire.files import told

log = logging.getLogger(__name__)

CAPTIONS = 2000
TEXTS_PER_STEP = 512
LOGIT_SCALE = 50.0  # half of what CLIP answers with: softer targets also say which wrong labels are near


def texts(captions: Sequence[str] = (), seed: int = 0) -> list[str]:
    """1000 class names inside a prompt, then up to 2000 of the captions."""
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).split(",")[0] for index in range(1000)]
    own = sorted(set(captions))
    return [f"a photo of a {name}." for name in names] + random.Random(seed).sample(own, min(CAPTIONS, len(own)))


def _kept(clip_id: str, asked: list[str], vectors_of: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """The vectors of `asked`, from the export cache where they were made before."""
    stamp = "\n".join([clip_id.rpartition("#")[2], *asked]).encode()
    cached = cache_root() / f"answer-texts-{hashlib.sha256(stamp).hexdigest()[:16]}.npy"
    if cached.exists():
        return torch.from_numpy(np.load(cached))
    vectors = vectors_of(asked)
    partial = cached.with_suffix(".partial.npy")
    try:
        np.save(partial, vectors.numpy())
        partial.rename(cached)
    except OSError as error:  # a full disk: they are made again the next time
        log.warning("%s: cannot be kept (%s)", cached, told(error))
        partial.unlink(missing_ok=True)
    return vectors


class AnswerDivergence(nn.Module):
    """KL divergence between the answers of two pictures to `TEXTS_PER_STEP` random texts (Hinton et al. 2015)."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)  # (N, D) unit

    @classmethod
    def of(cls, clip: str, clip_id: str, captions: Sequence[str] = ()) -> AnswerDivergence:
        """Of any CLIP; `clip` as for `export.towers.load_tower`, `clip_id` its `Tower.id`. Raises `ClipUnavailable`."""
        return cls(_kept(clip_id, texts(captions), lambda asked: text_vectors(clip, asked)))

    def forward(self, got: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Unit CLIP vectors (B, D) of the decoded and the original pictures → KL(original || decoded) (B,), nats."""
        chosen = torch.randperm(len(self.vectors), generator=generator)[:TEXTS_PER_STEP]
        to = LOGIT_SCALE * self.vectors[chosen.to(self.vectors.device)].T  # (D, T)
        return F.kl_div((got @ to).log_softmax(1), (wanted @ to).log_softmax(1), reduction="none", log_target=True).sum(
            1
        )
