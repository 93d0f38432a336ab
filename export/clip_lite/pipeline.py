"""All stages of clip-lite in order; each keeps its result in the export cache, so an interrupted run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.align import TrainingSet, load_training_set, node_prompts, node_vectors, pca_basis
from export.clip_lite.assemble import assemble
from export.clip_lite.backbones import Backbone
from export.clip_lite.backbones import backbone as named_backbone
from export.clip_lite.features import VIEWS, train_features
from export.clip_lite.head import HEAD_FILE, train_head
from export.clip_lite.joint import tune_jointly
from export.clip_lite.text_tower import distil, encode_trimmed, initialise_tokens, new_model, tokenize
from export.clip_lite.texts import corpus_texts, encode_cached
from export.photographs.options import OURS, PhotographOptions
from export.teachers import cache_root
from export.towers import SHIPPED_CLIP
from synthesis.memory import keep_freed_memory


@dataclass(frozen=True)
class Recipe:
    """The dials of a clip-lite run. `regulariser` weighs Chen et al. 2023's term (0 = plain CLIP loss)."""

    views: int = len(VIEWS)
    distil_minutes: float = 45.0
    head_steps: int = 400
    joint_minutes: float = 20.0
    regulariser: float = 0.0
    threads: int = 2
    photographs: PhotographOptions = OURS
    backbone: str = "lite0"
    backbone_weights: Path | None = None
    text_tower: str | None = None  # an open_clip folder or `clip-lite`: keep its text tower, fit the image head to it


def build(recipe: Recipe, out: Path) -> Path:
    """Trains clip-lite from the teachers and writes the open_clip folder `out`."""
    torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    backbone = named_backbone(recipe.backbone, recipe.backbone_weights)
    photographs = recipe.photographs.open()
    photographs.finish_index()
    data = load_training_set(photographs, train_features(photographs, recipe.views, backbone), backbone)
    if recipe.text_tower:
        return fit_to_text_tower(recipe, data, backbone, out)
    corpus = encode_cached("corpus", corpus_texts(photographs))
    basis = pca_basis(corpus)
    corpus_target = F.normalize(torch.from_numpy(corpus.vectors) @ basis, dim=1)
    captions = F.normalize(torch.from_numpy(encode_cached("captions", data.caption_texts).vectors) @ basis, dim=1)
    nodes, owner = node_vectors(data.sets)
    node_targets = F.normalize(torch.from_numpy(nodes.vectors) @ basis, dim=1)

    model = new_model(cache / "model", backbone)
    initialise_tokens(model, basis)
    distil(model, corpus.texts, corpus_target, cache / "text.pt", minutes=recipe.distil_minutes)

    head, scale = train_head(
        data, captions, node_targets, owner, steps=recipe.head_steps, regulariser=recipe.regulariser
    )
    torch.save({"head": head.state_dict(), "scale": scale}, cache / f"{backbone.name}-{HEAD_FILE}")
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
    return assemble(out, model.state_dict(), head, scale, backbone)


def fit_to_text_tower(recipe: Recipe, data: TrainingSet, backbone: Backbone, out: Path) -> Path:
    """The short way, minutes instead of an hour: the text tower of another clip-lite stays, the image head is fitted.

    Its vectors stand where MiniLM's stand in the long way, so there is nothing to distil and nothing to tune jointly.
    """
    import open_clip

    folder = SHIPPED_CLIP if recipe.text_tower == "clip-lite" else Path(recipe.text_tower)
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()

    @torch.inference_mode()
    def encode(texts: list[str], title: str) -> torch.Tensor:
        batches = range(0, len(texts), 512)
        return torch.cat([encode_trimmed(model, tokenize(texts[i : i + 512])) for i in tqdm(batches, desc=title)])

    prompts, owner = node_prompts(data.sets)
    head, scale = train_head(
        data,
        encode(data.caption_texts, "captions").clone(),
        encode(prompts, "prompts").clone(),
        owner,
        steps=recipe.head_steps,
        regulariser=recipe.regulariser,
    )
    return assemble(out, model.state_dict(), head, scale, backbone)
