"""Folds the batch normalisation of CLIP's image tower into its convolutions: the same vectors in less time."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from cloud.networks.precision import parity_of

if TYPE_CHECKING:
    from cloud.networks.clip import Clip

log = logging.getLogger(__name__)

MIN_COSINE = 0.99999
CHECK_IMAGES = 2


def folded(clip: Clip) -> Clip:
    """`clip` (float32) with a folded copy of its image tower, or `clip` itself where it has no batch normalisation.

    Add adapters first: they were trained on the unfolded tower. Folding assumes that modules run in definition order;
    outputs are compared, and on a mismatch the tower stays unfolded.
    """
    import torch

    from synthesis.folding import fold_batch_norm

    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in clip.model.visual.modules()):
        return clip
    tower = fold_batch_norm(copy.deepcopy(clip.model.visual))
    quick = clip.with_visual(tower.to(memory_format=torch.channels_last))
    parity = parity_of(clip, quick, CHECK_IMAGES)
    if parity.cosine_min >= MIN_COSINE:
        return quick
    log.warning("CLIP %s: not folded, the worst cosine would be %.5f", clip.name, parity.cosine_min)
    return clip
