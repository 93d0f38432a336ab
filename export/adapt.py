"""Adapts a CLIP's image tower to one codec's pictures at low rates: LoRA, taught by the same tower on the originals.

The other way round from `export.train`: the codec stays and CLIP learns to read it. No labels: the student (the tower
with LoRA, on decoded views) is to say what the teacher (the frozen tower) says of the originals, by the cosine of their
vectors less what all vectors share, and by the answers to random texts. Resumable, seeded.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from export.adapt_tower import add_lora, factors_of, target_modules
from export.adapt_views import ViewMaker, Views, tower_vectors
from export.answers import AnswerDivergence
from export.depthwise import fast_backward
from export.kept_views import views_of_step
from export.photographs.options import PhotographOptions
from export.towers import load_tower
from export.train import HELD_OUT
from export.training_loop import check_made_for, looks_at_unseen, train_in
from synthesis.adapter import Adapter, write_adapter
from synthesis.decoder_identity import DecoderIdentity
from synthesis.variant import DecoderVariant, load_variant
from thinwire.bundle import load_bundle
from thinwire.errors import AdapterError


@dataclass(frozen=True)
class AdaptSettings:
    """`minutes` of training, beside the making of `count` decoded views (about 0.05 s each, kept in the cache)."""

    bundle: str
    clip: str = "clip-lite"
    rates: tuple[str, ...] = ()  # of the bundle; () for all
    minutes: float = 10.0
    steps: int | None = None
    count: int = 5000
    batch: int = 16
    rank: int = 8
    scale: float = 2.0
    learning_rate: float = 3e-4
    answer_weight: float = 0.2  # as in `export.train`
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    photographs: PhotographOptions = field(default_factory=PhotographOptions)
    decoder: str | None = None  # folder of a decoder tuned for this CLIP, whose pictures are to be read


class Adapting:
    """Student, teacher's vectors and optimiser; `state()`/`restore()` make a run resumable at any step."""

    def __init__(self, settings: AdaptSettings) -> None:
        """Raises `BundleError`, `RateError`, `AdapterError` for a bundle without pictures, and as `load_tower`."""
        self.settings = settings
        self.bundle = load_bundle(settings.bundle)
        if self.bundle.card.cloud["output"] != "pixels":
            raise AdapterError(
                f"bundle {self.bundle.name!r} decodes into CLIP vectors: no image tower processes its packets"
            )
        self.rates = {rate: self.bundle.n_layers(rate) for rate in settings.rates or self.bundle.rates}
        self.tower = load_tower(settings.clip)
        self.variant = self._variant()
        self.photographs = settings.photographs.open()
        if not self.tower.has_text:
            raise AdapterError(f"{settings.clip} has no text tower: an adapter is of a CLIP")
        self.answers = AnswerDivergence.of(settings.clip, self.tower.id, self.photographs.captioned())
        self.answers.to(settings.device)
        self.tower.net.to(settings.device, memory_format=torch.channels_last)
        maker = ViewMaker(
            self.bundle, self.tower, sorted(self.rates.values()), settings.seed, self.photographs, self.variant
        )
        self.views = maker.training(settings.count)
        self.unseen = maker.held_out(min(HELD_OUT, settings.count))
        targets = target_modules(self.tower.net.visual, self.tower.height, self.tower.width)
        if not targets:
            raise AdapterError(
                f"the image tower of {settings.clip} has no layer that LoRA can adapt: see docs/adapting.md"
            )
        torch.manual_seed(settings.seed)  # not before: making views, or finding them, takes random numbers or none
        self.tower.net.visual = add_lora(self.tower.net.visual, targets, settings.rank, settings.scale)  # the student
        fast_backward(self.tower.net).to(settings.device)
        self.learned = [each for each in self.tower.net.parameters() if each.requires_grad]
        self.mean = torch.from_numpy(self.views.wanted.mean(0)).to(settings.device)  # (D,): all photographs share it
        self.optimiser = torch.optim.AdamW(self.learned, lr=settings.learning_rate, weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress, self.steps = 0.0, 0
        decoder = DecoderIdentity.of_bundle(self.bundle) if self.variant is None else self.variant.identity
        self.made_for = {
            "CLIP": self.tower.id,
            "bundle": f"{self.bundle.name} ({self.bundle.picture_id.hex()})",
            "decoder": f"{decoder.weights_sha256[:16] or 'without weights'}, synthesis {decoder.synthesis_sha256[:16]}",
            "rates": ", ".join(sorted(self.rates, key=self.rates.get)),
        }

    def _variant(self) -> DecoderVariant | None:
        if self.settings.decoder is None:
            return None
        variant = load_variant(self.settings.decoder)
        variant.check_bundle(self.bundle)
        variant.check_clip(self.tower.id)
        if variant.gives_vectors:
            raise AdapterError(f"decoder {variant.path} leads into the tower: it makes no picture to adapt to")
        return variant

    def state(self) -> dict:
        return {
            "made_for": self.made_for,
            "learned": [each.detach() for each in self.learned],
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "progress": self.progress,
            "steps": self.steps,
        }

    def restore(self, state: dict) -> None:
        check_made_for(self.made_for, state)
        if "learned" not in state or [each.shape for each in state["learned"]] != [each.shape for each in self.learned]:
            raise AdapterError("the checkpoint is of another tower or rank: give another --out, or the same settings")
        with torch.no_grad():
            for own, stored in zip(self.learned, state["learned"]):
                own.copy_(stored)
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.progress, self.steps = state["progress"], state["steps"]

    def step(self) -> dict[str, float]:
        settings = self.settings
        rising, falling = self.progress / 0.02 + 0.01, 0.5 * (1 + math.cos(math.pi * self.progress)) + 0.01
        self.optimiser.param_groups[0]["lr"] = settings.learning_rate * min(1.0, rising) * falling
        _, index = views_of_step(self.steps, settings.batch, len(self.views), settings.seed)
        self.steps += 1
        cosine, answer = self.distances(self.views, index, self.generator)
        loss = (1 - cosine + settings.answer_weight * answer).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimiser.step()
        return {"loss": loss.item(), "cosine": cosine.mean().item(), "answer": answer.mean().item()}

    def distances(
        self, views: Views, index: np.ndarray, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Student against teacher: cosine less the shared mean (B,), KL divergence of the answers (B,) in nats."""
        pictures = torch.from_numpy(views.pictures(index)).permute(0, 3, 1, 2)
        got = tower_vectors(self.tower.net, self.tower, pictures)
        wanted = torch.from_numpy(views.wanted[index]).to(got.device)
        cosine = F.cosine_similarity(got - self.mean, wanted - self.mean, dim=1)
        return cosine, self.answers(got, wanted, generator)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Cosine and answers of photographs that no step sees, by rate."""
        cosines, answers = [], []
        for start in range(0, len(self.unseen), self.settings.batch):
            index = np.arange(start, min(start + self.settings.batch, len(self.unseen)))
            generator = torch.Generator().manual_seed(0)  # the same texts every time
            cosine, answer = self.distances(self.unseen, index, generator)
            cosines.append(cosine)
            answers.append(answer)
        cosine, answer = torch.cat(cosines).cpu().numpy(), torch.cat(answers).cpu().numpy()
        figures = {}
        for rate, layers in self.rates.items():
            of_rate = self.unseen.layers == layers
            figures[f"cosine_{rate}"] = round(float(cosine[of_rate].mean()), 4)
            figures[f"answer_{rate}"] = round(float(answer[of_rate].mean()), 4)
        return figures


def adapt(settings: AdaptSettings, folder: Path) -> Adapter:
    """Runs (or resumes) until `settings.minutes` of work, or `settings.steps`, are done; writes `folder`/adapter.

    Beside it `checkpoint.pt` (every minute), `log.jsonl`, `held_out.jsonl` (four times a run, and before its first
    step) and `settings.json`.
    """
    title = f"adapt {settings.clip}"
    run = train_in(folder, settings, lambda: Adapting(settings), title, looks=4, device=settings.device)
    told = looks_at_unseen(folder)
    about = {
        "training": {
            "data": f"{run.photographs.described()}, {len(run.views)} decoded views",
            "settings": {**asdict(settings), "bundle": run.bundle.name},
            "date": datetime.date.today().isoformat(),
            "parameters": sum(each.numel() for each in run.learned),
        },
        "held_out": {"before": told[0], "after": told[-1]},
    }
    return write_adapter(
        folder / "adapter",
        clip=run.tower.id,
        bundle=run.bundle,
        rates=run.rates,
        scale=settings.scale,
        decoder=run.variant,
        factors=factors_of(run.tower.net.visual),
        about=about,
    )
