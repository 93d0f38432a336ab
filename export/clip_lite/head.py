"""Stage `align`: trains the image head against MiniLM's (projected) text vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from tqdm import trange

from export.clip_lite.align import (
    LabelSets,
    TrainingSet,
    contrastive_loss,
    label_set_loss,
    lda_class_offsets,
)
from export.clip_lite.image_head import ImageHead, TwoBranchHead

SCALE_MAX = 100.0
HEAD_FILE = "head.pt"  # the head as this stage leaves it, in the export cache
MADE_PRIOR = torch.full((1000,), 1e-3)  # made features show every class equally often


def expected_text(probability: torch.Tensor, leaf_text: torch.Tensor) -> torch.Tensor:
    """ConSE: unit mean text vector (B, D) of the classes under the classifier's softmax (B, 1000)."""
    return F.normalize(probability @ leaf_text, dim=1)


class MadeFeatures:
    """Features of classes that photos-train never shows: LDA class means plus the spread of real photographs.

    Measured on the classifier itself: strength 8 and half of a photograph's deviation give features of the norm of real
    ones, 90 % of which it assigns to their class. The classifier's own answer, not the intended class, is the target.
    """

    def __init__(self, data: TrainingSet) -> None:
        plain = data.features[0].float()
        self.mean = plain.mean(0)
        self.offset = lda_class_offsets(plain, data.classifier)
        self.residual = plain - self.mean
        self.classifier, self.rectified = data.classifier, data.rectified

    def sample(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(features (count, F), the classifier's softmax on them (count, 1000))."""
        classes = torch.randint(0, len(self.offset), (count,), generator=generator)
        deviation = self.residual[torch.randint(0, len(self.residual), (count,), generator=generator)]
        strength = 6 + 4 * torch.rand(count, 1, generator=generator)
        noise = 0.3 + 0.5 * torch.rand(count, 1, generator=generator)
        features = self.mean + strength * self.offset[classes] + noise * deviation
        features = features.clamp_min(0) if self.rectified else features
        return features, self.classifier(features).softmax(1)


def mean_by_node(vectors: torch.Tensor, owner: torch.Tensor, nodes: int) -> torch.Tensor:
    """Unit mean vector of each node's prompts: (P, D), (P,) → (nodes, D)."""
    total = torch.zeros(nodes, vectors.shape[1]).index_add_(0, owner, vectors)
    return F.normalize(total, dim=1)


def sample_prompts(owner_start: torch.Tensor, owner_count: torch.Tensor, nodes: torch.Tensor, g) -> torch.Tensor:
    """One random prompt index per node; prompts of a node lie together."""
    pick = (torch.rand(len(nodes), generator=g) * owner_count[nodes]).long()
    return owner_start[nodes] + pick


def set_losses(
    image: torch.Tensor,
    probability: torch.Tensor,
    sets: LabelSets,
    text_of_nodes,
    scale: torch.Tensor,
    prior: torch.Tensor,
    generator: torch.Generator,
    sizes: tuple[int, ...] = (500, 100, 20),
) -> torch.Tensor:
    """Mean label-set loss over random sets of several sizes; `text_of_nodes(nodes)` gives unit vectors (K, D).

    probability (B, 1000) is the teacher's softmax, prior (1000,) its mean over the images that are drawn from."""
    loss = image.sum() * 0
    for size in sizes:
        nodes = sets.sample(size, generator)
        member = sets.member[nodes].T
        loss = loss + label_set_loss(image, text_of_nodes(nodes), probability @ member, scale, prior @ member)
    return loss / len(sizes)


def train_head(
    data: TrainingSet,
    caption_vectors: torch.Tensor,
    prompt_vectors: torch.Tensor,
    owner: torch.Tensor,
    steps: int = 400,
    batch: int = 384,
    regulariser: float = 0.0,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 0.5, 0.5),
    vote_rate: float = 1e-4,
    free_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[ImageHead, torch.Tensor]:
    """Returns the head and the logit scale. `weights`: label sets, captions, ConSE cosine, made class features."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    counts = torch.bincount(owner, minlength=len(data.sets.member))
    starts = torch.cumsum(counts, 0) - counts
    node_mean = mean_by_node(prompt_vectors, owner, len(data.sets.member))
    leaf_text = node_mean[data.sets.siblings]
    head = TwoBranchHead(leaf_text, data.classifier)
    votes, free = head.branches()
    log_scale = torch.nn.Parameter(torch.tensor(3.4))
    optimiser = torch.optim.AdamW(
        [{"params": votes}, {"params": free, "weight_decay": 0.1}, {"params": [log_scale]}], weight_decay=0.0
    )
    rates = [vote_rate, free_rate, 3e-4]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps, pct_start=0.1)
    made_features, prior = MadeFeatures(data), data.prior

    def text_of_nodes(nodes: torch.Tensor) -> torch.Tensor:
        if torch.rand(1, generator=generator) < 0.5:
            return node_mean[nodes]
        return prompt_vectors[sample_prompts(starts, counts, nodes, generator)]

    bar = trange(steps, desc="image head")
    for step in bar:
        scale = log_scale.exp().clamp(max=SCALE_MAX)
        index = torch.randint(0, data.features.shape[1], (batch,), generator=generator)
        pick = torch.randint(0, len(data.caption_images), (batch,), generator=generator)
        photos = data.caption_images[pick]
        seen, probability = data.batch(index, generator)
        made, made_probability = made_features.sample(batch, generator)
        embedded = head(torch.cat([seen, made, data.captioned(photos, generator)]))
        seen, made, shown = F.normalize(embedded, dim=1).chunk(3)
        set_loss = set_losses(seen, probability, data.sets, text_of_nodes, scale, prior, generator)
        made_loss = set_losses(made, made_probability, data.sets, text_of_nodes, scale, MADE_PRIOR, generator)
        conse = (1 - (seen * expected_text(probability, leaf_text)).sum(1)).mean()
        conse = conse + (1 - (made * expected_text(made_probability, leaf_text)).sum(1)).mean()
        same = photos[:, None] == photos[None]
        same |= (caption_vectors[pick] @ caption_vectors[pick].T) > 0.999
        caption_loss = contrastive_loss(shown, caption_vectors[pick], scale, regulariser, same)
        a, b, c, d = weights
        loss = a * set_loss + b * caption_loss + c * conse + d * made_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(
                sets=f"{set_loss.item():.3f}",
                captions=f"{caption_loss.item():.3f}",
                made=f"{made_loss.item():.3f}",
                scale=f"{scale.item():.1f}",
            )
    return head.eval().merge(), log_scale.detach().exp().clamp(max=SCALE_MAX)
