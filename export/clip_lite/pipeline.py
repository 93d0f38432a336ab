"""All stages of clip-lite in order; each keeps its result in the export cache, so an interrupted run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from export.clip_lite.align import load_training_set, node_vectors, pca_basis
from export.clip_lite.assemble import assemble
from export.clip_lite.features import VIEWS, train_features
from export.clip_lite.head import HEAD_FILE, train_head
from export.clip_lite.joint import tune_jointly
from export.clip_lite.text_tower import distil, initialise_tokens, new_model, tokenize
from export.clip_lite.texts import corpus_texts, encode_cached
from export.teachers import cache_root


@dataclass(frozen=True)
class Recipe:
    """The dials of a clip-lite run. `regulariser` weighs Chen et al. 2023's term (0 = plain CLIP loss)."""

    views: int = len(VIEWS)
    distil_minutes: float = 45.0
    head_steps: int = 400
    joint_minutes: float = 20.0
    regulariser: float = 0.0
    threads: int = 2


def build(recipe: Recipe, out: Path) -> Path:
    """Trains clip-lite from the teachers and writes the open_clip folder `out`."""
    torch.set_num_threads(recipe.threads)
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    data = load_training_set(train_features(recipe.views))
    corpus = encode_cached("corpus", corpus_texts())
    basis = pca_basis(corpus)
    corpus_target = F.normalize(torch.from_numpy(corpus.vectors) @ basis, dim=1)
    captions = F.normalize(torch.from_numpy(encode_cached("captions", data.caption_texts).vectors) @ basis, dim=1)
    nodes, owner = node_vectors(data.sets)
    node_targets = F.normalize(torch.from_numpy(nodes.vectors) @ basis, dim=1)

    model = new_model(cache / "model")
    initialise_tokens(model, basis)
    distil(model, corpus.texts, corpus_target, cache / "text.pt", minutes=recipe.distil_minutes)

    head, scale = train_head(
        data, captions, node_targets, owner, steps=recipe.head_steps, regulariser=recipe.regulariser
    )
    torch.save({"head": head.state_dict(), "scale": scale}, cache / HEAD_FILE)
    scale = tune_jointly(
        model,
        head,
        scale.log(),
        data,
        nodes.texts,
        owner,
        tokenize(corpus.texts),
        corpus_target,
        minutes=recipe.joint_minutes,
        regulariser=recipe.regulariser,
    )
    return assemble(out, model.state_dict(), head, scale)
