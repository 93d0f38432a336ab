"""Stage `joint`: image head and student text tower meet, so that neither keeps errors that the other could absorb."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.align import TrainingSet, contrastive_loss, label_set_loss, name_loss
from export.clip_lite.head import MADE_PRIOR, SCALE_MAX, MadeFeatures, sample_prompts
from export.clip_lite.image_head import ImageHead
from export.clip_lite.text_tower import distillation_loss, encode_trimmed, text_parameters, tokenize

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class JointRecipe:
    """The dials of `tune_jointly`. weights: label sets, captions, class names, MiniLM's own answers.

    blend: how far both towers of a CLIP that was begun with go towards their tuned weights, as `HeadRecipe.blend`.
    """

    minutes: float = 20.0
    regulariser: float = 0.0
    learning_rate: float = 3e-4
    weights: tuple[float, float, float, float] = (1.0, 1.0, 0.5, 2.0)
    set_size: int = 120
    names: int = 64
    batch: int = 96
    corpus: int = 192
    noise: float = 0.3  # of a feature's deviation, as `HeadRecipe.noise`
    blend: float = 0.75
    seed: int = 0


class Prompts:
    """Tokens of the prompts of nodes or names, those of an owner together: texts (P,), owner (P,) sorted."""

    def __init__(self, texts: list[str], owner: torch.Tensor, count: int) -> None:
        self._tokens = tokenize(texts) if texts else torch.zeros(0, 1, dtype=torch.int64)
        self._counts = torch.bincount(owner, minlength=count)
        self._starts = torch.cumsum(self._counts, 0) - self._counts

    def some(self, which: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One prompt of each of `which` (K,): tokens (K, T)."""
        return self._tokens[sample_prompts(self._starts, self._counts, which, generator)]


def tune_jointly(
    model: nn.Module,
    head: ImageHead,
    log_scale: torch.Tensor,
    data: TrainingSet,
    nodes: Prompts,
    names: Prompts,
    corpus_tokens: torch.Tensor,
    corpus_target: torch.Tensor,
    recipe: JointRecipe,
    checkpoint: Path | None = None,
) -> torch.Tensor:
    """Tunes `head` and the text tower of `model` in place; returns the logit scale.

    Each step: one random label set (one prompt per node) for real and synthetic features, one batch of captioned
    photographs, one of photographs with class names, and a batch of the corpus that keeps the text tower where MiniLM
    put it. corpus_target (N, D): unit vectors of the corpus. `checkpoint` lets an interrupted run go on.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    caption_tokens = tokenize(data.caption_texts)
    made_features, prior, batch = MadeFeatures(data), data.prior, recipe.batch
    trained = torch.nonzero(data.name_counts).flatten()
    scale_parameter = nn.Parameter(log_scale.clone())
    rate = recipe.learning_rate
    groups = [
        {"params": text_parameters(model), "peak": rate},
        {"params": list(head.parameters()), "peak": rate / 3},  # it is nearly there; the text tower is not
        {"params": [scale_parameter], "peak": rate},
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    progress, step = 0.0, 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        progress = state["progress"]
        generator.manual_seed(recipe.seed + int(1e6 * progress))
    first, started = progress, time.monotonic()
    saved = started
    with tqdm(total=100, desc="joint", unit="%") as bar:
        while progress < 1.0:
            progress = min(1.0, first + (time.monotonic() - started) / (60 * recipe.minutes))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * min(1.0, progress / 0.05 + 0.02, 1.02 - progress)
            scale = scale_parameter.exp().clamp(max=SCALE_MAX)
            index = data.draw(2 * batch, generator)
            made, made_probability = made_features.sample(2 * batch, generator)
            seen, probability = data.batch(index, generator)
            picked = data.sets.sample(recipe.set_size, generator)
            member = data.sets.member[picked]
            pairs = torch.randint(0, len(data.caption_images), (batch,), generator=generator)
            photos = data.caption_images[pairs]
            labelled = data.draw_named(batch, generator)
            truth = data.classes.of_image[labelled]
            others = trained[torch.randperm(len(trained), generator=generator)[: recipe.names]]
            asked = torch.cat([truth, others]).unique()
            corpus = torch.randint(0, len(corpus_tokens), (recipe.corpus,), generator=generator)
            node_text = encode_trimmed(model, nodes.some(picked, generator))
            caption_text = encode_trimmed(model, caption_tokens[pairs])
            name_text = encode_trimmed(model, names.some(asked, generator)) if len(asked) else None
            corpus_text = encode_trimmed(model, corpus_tokens[corpus])
            parts = [seen, made, data.captioned(photos, generator), data.captioned(labelled, generator)]
            features = torch.cat(parts)
            features = features + recipe.noise * made_features.spread * torch.randn(features.shape, generator=generator)
            embedded = F.normalize(head(features), dim=1)
            seen, made, shown, named = embedded.split([len(part) for part in parts])
            few = torch.randperm(len(picked), generator=generator)[:20]
            sets = sum(
                label_set_loss(image, node_text[some], mass @ member[some].T, scale, share @ member[some].T) / 2
                for some in (slice(None), few)
                for image, mass, share in ((seen, probability, prior), (made, made_probability, MADE_PRIOR))
            )
            same = (photos[:, None] == photos[None]) | (
                caption_tokens[pairs][:, None] == caption_tokens[pairs][None]
            ).all(-1)
            captions = contrastive_loss(shown, caption_text, scale, recipe.regulariser, same)
            called = scale * 0
            if name_text is not None:
                called = name_loss(named, truth, name_text, asked, scale, data.name_prior, data.classes.related)
            keep = distillation_loss(corpus_text, corpus_target[corpus])
            a, b, c, d = recipe.weights
            loss = a * sets + b * captions + c * called + d * keep
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            if step % 10 == 0:
                bar.n = round(100 * progress, 1)
                bar.set_postfix(
                    sets=f"{sets.item():.3f}",
                    captions=f"{captions.item():.3f}",
                    names=f"{called.item():.3f}",
                    keep=f"{keep.item():.3f}",
                    step=step,
                )
            if checkpoint and time.monotonic() - saved > SAVE_EVERY_S:
                saved = time.monotonic()
                kept = [parameter.detach() for parameter in parameters]
                partial = checkpoint.with_suffix(".partial")
                torch.save(
                    {"optimiser": optimiser.state_dict(), "parameters": kept, "progress": float(progress)}, partial
                )
                partial.rename(checkpoint)
    return scale_parameter.detach().exp().clamp(max=SCALE_MAX)
