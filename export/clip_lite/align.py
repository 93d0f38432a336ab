"""Locked-image tuning: the objectives that tie image features to text vectors, and the image head trained on them.

Three signals, all from cached features so that a step costs milliseconds:
- label sets: for random sets of WordNet nodes, the zero-shot distribution must match the probability mass that the
  Lite0 classifier itself puts under each node (a distillation of its knowledge through names; ConSE, Norouzi et al.
  2014, arXiv 1312.5650, is the special case of one fixed set and a linear read-out);
- captions: the CLIP contrastive loss on photographs with captions;
- regulariser (optional): Chen et al. 2023 (arXiv 2310.00927) raise the inner product of positive pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from export.clip_lite.backbones import LITE0, Backbone
from export.clip_lite.classes import HELD_OUT, Classes, load_classes
from export.clip_lite.features import VIEWS
from export.clip_lite.image_head import EMBED_DIM
from export.clip_lite.texts import Corpus, captions, encode_cached
from export.clip_lite.wordnet import label_graph, leaf_offsets, nouns
from export.photographs.collection import Photographs
from thinwire.prompts import PROMPT_SETS

TOLD = 5  # captions, from which on a photograph may be kept out
SPARE_CAPTIONS = 4  # one of so many of those in later sources is kept out: how well captions find strangers


@dataclass
class LabelSets:
    """member (nodes, 1000) bool-like float; names: per node the lemma list."""

    member: torch.Tensor
    names: list[tuple[str, ...]]
    siblings: torch.Tensor  # (1000,) index of the leaf node of each class

    def __post_init__(self) -> None:
        self._overlap = (self.member @ self.member.T > 0).numpy()

    def sample(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """`size` nodes of which none contains another, so that their masses may be compared as a distribution."""
        chosen, free = [], np.ones(len(self.member), bool)
        for node in torch.randperm(len(self.member), generator=generator).tolist():
            if free[node]:
                chosen.append(node)
                free &= ~self._overlap[node]
                if len(chosen) == size:
                    break
        return torch.tensor(chosen)


def load_label_sets() -> LabelSets:
    graph = label_graph(nouns())
    member = torch.from_numpy(graph.member)
    leaf = torch.tensor([graph.nodes.index(offset) for offset in leaf_offsets()])
    return LabelSets(member, graph.names, leaf)


def pca_basis(corpus: Corpus, dim: int = EMBED_DIM) -> torch.Tensor:
    """(384, dim): the leading principal axes of the corpus' MiniLM vectors; text targets are their projections."""
    vectors = torch.from_numpy(corpus.vectors[:: max(1, len(corpus.vectors) // 60000)])
    _, _, v = torch.linalg.svd(vectors.T @ vectors)
    return v[:dim].T.contiguous()


@torch.inference_mode()
def classifier_logits(features: torch.Tensor, classifier: torch.nn.Linear) -> torch.Tensor:
    """The teacher's own 1000 logits from pooled features (N, F)."""
    return classifier(features.float())


def lda_class_offsets(features: torch.Tensor, classifier: torch.nn.Linear) -> torch.Tensor:
    """Direction (1000, F) from the mean feature to every ImageNet class' mean; photos-train lacks most classes.

    For a softmax classifier on features with a shared within-class covariance S the optimal weights are
    W = S^-1 (mean_c - mean), so mean_c - mean = S W_c (linear discriminant analysis read backwards). S is estimated by
    the covariance of photographs' features (N, F), so the length needs a factor.
    """
    weight = classifier.weight.detach()
    centred = features - features.mean(0)
    covariance = centred.T @ centred / len(centred)
    return (weight - weight.mean(0)) @ covariance


def label_set_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    mass: torch.Tensor,
    scale: torch.Tensor,
    prior: torch.Tensor | None = None,
    floor: float = 0.05,
) -> torch.Tensor:
    """KL between the set's mass under the classifier and the zero-shot softmax.

    image (B, D) and text (K, D) are unit vectors; mass (B, K) >= 0. Images on which the classifier puts less than
    `floor` under the whole set say nothing about it and are left out. `prior` (K,) is the mean mass of each label over
    the training images: added as its logarithm to the logits (logit adjustment, Menon et al. 2021, arXiv 2007.07314),
    it keeps what is frequent in the training set (dogs) from becoming the answer to whatever is unclear.
    """
    total = mass.sum(1)
    keep = total > floor
    if not keep.any():
        return image.sum() * 0
    target = mass[keep] / total[keep, None]
    logits = scale * image[keep] @ text.T
    if prior is not None:
        logits = logits + prior.clamp_min(1e-4).log()
    return (total[keep] * F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)).sum() / total[keep].sum()


def name_loss(
    image: torch.Tensor,
    truth: torch.Tensor,
    text: torch.Tensor,
    names: torch.Tensor,
    scale: torch.Tensor,
    prior: torch.Tensor,
    related: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy over class names, adjusted by how often each is shown (Menon et al. 2021, arXiv 2007.07314).

    image (B, D) and text (K, D) are unit vectors; truth (B,) the names of the images; names (K,) those of the texts,
    among which every truth occurs; prior (C,) and related (C, C) of all names. A name that does not exclude the truth
    is no wrong answer.
    """
    logits = scale * image @ text.T + prior[names].clamp_min(1e-8).log()
    own = truth[:, None] == names[None]
    logits = logits.masked_fill(related[truth][:, names] & ~own, -1e4)
    return F.cross_entropy(logits, own.float().argmax(1))


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, regulariser: float, same: torch.Tensor | None = None
) -> torch.Tensor:
    """CLIP's symmetric InfoNCE on unit vectors (B, D), plus `regulariser` * (1 - inner product of positive pairs).

    `same` (B, B) bool marks pairs with identical text, which must not count as negatives.
    """
    logits = scale * image @ text.T
    if same is not None:
        logits = logits.masked_fill(same & ~torch.eye(len(logits), dtype=torch.bool), -1e4)
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss + regulariser * (1 - (image * text).sum(1)).mean()


@dataclass
class TrainingSet:
    """Everything the alignment sees, as tensors; images of all views share one index."""

    features: torch.Tensor  # (V, N, F) float16
    probability: torch.Tensor  # (V, N, 1000) float16: the classifier on the sharp view of the same crop
    caption_images: torch.Tensor  # (M,) image of each caption
    caption_texts: list[str]
    sets: LabelSets
    classes: Classes
    classifier: torch.nn.Linear  # of the backbone: (B, F) → (B, 1000)
    rectified: bool = True  # pooled features are never negative
    spare_images: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (S,) of captions
    spare_texts: list[str] = field(default_factory=list)  # that are not trained on

    def __post_init__(self) -> None:
        self.usable = torch.nonzero(self.classes.trained_images()).flatten()
        named = self.usable[self.classes.of_image[self.usable] >= 0]
        name = self.classes.of_image[named]
        self._named = named[name.argsort(stable=True)]  # photographs of a name together
        self.name_counts = torch.bincount(name, minlength=len(self.classes.names))
        self._starts = torch.cumsum(self.name_counts, 0) - self.name_counts

    @property
    def prior(self) -> torch.Tensor:
        """(1000,): the share of each class in the training set, as the classifier sees it."""
        return self.probability[:, self.usable].float().mean((0, 1))

    @property
    def name_prior(self) -> torch.Tensor:
        """(C,): how often `draw_named` shows each class name: by the root of its photographs."""
        root = self.name_counts.float().sqrt()
        return root / root.sum().clamp_min(1)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random images (count,) of those that may be trained on."""
        return self.usable[torch.randint(0, len(self.usable), (count,), generator=generator)]

    def draw_named(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random images (count,) with a class name, rare names more often than their share."""
        if not len(self._named):
            return torch.zeros(0, dtype=torch.int64)
        name = torch.multinomial(self.name_prior, count, replacement=True, generator=generator)
        place = (torch.rand(count, generator=generator) * self.name_counts[name]).long()
        return self._named[self._starts[name] + place]

    def batch(self, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A random view of each image in `index`: features (B, F) and the teacher's softmax (B, 1000)."""
        view = torch.randint(0, len(self.features), (len(index),), generator=generator)
        return self.features[view, index].float(), self.probability[view, index].float()

    def captioned(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random view of each image, wide enough that a text of the whole still fits: features (B, F)."""
        wide = torch.tensor([i for i, view in enumerate(VIEWS[: len(self.features)]) if view.scale >= 0.7])
        view = wide[torch.randint(0, len(wide), (len(index),), generator=generator)]
        return self.features[view, index].float()


def load_training_set(
    photographs: Photographs, features: np.ndarray, backbone: Backbone = LITE0, held_out: int = HELD_OUT
) -> TrainingSet:
    """`features` (V, N, F) of the first V entries of `VIEWS`."""
    classifier, sets = backbone.classifier(), load_label_sets()
    feats = torch.from_numpy(features)
    sharp = {view.teacher for view in VIEWS[: len(feats)]}
    softmax = {index: classifier_logits(feats[index], classifier).softmax(1).half() for index in sharp}
    classes = load_classes(photographs, softmax[0], held_out)
    softmax = {index: told_by_names(each, classes, sets.member) for index, each in softmax.items()}
    usable = classes.trained_images().tolist()
    groups, sources = captions(photographs), photographs.source_numbers()
    pairs = [(index, text) for index, group in enumerate(groups) if usable[index] for text in group]
    told = [i for i, group in enumerate(groups) if usable[i] and len(group) >= TOLD and sources[i] > 0]
    spare = set(told[::SPARE_CAPTIONS] if held_out else ())
    kept = [(index, text) for index, text in pairs if index in spare]
    pairs = [(index, text) for index, text in pairs if index not in spare]
    return TrainingSet(
        feats,
        torch.stack([softmax[view.teacher] for view in VIEWS[: len(feats)]]),
        torch.tensor([index for index, _ in pairs], dtype=torch.int64),
        [text for _, text in pairs],
        sets,
        classes,
        classifier,
        backbone.rectified,
        torch.tensor([index for index, _ in kept], dtype=torch.int64),
        [text for _, text in kept],
    )


def told_by_names(probability: torch.Tensor, classes: Classes, member: torch.Tensor) -> torch.Tensor:
    """The softmax (N, 1000) with what the name of a photograph excludes left out: a `hornbill` is some bird.

    So the name's hypernyms are right in every label set. Where the network saw nothing of the name, all below its node
    is equally likely.
    """
    told = probability.clone()
    for name, node in enumerate(classes.node.tolist()):
        if node >= 0 and not classes.held[name]:
            own = torch.nonzero(classes.of_image == name).flatten()
            inside = probability[own].float() * member[node] + 1e-3 * member[node] / member[node].sum()
            told[own] = (inside / inside.sum(1, keepdim=True)).to(told.dtype)
    return told


def node_prompts(sets: LabelSets) -> tuple[list[str], torch.Tensor]:
    """All prompts of all names of all nodes, and for each its node: (texts, node index (P,))."""
    texts, owner = [], []
    for node, names in enumerate(sets.names):
        for name in names[:4]:
            for template in ("{}", *PROMPT_SETS["7"]):
                texts.append(template.format(name))
                owner.append(node)
    return texts, torch.tensor(owner)


def node_vectors(sets: LabelSets) -> tuple[Corpus, torch.Tensor]:
    """MiniLM vectors of `node_prompts`."""
    texts, owner = node_prompts(sets)
    return encode_cached("nodes", texts), owner
