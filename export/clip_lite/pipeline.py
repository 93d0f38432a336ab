"""All stages of clip-lite in order; each keeps its result in the export cache, so an interrupted run goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from export.clip_lite import unseen
from export.clip_lite.align import TrainingSet, load_training_set, node_prompts, pca_basis
from export.clip_lite.assemble import assemble
from export.clip_lite.backbones import Backbone
from export.clip_lite.backbones import backbone as named_backbone
from export.clip_lite.classes import HELD_OUT, class_prompts
from export.clip_lite.features import VIEWS, train_features
from export.clip_lite.head import HEAD_FILE, HeadRecipe, Texts, blended, train_head
from export.clip_lite.image_head import ImageHead, head_of, stands_on
from export.clip_lite.joint import JointRecipe, Prompts, tune_jointly
from export.clip_lite.plurals import Plurals, spelling_pairs
from export.clip_lite.spellings import SpellingRecipe, label_vectors, lesson, spelling_report, teach_spellings
from export.clip_lite.text_tower import (
    distil,
    encode_texts,
    initialise_tokens,
    new_model,
    rotation,
    text_tower_of,
    tokenize,
)
from export.clip_lite.texts import Corpus, corpus_texts, encode_cached
from export.clip_lite.wordnet import nouns
from export.photographs.collection import Photographs
from export.photographs.options import OURS, PhotographOptions
from export.teachers import cache_root
from synthesis.memory import keep_freed_memory

NOUN = re.compile(r"[a-z][a-z-]+( [a-z][a-z-]+)?")
CORPUS_SHARE = 0.2  # of the corpus, for a text tower that knows most of it


@dataclass(frozen=True)
class Recipe:
    """The dials of a clip-lite run.

    tune: an open_clip folder or `clip-lite`, whose image head is tuned and whose text tower stays;
    text_tower: one whose text tower stays and to which a new image head is fitted;
    text_start: one that both towers begin with, instead of a distillation of `distil_minutes` and a new image head
    (which is fitted all the same where it stands on another network);
    spellings: one whose text tower learns that plurals are their singulars, while all else of it stays;
    held_out: one of so many class names that only the later sources have is not trained on, 0 for none.
    """

    views: int = len(VIEWS)
    distil_minutes: float = 45.0
    head: HeadRecipe = field(default_factory=HeadRecipe)
    joint: JointRecipe = field(default_factory=JointRecipe)
    threads: int = 2
    photographs: PhotographOptions = OURS
    backbone: str = "lite0"
    backbone_weights: Path | None = None
    tune: str | None = None
    text_tower: str | None = None
    text_start: str | None = None
    spellings: str | None = None
    spelling: SpellingRecipe = field(default_factory=SpellingRecipe)
    held_out: int = HELD_OUT

    @property
    def digest(self) -> str:
        """Names the checkpoints of this very run, whatever the number of its threads."""
        return hashlib.sha256(repr(replace(self, threads=0)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Anchor:
    """Texts (N,) of the corpus and the unit vectors (N, 384) that they should have."""

    texts: list[str]
    vectors: torch.Tensor


def build(recipe: Recipe, out: Path) -> Path:
    """Trains clip-lite from the teachers and writes the open_clip folder `out`. Reports on the held-out names."""
    torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    given = recipe.tune or recipe.text_tower or recipe.text_start or recipe.spellings
    model = text_tower_of(given) if given else None
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    backbone = named_backbone(recipe.backbone, recipe.backbone_weights)
    photographs = recipe.photographs.open()
    photographs.finish_index()
    features = train_features(photographs, recipe.views, backbone)
    data = load_training_set(photographs, features, backbone, recipe.held_out)
    if recipe.spellings:
        return respell(recipe, out, model, photographs, data, backbone)
    if recipe.tune or recipe.text_tower:
        start = (head_of(model, backbone), model.logit_scale.detach().exp()) if recipe.tune else None
        head, scale = fit_head(recipe, data, model, backbone, start)
        return finish(out, model, head, scale, data, backbone, (start[0], model) if start else None)
    if recipe.text_start:
        anchor = anchor_of(model, photographs, data)
    else:
        corpus = encode_cached("corpus", corpus_texts(photographs))
        basis = pca_basis(corpus)
        model = new_model(cache / "model", backbone)
        initialise_tokens(model, basis)
        anchor = anchored(corpus, basis, data)
        distil(model, anchor.texts, anchor.vectors, cache / "text.pt", minutes=recipe.distil_minutes)
    before = copy.deepcopy(model) if recipe.text_start and stands_on(model, backbone) else None
    if before is not None:
        head, scale = head_of(model, backbone), model.logit_scale.detach().exp()
    else:
        head, scale = fit_head(recipe, data, model, backbone)
    nodes, node_owner = node_prompts(data.sets)
    names, name_owner = class_prompts(data.classes, data.sets.names)
    checkpoint = cache / f"joint-{recipe.digest}.pt"
    scale = tune_jointly(
        model,
        head,
        scale.log(),
        data,
        Prompts(nodes, node_owner, len(data.sets.member)),
        Prompts(names, name_owner, len(data.classes.names)),
        tokenize(anchor.texts),
        anchor.vectors,
        recipe.joint,
        checkpoint,
    )
    start = None if before is None else (head_of(before, backbone), before)
    if start is not None:
        share = recipe.joint.blend
        head, model = blended(start[0], head, share), blended(before, model, share)
        scale = torch.lerp(before.logit_scale.detach(), scale.log(), share).exp()
    path = finish(out, model, head, scale, data, backbone, start)
    checkpoint.unlink(missing_ok=True)
    return path


def respell(
    recipe: Recipe, out: Path, model: nn.Module, photographs: Photographs, data: TrainingSet, backbone: Backbone
) -> Path:
    """Teaches the text tower of `model` other spellings, and writes the folder with its image tower as it is."""
    head, before = head_of(model, backbone), copy.deepcopy(model)
    checkpoint = cache_root() / "clip-lite" / f"spellings-{recipe.digest}.pt"
    teach_spellings(model, lesson(photographs, data, recipe.spelling), recipe.spelling, checkpoint)
    print(json.dumps(spelling_report(before, model, data)), file=sys.stderr)
    path = finish(out, model, head, model.logit_scale.detach().exp(), data, backbone, (head, before))
    checkpoint.unlink()
    return path


def fit_head(
    recipe: Recipe,
    data: TrainingSet,
    model: nn.Module,
    backbone: Backbone,
    start: tuple[ImageHead, torch.Tensor] | None = None,
) -> tuple[ImageHead, torch.Tensor]:
    """The image head for the text tower of `model` as it stands, kept in the export cache; and the logit scale.

    start: a head and its scale that are tuned, instead of a new one.
    """
    path = cache_root() / "clip-lite" / f"{backbone.name}-{recipe.digest}-{HEAD_FILE}"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        head = ImageHead(data.features.shape[2])
        head.load_state_dict(kept["head"])
        return head.eval(), kept["scale"]
    nodes, node_owner = node_prompts(data.sets)
    names, name_owner = class_prompts(data.classes, data.sets.names)
    head, scale = train_head(
        data,
        encode_texts(model, data.caption_texts, "captions"),
        Texts(encode_texts(model, nodes, "prompts"), node_owner, len(data.sets.member)),
        Texts(encode_texts(model, names, "class names"), name_owner, len(data.classes.names)),
        recipe.head,
        start,
    )
    torch.save({"head": head.state_dict(), "scale": scale}, path)
    return head, scale


def anchor_of(model: nn.Module, photographs: Photographs, data: TrainingSet, seed: int = 0) -> Anchor:
    """A part of the corpus with MiniLM's vectors, turned to where the text tower of `model` has them.

    The tower was distilled from MiniLM's vectors in a basis of its own, which their best rotation gives back.
    """
    texts = corpus_texts(photographs)
    texts = random.Random(seed).sample(texts, round(CORPUS_SHARE * len(texts)))
    corpus = encode_cached("corpus-part", texts)
    basis = rotation(torch.from_numpy(corpus.vectors), encode_texts(model, texts, "corpus"))
    return anchored(corpus, basis, data)


def anchored(corpus: Corpus, basis: torch.Tensor, data: TrainingSet) -> Anchor:
    """The corpus, prompts of the trained class names, and labels spelled otherwise, which should mean the same."""
    trained = [name for name, count in zip(data.classes.names, data.name_counts.tolist()) if count]
    common = list(dict.fromkeys(name for names in data.sets.names for name in names[:2]))
    prompts, owner = class_prompts(data.classes, data.sets.names)
    prompts = [text for text, name in zip(prompts, owner.tolist()) if data.name_counts[name]]
    plurals = Plurals.of_wordnet(nouns())
    pairs = spelling_pairs([*trained, *common], plurals)
    plain = encode_cached("names", sorted({*prompts, *(text for _, text in pairs)}))
    vector = dict(zip(plain.texts, plain.vectors)) | dict(zip(corpus.texts, corpus.vectors))
    bare = [text for text in corpus.texts if NOUN.fullmatch(text)]
    pairs += [pair for pair in spelling_pairs(bare, plurals, 1, prompts=("{}",)) if pair[1] in vector]
    texts = [*corpus.texts, *prompts, *(text for text, _ in pairs)]
    targets = [*corpus.texts, *prompts, *(text for _, text in pairs)]
    vectors = torch.from_numpy(np.stack([vector[text] for text in targets]))
    return Anchor(texts, F.normalize(vectors @ basis, dim=1))


def finish(
    out: Path,
    model: nn.Module,
    head: ImageHead,
    scale: torch.Tensor,
    data: TrainingSet,
    backbone: Backbone,
    before: tuple[ImageHead, nn.Module] | None = None,
) -> Path:
    """Writes the folder, with the temperature that held-out names deserve.

    Says on stderr how held-out names and captions are answered, and what was gained over the head and the text tower
    `before`: one line of JSON.
    """
    said: dict[str, object] = {}
    views = {"sharp": 0, "32 pixels": 1}
    embedded = {view: images_of(head, data, row) for view, row in views.items() if row < len(data.features)}
    if bool(data.classes.held.any()):
        text = label_vectors(model, data.classes.names)
        first = unseen.report(embedded["sharp"], text, data.classes, float(scale))
        scale = torch.tensor(first["unseen"].best_scale)
        if before is not None:
            text_before = text if before[1] is model else label_vectors(before[1], data.classes.names)
        for view, image in embedded.items():
            found = unseen.report(image, text, data.classes, float(scale))
            said[view] = {title: each.as_json() for title, each in found.items()}
            if before is not None:
                was = images_of(before[0], data, views[view]), text_before
                said[f"{view}, gain"] = unseen.gains(was, (image, text), data.classes)
    if data.spare_texts:
        images, owner = data.spare_images.unique(return_inverse=True)
        captions = encode_texts(model, data.spare_texts, "captions")
        said["captions"] = unseen.retrieval(embedded["sharp"][images], captions, owner)
        if before is not None:
            captions = encode_texts(before[1], data.spare_texts, "captions")
            said["captions, before"] = unseen.retrieval(images_of(before[0], data, 0)[images], captions, owner)
    if said:
        print(json.dumps(said), file=sys.stderr)
    return assemble(out, model.state_dict(), head, scale, backbone)


@torch.inference_mode()
def images_of(head: ImageHead, data: TrainingSet, view: int) -> torch.Tensor:
    """Unit vectors (N, 384) of all photographs in one view."""
    return torch.cat([F.normalize(head(part.float()), dim=1) for part in data.features[view].split(4096)])
