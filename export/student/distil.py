"""Distils a CLIP's image tower into a student: no labels, one dial (`minutes`), resumable.

The student starts as ridge regression from its backbone's features. Then the whole network learns the teacher's vector
of each view (cosine), and the teacher's answers to random texts (KL divergence; Hinton et al. 2015): a vector has
directions that no text asks about, and the answers say which ones count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from export.answers import AnswerDivergence
from export.depthwise import fast_backward
from export.families.front import normalise
from export.kept_views import views_of_step
from export.photographs.options import PhotographOptions
from export.student.network import StudentError, StudentNet, load_student
from export.student.targets import Targets
from export.towers import load_tower
from export.training_loop import restore_state, state_of, train_in

UNSEEN = 256  # about so many photographs that no step sees
FITTED = 2000  # photographs of the ridge regression
PHOTOGRAPHS_A_MINUTE = 500
FEWEST = 1000
HEAD_RATE = 0.1  # times the backbone's learning rate: a fitted map of a thousand features moves far at each step
TEXTS = 512  # of the held-out answers


@dataclass(frozen=True)
class StudentSettings:
    """clip, backbone: as `load_tower` and `load_student` take them; size: the student's side in pixels.

    count: photographs to learn from, None for as many as `minutes` can use; views: of each of them.
    """

    clip: str = "clip-lite"
    backbone: str = "lite0"
    size: int = 128
    minutes: float = 30.0
    steps: int | None = None
    batch: int = 32
    count: int | None = None
    views: int = 2
    learning_rate: float = 2e-4
    answer_weight: float = 1.0
    seed: int = 0
    threads: int = 1
    photographs: PhotographOptions = field(default_factory=PhotographOptions)


class Distilling:
    """Teacher's targets, student, optimiser; `state()`/`restore()` make a run resumable at any step."""

    def __init__(self, settings: StudentSettings) -> None:
        self.settings = settings
        self.teacher = load_tower(settings.clip)
        if not self.teacher.has_text:
            raise StudentError(
                f"--clip {settings.clip} has no text tower: a student answers for a CLIP's label vectors"
            )
        self.photographs = settings.photographs.open()
        self.photographs.finish_index()  # which ones are learnt from is drawn from all of them
        training, unseen = self.photographs.split(UNSEEN)
        self.targets = Targets(training, self.teacher, settings.size, settings.views, settings.seed, self._count())
        self.unseen = Targets(unseen, self.teacher, settings.size, 1, settings.seed)
        self.answers = AnswerDivergence.of(settings.clip, self.teacher.id, self.photographs.captioned())
        torch.manual_seed(settings.seed)
        net = load_student(settings.backbone, settings.size, self.targets.dim)
        self.net: StudentNet = fast_backward(net).to(memory_format=torch.channels_last)
        head = [*self.net.linear.parameters(), *self.net.hidden.parameters(), *self.net.out.parameters()]
        groups = [
            {"params": list(self.net.trunk.parameters()), "share": 1.0},
            {"params": head, "share": HEAD_RATE},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=1e-3)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress, self.steps = 0.0, 0
        self.made_for = {"CLIP": self.teacher.id, "size": f"{settings.size} pixels"}

    def start(self) -> None:
        """The closed-form start, from at most `FITTED` photographs."""
        count = min(FITTED, len(self.targets))
        places = torch.linspace(0, len(self.targets) - 1, count).long().numpy()
        features, wanted = [], []
        for begin in tqdm(range(0, count, 32), desc="features of photographs", unit="batch"):
            pixels, vectors = self.targets.take(places[begin : begin + 32], 0)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                features.append(self.net.features(_input(pixels)).float())
            wanted.append(vectors)
        self.targets.save()
        self.net.start(torch.cat(features), torch.cat(wanted))

    def state(self) -> dict:
        self.targets.save()
        return state_of(self)

    def restore(self, state: dict) -> None:
        restore_state(self, state, "the same --backbone")

    def step(self) -> dict[str, float]:
        rising, falling = self.progress / 0.03 + 0.02, 0.5 * (1 + math.cos(math.pi * self.progress)) + 0.01
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * group["share"] * min(1.0, rising) * falling
        pixels, wanted = self.targets.take(*self._next())
        if torch.rand(1, generator=self.generator) < 0.5:
            pixels = pixels.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.net.features(_input(pixels))
        got = F.normalize(self.net.head(features.float()), dim=-1)
        distance = (1 - (got * wanted).sum(1)).mean()
        answer = self.answers(got, wanted, self.generator).mean()
        loss = distance + self.settings.answer_weight * answer
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimiser.step()
        return {"loss": loss.item(), "cosine": 1 - distance.item(), "answer": answer.item()}

    @torch.inference_mode()
    def held_out(self) -> dict[str, float]:
        """Of photographs that no step sees: mean cosine, KL of the answers in nats, share of equal first answers."""
        got, wanted = self.unseen_vectors()
        generator = torch.Generator().manual_seed(0)
        answer = self.answers(got, wanted, generator).mean().item()
        chosen = torch.randperm(len(self.answers.vectors), generator=generator)[:TEXTS]
        texts = self.answers.vectors[chosen].T
        same = ((got @ texts).argmax(1) == (wanted @ texts).argmax(1)).float().mean().item()
        return {"cosine": (got * wanted).sum(1).mean().item(), "answer": answer, "same_answer": same}

    @torch.inference_mode()
    def unseen_vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors (N, D) of the student and of the teacher, of photographs that no step sees."""
        got, wanted = [], []
        for begin in range(0, len(self.unseen), 32):
            places = torch.arange(begin, min(begin + 32, len(self.unseen))).numpy()
            pixels, vectors = self.unseen.take(places, 0)
            got.append(self.net(_input(pixels)))
            wanted.append(vectors)
        self.unseen.save()
        return torch.cat(got), torch.cat(wanted)

    def _count(self) -> int:
        """Asking the teacher takes as long as two steps of the student: each photograph is to come three times."""
        return self.settings.count or max(FEWEST, round(PHOTOGRAPHS_A_MINUTE * self.settings.minutes))

    def _next(self) -> tuple:
        """Places of a step's photographs (B,) and the number of the view: each pair once before any comes again."""
        round_, places = views_of_step(self.steps, self.settings.batch, len(self.targets), self.settings.seed)
        self.steps += 1
        return np.sort(places), round_ % self.settings.views


def _input(pixels: torch.Tensor) -> torch.Tensor:
    return normalise(pixels).contiguous(memory_format=torch.channels_last)


def distil(settings: StudentSettings, folder: Path) -> Distilling:
    """Runs (or resumes) until `settings.minutes` of work, or `settings.steps`, are done.

    Writes `checkpoint.pt` (every minute), `log.jsonl`, `held_out.jsonl` (before the first step and ten times a run) and
    `settings.json` into `folder`. Raises `StudentError`, `ClipUnavailable`, `PhotographsError`.
    """
    title = f"student {settings.backbone} of {settings.clip}"
    return train_in(folder, settings, lambda: Distilling(settings), title, looks=10, begin=Distilling.start)
