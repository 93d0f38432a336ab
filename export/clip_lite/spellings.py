"""Stage `spellings`: the text tower learns that a plural is its singular, and stays what it was for all other texts.

Its teacher is the tower itself as it was (self-distillation): a text keeps its vector, a plural gets the one of its
singular. No photograph is needed, so a step takes half a second on one core.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.align import TrainingSet
from export.clip_lite.held_plurals import HELD_PLURALS
from export.clip_lite.plurals import Plurals, phrase_pairs, plural_pairs
from export.clip_lite.text_tower import (
    distillation_loss,
    encode_texts,
    encode_trimmed,
    length_batches,
    text_parameters,
    tokenize,
)
from export.clip_lite.texts import corpus_texts
from export.clip_lite.wordnet import Synset, is_physical, nouns
from export.photographs.collection import Photographs
from thinwire.labels import fill_templates
from thinwire.prompts import PROMPT_SETS

SAVE_EVERY = 100  # steps
ONLY_PLURAL = ("glasses", "trousers", "tongs", "scissors", "sunglasses", "jeans", "pants", "stairs")  # stay as they are
APART = 8  # times that `glass` and `glasses` stand in a lesson: hundreds of others in it lose their ending
COUNTED = ("two {}", "three {}", "a lot of {}", "a group of {}", "{} and other things")
CODES = ("{} {}", "{}-{}", "{} on a {}", "{} and {}", "{} with a {}", "{} next to a {}", "{} in the {}", "{}, {}")


@dataclass(frozen=True)
class SpellingRecipe:
    """The dials of `teach_spellings`. corpus: the share of the corpus of captions, things and glosses that is kept;
    pairs: of the weight of a batch's loss, beside 1 for all of it; held_too: teach `HELD_PLURALS` as well, on which
    recipes are compared."""

    steps: int = 400
    batch: int = 384
    learning_rate: float = 7e-4
    corpus: float = 0.4
    pairs: float = 1.0
    held_too: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """texts (N,) and plain (N,): what is written, and the text whose vector it should have."""

    texts: list[str]
    plain: list[str]


def lesson(photographs: Photographs, data: TrainingSet, recipe: SpellingRecipe) -> Lesson:
    """What stays as it was, and what becomes another text's equal; nothing of what is held out."""
    rng = random.Random(recipe.seed)
    synsets = nouns()
    plurals = Plurals.of_wordnet(synsets)
    held = {name.lower() for name, out in zip(data.classes.names, data.classes.held.tolist()) if out}
    trained = [name for name, count in zip(data.classes.names, data.name_counts.tolist()) if count]
    unspoken = held if recipe.held_too else {name.lower() for name in HELD_PLURALS} | held
    common = [name for names in data.sets.names for name in names[:3]]
    things = thing_names(synsets)
    pairs = plural_pairs(_without(unspoken, things), plurals, rng, ("{}", *PROMPT_SETS["7"], *PROMPT_SETS["80"]), 2)
    known = list(dict.fromkeys(_without(unspoken, [*trained, *common])))
    pairs += plural_pairs(known, plurals, rng, ("{}", *PROMPT_SETS["7"], *PROMPT_SETS["1"]), 9)
    pairs += phrase_pairs([*known, *rng.sample(things, min(4000, len(things)))], plurals, rng)
    elsewhere = held | {text.lower() for text, _ in pairs}
    spare = set(data.spare_texts)
    own = [text for text in corpus_texts(photographs) if rng.random() < recipe.corpus and text not in spare]
    for name in _without(held, things):
        own.append(rng.choice(PROMPT_SETS["7"]).replace("{}", name))
    for name in dict.fromkeys([*trained, *common, *_without(held, plurals.only_several(things))]):
        own += [template.replace("{}", name) for template in ("{}", *PROMPT_SETS["7"], *PROMPT_SETS["1"])]
    for name in plurals.told_apart(_without(held, things)):
        own += APART * [template.replace("{}", name) for template in ("{}", *PROMPT_SETS["7"])]
    counted = [rng.choice(COUNTED).format(forms[0]) for name in known if (forms := plurals.of(name))]
    own = [text for text in [*own, *counted, *random_labels(things, rng)] if text.lower() not in elsewhere]
    return Lesson([*own, *(text for text, _ in pairs)], [*own, *(text for _, text in pairs)])


def thing_names(synsets: dict[int, Synset]) -> list[str]:
    """Names of things that a camera could see, whose last word has a small first letter: no people, no places."""
    physical = is_physical(synsets)
    found = {lemma for offset, synset in synsets.items() if physical[offset] for lemma in synset.lemmas}
    return sorted(lemma for lemma in found if lemma.split()[-1][0].islower())


def random_labels(things: list[str], rng: random.Random, count: int = 12_000) -> list[str]:
    """Labels that no list has: two things in one, numbers, half words."""
    found = []
    for _ in range(count):
        one, two = (
            rng.choice(things),
            rng.choice((rng.choice(things), str(rng.randrange(3000)), rng.choice(things)[:4])),
        )
        text = rng.choice(CODES).format(one, two)
        found.append(rng.choice(("{}", *PROMPT_SETS["7"])).replace("{}", text))
    return found


