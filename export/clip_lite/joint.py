"""Stage `joint`: image head and student text tower meet, so that neither keeps errors that the other could absorb."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.align import TrainingSet, contrastive_loss, label_set_loss
from export.clip_lite.head import MADE_PRIOR, SCALE_MAX, MadeFeatures
from export.clip_lite.image_head import ImageHead
from export.clip_lite.text_tower import distillation_loss, encode_trimmed, text_parameters, tokenize


def tune_jointly(
    model: nn.Module,
    head: ImageHead,
    log_scale: torch.Tensor,
    data: TrainingSet,
    prompts: list[str],
    owner: torch.Tensor,
    corpus_tokens: torch.Tensor,
    corpus_target: torch.Tensor,
    minutes: float,
    regulariser: float = 0.0,
    learning_rate: float = 3e-4,
    set_size: int = 250,
    batch: int = 192,
    seed: int = 0,
) -> torch.Tensor:
    """Tunes `head` and the text tower of `model` in place; returns the logit scale.

    Each step: one random label set (one prompt per node) for real and synthetic features, one batch of captioned
    photographs, and a batch of the corpus that keeps the text tower where MiniLM put it.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt_tokens, caption_tokens = tokenize(prompts), tokenize(data.caption_texts)
    counts = torch.bincount(owner, minlength=len(data.sets.member))
    starts = torch.cumsum(counts, 0) - counts
    made_features, prior = MadeFeatures(data), data.prior
    scale_parameter = nn.Parameter(log_scale.clone())
    groups = [
        {"params": text_parameters(model), "peak": learning_rate},
        {"params": list(head.parameters()), "peak": learning_rate / 3},  # it is nearly there; the text tower is not
        {"params": [scale_parameter], "peak": learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    started, progress, step = time.monotonic(), 0.0, 0
    with tqdm(total=100, desc="joint", unit="%") as bar:
        while progress < 1.0:
            progress = min(1.0, (time.monotonic() - started) / (60 * minutes))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * min(1.0, progress / 0.05 + 0.02, 1.02 - progress)
            scale = scale_parameter.exp().clamp(max=SCALE_MAX)
            index = torch.randint(0, data.features.shape[1], (2 * batch,), generator=generator)
            made, made_probability = made_features.sample(2 * batch, generator)
            seen, probability = data.batch(index, generator)
            seen, made = F.normalize(head(torch.cat([seen, made])), dim=1).chunk(2)
            nodes = data.sets.sample(set_size, generator)
            member = data.sets.member[nodes]
            picks = starts[nodes] + (torch.rand(len(nodes), generator=generator) * counts[nodes]).long()
            pairs = torch.randint(0, len(data.caption_images), (batch,), generator=generator)
            photos = data.caption_images[pairs]
            corpus = torch.randint(0, len(corpus_tokens), (256,), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                node_text = encode_trimmed(model, prompt_tokens[picks])
                caption_text = encode_trimmed(model, caption_tokens[pairs])
                corpus_text = encode_trimmed(model, corpus_tokens[corpus])
            few = torch.randperm(len(nodes), generator=generator)[:20]
            sets = sum(
                label_set_loss(image, node_text[some], mass @ member[some].T, scale, share @ member[some].T) / 2
                for some in (slice(None), few)
                for image, mass, share in ((seen, probability, prior), (made, made_probability, MADE_PRIOR))
            )
            shown = F.normalize(head(data.captioned(photos, generator)), dim=1)
            same = (photos[:, None] == photos[None]) | (
                caption_tokens[pairs][:, None] == caption_tokens[pairs][None]
            ).all(-1)
            captions = contrastive_loss(shown, caption_text, scale, regulariser, same)
            keep = distillation_loss(corpus_text, corpus_target[corpus])
            loss = sets + captions + 2.0 * keep
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
            optimiser.step()
            step += 1
            if step % 10 == 0:
                bar.n = round(100 * progress, 1)
                bar.set_postfix(
                    sets=f"{sets.item():.3f}", captions=f"{captions.item():.3f}", keep=f"{keep.item():.3f}", step=step
                )
    return scale_parameter.detach().exp().clamp(max=SCALE_MAX)
