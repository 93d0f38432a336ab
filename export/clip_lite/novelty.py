"""One axis of the embedding tells names that the Lite0 classifier was trained on from those that it was not.

A model aligned on 1000 classes answers with one of them whenever it can: a pagoda is called a boat house when both are
offered. Calibrated stacking (Chao et al. 2016, arXiv 1605.04253) takes a constant off the scores of trained names.
Here the text tower learns that constant: the last axis of every image is +NOVELTY, of trained names -NOVELTY, of all
other text +NOVELTY, so that trained names score 2 NOVELTY^2 less. The size was chosen on 200 held-out ImageNet classes
among photos-train, never on an eval pack (LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F

from export.clip_lite.wordnet import label_graph, nouns
from thinwire.prompts import PROMPT_SETS

NOVELTY = 0.158


def with_novelty(vectors: torch.Tensor, known: torch.Tensor | bool) -> torch.Tensor:
    """Vectors (N, D), whose last axis holds next to nothing → unit vectors with the novelty axis in its place."""
    known = torch.as_tensor(known).expand(len(vectors))
    rest = (1 - NOVELTY**2) ** 0.5 * F.normalize(vectors[:, :-1], dim=1)
    last = torch.where(known, -NOVELTY, NOVELTY).to(rest)
    return torch.cat([rest, last[:, None]], dim=1)


def known_texts(texts: Iterable[str]) -> torch.Tensor:
    """Which texts are names of ImageNet classes or of what WordNet puts above them, bare or in a prompt: bool (N,)."""
    names = {name for group in label_graph(nouns()).names for name in group}
    templates = {"{}", *PROMPT_SETS["80"], *PROMPT_SETS["7"]}
    known = {template.format(name) for name in names for template in templates}
    return torch.tensor([text in known for text in texts])