def _without(banned: set[str], names: list[str]) -> list[str]:
    return [name for name in names if name.lower() not in banned]


def teach_spellings(model: nn.Module, lesson: Lesson, recipe: SpellingRecipe, checkpoint: Path) -> None:
    """Trains the text tower of `model` in place; `checkpoint` lets an interrupted run go on, to the same end."""
    tokens = tokenize(lesson.texts)
    batches = list(_batches(tokens, recipe))
    targets = sorted(
        {lesson.plain[index] for index in torch.cat(batches).tolist()}
    )  # a short training asks not for all
    row = {text: index for index, text in enumerate(targets)}
    vectors = encode_texts(model, targets, "texts as they are").half()
    goal = torch.tensor([row.get(text, -1) for text in lesson.plain])
    paired = torch.tensor([text != plain for text, plain in zip(lesson.texts, lesson.plain)])
    parameters = text_parameters(model)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        done = state["steps"]
    with tqdm(total=recipe.steps, initial=done, desc="spellings", unit="step") as bar:
        for step, index in enumerate(batches):
            if step < done:
                continue
            student, wanted, pair = encode_trimmed(model, tokens[index]), vectors[goal[index]].float(), paired[index]
            distance = 1 - (student * wanted).sum(1)
            loss = distillation_loss(student, wanted) + recipe.pairs * (distance * pair).sum() / len(index)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            bar.update()
            if step % 10 == 0 and bool(pair.any()) and not bool(pair.all()):
                cosine = 1 - distance.detach()
                own, other = cosine[~pair].mean().item(), cosine[pair].mean().item()
                bar.set_postfix(unchanged=f"{own:.3f}", plurals=f"{other:.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
                _save(checkpoint, parameters, optimiser, schedule, step + 1)


def _batches(tokens: torch.Tensor, recipe: SpellingRecipe) -> Iterator[torch.Tensor]:
    """`recipe.steps` batches, the same in every run: texts of about one length together."""
    generator, given = torch.Generator().manual_seed(recipe.seed), 0
    while True:
        for index in length_batches(tokens, recipe.batch, generator):
            if given == recipe.steps:
                return
            given += 1
            yield index


def _save(checkpoint: Path, parameters: list[nn.Parameter], optimiser, schedule, steps: int) -> None:
    partial = checkpoint.with_suffix(".partial")
    kept = {"parameters": [parameter.detach() for parameter in parameters], "steps": steps}
    torch.save(kept | {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}, partial)
    partial.rename(checkpoint)


def label_vectors(model: nn.Module, labels: list[str]) -> torch.Tensor:
    """(L, 384): class vectors as the service makes them, from the 7 templates."""
    texts = [text for label in labels for text in fill_templates(label, PROMPT_SETS["7"])]
    return F.normalize(encode_texts(model, texts, "labels").reshape(len(labels), 7, -1).mean(1), dim=1)


def summary(cosine: torch.Tensor) -> dict[str, float]:
    """Of cosines (N,): the mean, the least, and the share of those at 0.95 or above."""
    return {
        "labels": len(cosine),
        "mean": round(cosine.mean().item(), 4),
        "worst": round(cosine.min().item(), 4),
        "share_at_0.95": round((cosine >= 0.95).float().mean().item(), 4),
    }


def spelling_report(before: nn.Module, after: nn.Module, data: TrainingSet) -> dict[str, dict[str, float]]:
    """Cosines of held-out plurals to their singulars, before and after; and of what should have stayed as it was.

    Each of `ONLY_PLURAL` is told by itself, and how near `glasses` are to a `glass`, which is another thing.
    """
    singular, plural = list(HELD_PLURALS), list(HELD_PLURALS.values())
    said = {}
    for title, model in (("plurals, before", before), ("plurals", after)):
        said[title] = summary((label_vectors(model, singular) * label_vectors(model, plural)).sum(1))
    held = [name for name, out in zip(data.classes.names, data.classes.held.tolist()) if out]
    for title, labels in (("held-out names, drift", held), ("singulars, drift", singular)):
        if labels:
            said[title] = summary((label_vectors(before, labels) * label_vectors(after, labels)).sum(1))
    if data.spare_texts:
        vectors = [encode_texts(model, data.spare_texts, "captions") for model in (before, after)]
        said["captions, drift"] = summary((vectors[0] * vectors[1]).sum(1))
    several = [label_vectors(model, [*ONLY_PLURAL, "glass"]) for model in (before, after)]
    stayed = (several[0] * several[1]).sum(1)[:-1].tolist()
    said["words with only a plural, drift"] = {word: round(value, 4) for word, value in zip(ONLY_PLURAL, stayed)}
    said["glasses to glass"] = {
        when: round(float(words[0] @ words[-1]), 4) for when, words in zip(("before", "after"), several)
    }
    return said
