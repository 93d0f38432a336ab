"""CLIP's image tower with its batch normalisation folded into the convolutions: the same vectors, sooner."""

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
    """`clip` (float32) with a folded copy of its image tower; `clip` itself where nothing is to be folded.

    Adapters are learned on the tower as it was: add them first. A tower whose modules do not run in the order in which
    they stand would give other vectors folded; that is looked at, and such a one stays as it is.
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
