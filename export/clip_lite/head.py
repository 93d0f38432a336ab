"""Stage `align`: trains the image head against MiniLM's (projected) text vectors."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from export.clip_lite.align import (
    LabelSets,
    TrainingSet,
    contrastive_loss,
    label_set_loss,
    lda_class_offsets,
    name_loss,
)
from export.clip_lite.image_head import VOTES, ImageHead, TwoBranchHead

SCALE_MAX = 100.0
HEAD_FILE = "head.pt"  # the head as this stage leaves it, in the export cache
Network = TypeVar("Network", bound=nn.Module)
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
        plain = data.features[0][data.usable].float()
        self.mean = plain.mean(0)
        self.offset = lda_class_offsets(plain, data.classifier)
        self.residual = plain - self.mean
        self.spread = self.residual.std(0)
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


@dataclass(frozen=True)
class HeadRecipe:
    """The dials of `train_head`. weights: label sets, captions, ConSE cosine, made class features, class names.

    blend: how far a head that was begun with goes towards its tuned weights. Halfway it keeps what it knew of things
    that these photographs do not show (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).
    """

    steps: int = 900
    batch: int = 256
    regulariser: float = 0.0
    weights: tuple[float, float, float, float, float] = (1.0, 1.0, 0.5, 0.5, 1.0)
    vote_rate: float = 2e-4
    free_rate: float = 1e-3
    start_rate: float = 3e-4
    votes: int = VOTES
    dropout: float = 0.4
    free_decay: float = 0.1
    noise: float = 0.3
    blend: float = 1.0
    seed: int = 0


TUNED = HeadRecipe(steps=440, weights=(1.0, 1.5, 0.5, 0.5, 1.0), blend=0.5)  # of a head that knows most of it


class Texts:
    """Vectors of the prompts of nodes or names, those of an owner together: vectors (P, D), owner (P,) sorted."""

    def __init__(self, vectors: torch.Tensor, owner: torch.Tensor, count: int) -> None:
        self.vectors = vectors
        self.mean = mean_by_node(vectors, owner, count)
        self._counts = torch.bincount(owner, minlength=count)
        self._starts = torch.cumsum(self._counts, 0) - self._counts

    def some(self, which: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of each of `which` (K,) one prompt or, as often, the mean of all: unit vectors (K, D)."""
        if torch.rand(1, generator=generator) < 0.5:
            return self.mean[which]
        return self.vectors[sample_prompts(self._starts, self._counts, which, generator)]


def train_head(
    data: TrainingSet,
    caption_vectors: torch.Tensor,
    nodes: Texts,
    names: Texts,
    recipe: HeadRecipe = HeadRecipe(),
    start: tuple[ImageHead, torch.Tensor] | None = None,
) -> tuple[ImageHead, torch.Tensor]:
    """Returns the head and the logit scale. nodes, names: prompts of `data.sets` and of `data.classes`.

    start: a head for these very texts and its scale, which is tuned instead of a new one.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    leaf_text = nodes.mean[data.sets.siblings]
    log_scale = torch.nn.Parameter(torch.tensor(3.4) if start is None else start[1].detach().log())
    if start is None:
        head = TwoBranchHead(leaf_text, data.classifier, recipe.votes, recipe.dropout)
        votes, free = head.branches()
        groups = [{"params": votes}, {"params": free, "weight_decay": recipe.free_decay}, {"params": [log_scale]}]
        rates = [recipe.vote_rate, recipe.free_rate, 3e-4]
    else:
        head = copy.deepcopy(start[0]).train()
        groups, rates = [{"params": list(head.parameters())}, {"params": [log_scale]}], [recipe.start_rate, 3e-4]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=recipe.steps, pct_start=0.1)
    made_features, prior, batch = MadeFeatures(data), data.prior, recipe.batch
    trained = torch.nonzero(data.name_counts).flatten()

    bar = trange(recipe.steps, desc="image head")
    for step in bar:
        scale = log_scale.exp().clamp(max=SCALE_MAX)
        index = data.draw(batch, generator)
        pick = torch.randint(0, len(data.caption_images), (batch,), generator=generator)
        photos = data.caption_images[pick]
        labelled = data.draw_named(batch, generator)
        seen, probability = data.batch(index, generator)
        made, made_probability = made_features.sample(batch, generator)
        parts = [seen, made, data.captioned(photos, generator), data.captioned(labelled, generator)]
        features = torch.cat(parts)
        if recipe.noise:
            features = features + recipe.noise * made_features.spread * torch.randn(features.shape, generator=generator)
        seen, made, shown, named = F.normalize(head(features), dim=1).split([len(part) for part in parts])
        set_loss = set_losses(
            seen, probability, data.sets, lambda which: nodes.some(which, generator), scale, prior, generator
        )
        made_loss = set_losses(
            made, made_probability, data.sets, lambda which: nodes.some(which, generator), scale, MADE_PRIOR, generator
        )
        conse = (1 - (seen * expected_text(probability, leaf_text)).sum(1)).mean()
        conse = conse + (1 - (made * expected_text(made_probability, leaf_text)).sum(1)).mean()
        same = photos[:, None] == photos[None]
        same |= (caption_vectors[pick] @ caption_vectors[pick].T) > 0.999
        caption_loss = contrastive_loss(shown, caption_vectors[pick], scale, recipe.regulariser, same)
        names_loss = image_names(named, labelled, data, names, trained, scale, generator)
        a, b, c, d, e = recipe.weights
        loss = a * set_loss + b * caption_loss + c * conse + d * made_loss + e * names_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(
                sets=f"{set_loss.item():.3f}",
                captions=f"{caption_loss.item():.3f}",
                made=f"{made_loss.item():.3f}",
                names=f"{names_loss.item():.3f}",
                scale=f"{scale.item():.1f}",
            )
    done = head.eval().merge() if start is None else blended(start[0], head.eval(), recipe.blend)
    return done, log_scale.detach().exp().clamp(max=SCALE_MAX)


def blended(before: Network, after: Network, share: float) -> Network:
    """The network at `share` of the way between the weights of two, in place of `after`."""
    with torch.no_grad():
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            new.lerp_(old, 1 - share)
    return after


def image_names(
    image: torch.Tensor,
    index: torch.Tensor,
    data: TrainingSet,
    names: Texts,
    trained: torch.Tensor,
    scale: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """`name_loss` of images `index` (B,), vectors (B, D), over all names `trained` (K,); 0 without names."""
    if not len(index):
        return scale * 0
    truth = data.classes.of_image[index]
    text = names.some(trained, generator)
    return name_loss(image, truth, text, trained, scale, data.name_prior, data.classes.related)
