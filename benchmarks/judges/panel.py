"""Judges beside the CLIP that serves: networks that never saw a codec tell what it is worth to somebody else's.

A judge answers by its own classes; what it says of the uncompressed view is the reference. Where a data set's labels
are all classes of ImageNet its answers can be right or wrong too. A second CLIP (`clip:SPEC`) answers zero-shot by the
data's labels. A judge is `own` to a codec that learnt from its network (see `role_of`), and `foreign` to all others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.judges.answer_cache import cached
from benchmarks.judges.networks import JudgeUnavailable, load_network

if TYPE_CHECKING:
    from benchmarks.data.sets import Dataset
    from thinwire.bundle import Bundle

OWN, FOREIGN = "own", "foreign"
CLIP = "clip:"
JUDGES_HELP = (
    "also ask this network, by its own classes (repeatable): lite0, lite1, lite2, deit-tiny, mobilenet-v2, "
    "timm:NAME[@FILE], onnx:FILE, tflite:FILE, or clip:SPEC, a second CLIP"
)


@dataclass(frozen=True, eq=False)
class PanelJudge:
    """name: as asked for; id: its weights; networks: names by which a card may call it a teacher; targets: the class of
    each label of the data set, None where some label is none of its classes; answers: pictures uint8 (H, W, 3) → class.
    """

    name: str
    id: str
    networks: tuple[str, ...]
    targets: tuple[int, ...] | None
    answers: Callable[[Sequence[np.ndarray]], list[int]]


@dataclass(frozen=True, eq=False)
class Panel:
    """Any number of judges, asked of the same pictures."""

    judges: tuple[PanelJudge, ...] = ()

    @classmethod
    def load(cls, names: Sequence[str], data: Dataset, prompt_set: str, cache: Path | None = None) -> Panel:
        """cache: a folder that keeps their answers, so that no picture is judged twice; None keeps none.

        Raises `JudgeUnavailable`, whose message names the fix.
        """
        wanted = dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip())
        judges = [_judge(name, data.labels, prompt_set) for name in wanted]
        if cache is not None:
            judges = [_remembering(judge, cache, data.labels, prompt_set) for judge in judges]
        return cls(tuple(judges))

    @property
    def key(self) -> dict[str, str]:
        """What stored answers depend on."""
        return {judge.name: judge.id for judge in self.judges}

    def answers(self, pictures: Sequence[np.ndarray]) -> dict[str, list[int]]:
        """uint8 (H, W, 3) pictures → each judge's class of each."""
        return {judge.name: judge.answers(pictures) for judge in self.judges}

    def described(self, bundle: Bundle | None, adapter_clip: str | None = None) -> dict[str, dict[str, Any]]:
        """Of each judge what a stored point says beside its answers. bundle: None for image codecs."""
        return {
            judge.name: {
                "id": judge.id,
                "role": role_of(judge, bundle, adapter_clip),
                "targets": None if judge.targets is None else list(judge.targets),
            }
            for judge in self.judges
        }


NOBODY = Panel()


def _judge(name: str, labels: Sequence[str], prompt_set: str) -> PanelJudge:
    if not name.startswith(CLIP):
        network = load_network(name)
        return PanelJudge(name, network.id, network.networks, imagenet_classes(labels), network.answers)
    from benchmarks.judges.judge import Judge
    from cloud.errors import ClipUnavailable
    from thinwire.imaging import canonical_view

    try:
        clip = Judge(name.removeprefix(CLIP))
    except ClipUnavailable as error:
        raise JudgeUnavailable(f"judge {name}: {error}") from error
    place = {label: index for index, label in enumerate(labels)}

    def answers(pictures: Sequence[np.ndarray]) -> list[int]:
        views = [canonical_view(np.ascontiguousarray(each), *clip.view_size) for each in pictures]
        return [place[best.label] for (best,) in clip.answers(views, labels, prompt_set, 1)]

    return PanelJudge(name, clip.clip.id, (clip.clip.id.partition("#")[0],), tuple(range(len(labels))), answers)


def _remembering(judge: PanelJudge, cache: Path, labels: Sequence[str], prompt_set: str) -> PanelJudge:
    """A second CLIP answers by the labels, so its file is theirs alone; networks answer by their own classes."""
    about = repr((judge.id, *((tuple(labels), prompt_set) if judge.name.startswith(CLIP) else ())))
    path = cache / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.txt"
    return replace(judge, answers=cached(judge.answers, path))


def role_of(judge: PanelJudge, bundle: Bundle | None, adapter_clip: str | None = None) -> str:
    """`own` where the bundle's card, or the adapter in the server's CLIP, names the judge or what it was built on."""
    teachers = [] if bundle is None else teachers_of(bundle.card.about)
    if adapter_clip:
        teachers = [*teachers, {"id": adapter_clip, "built_on": []}]
    known = {judge.id, *judge.networks}
    for teacher in teachers:
        names = {teacher["id"], teacher["id"].partition("#")[0], *teacher.get("built_on", ())}
        if names & known:
            return OWN
    return FOREIGN


def teachers_of(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The networks that a bundle learnt from, as its card names them: {"id": "NAME#fingerprint", "built_on": [...]}.

    Older cards say `tuned_for` alone; clip-lite is built on EfficientNet-Lite0.
    """
    training = about.get("training", {})
    named = training.get("teachers")
    if named is None:
        named = [training["tuned_for"]] if training.get("tuned_for") else []
    found = [{"id": each, "built_on": []} if isinstance(each, str) else dict(each) for each in named]
    for teacher in found:
        if teacher["id"].partition("#")[0] == "clip-lite" and not teacher.get("built_on"):
            teacher["built_on"] = ["efficientnet-lite0"]
    return found


def imagenet_classes(labels: Sequence[str]) -> tuple[int, ...] | None:
    """ImageNet's class of each label by its names in WordNet; None unless each label is the name of just one class.

    >>> imagenet_classes(["tench", "English springer", "cassette player"])
    (0, 217, 482)
    >>> imagenet_classes(["tench", "wardrobe of glass"]) is None
    True
    """
    known = _imagenet_names()
    found = [known.get(label.lower(), ()) for label in labels]
    return tuple(classes[0] for classes in found) if all(len(classes) == 1 for classes in found) else None


@functools.cache
def _imagenet_names() -> dict[str, tuple[int, ...]]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names: dict[str, tuple[int, ...]] = {}
    for index in range(info.num_classes()):
        for name in dict.fromkeys(info.index_to_description(index).lower().split(", ")):
            names[name] = (*names.get(name, ()), index)
    return names
