"""The training loop of every family: resumable, seeded, one JSON log line per window of steps.

Order of events (all as shares of the run): the decoder learns alone on the closed-form start; the analysis joins; the
rate multipliers rise until every layer spends its target; the analysis freezes and the decoder alone follows the tower.
A run may start from the weights of another (`warm_start`): the first order of events is then already behind it.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from export.augment import augmented, crops, psnr_db
from export.depthwise import fast_backward
from export.distributed import ALONE, Group, join_group
from export.families import Family
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.objective import POOLED_SHARE, TowerFeatures, feature_distance
from export.photographs.collection import Photographs
from export.photographs.feed import Feed
from export.photographs.options import PhotographOptions
from export.rate import RateController, round_through
from export.replay import FRESH, Replay
from export.teacher import Teacher, load_teachers
from export.towers import load_tower
from export.training_loop import load_checkpoint, run_to_end, save
from synthesis.memory import keep_freed_memory
from thinwire.errors import ThinwireError

HELD_OUT = 64  # about so many photographs that no step sees
START_BATCH = 200  # views of one scale and one loss of resolution
TAUGHT_SHARE = 0.1  # of the learning rate, for weights that a teacher brought: faster, they forget what it knew


@dataclass
class Settings:
    """One dial, `minutes`; the rest are defaults of a preset. Sizes in pixels, rates in payload bytes at 224x224."""

    minutes: float = 30.0
    steps: int | None = None
    batch: int = 16
    crop: int | None = None  # the family's own
    learning_rate: float = 1e-3
    feature_weight: float = 1.0
    answer_weight: float = 0.2
    pixel_weight: float = 1.0
    decoder_only_until: float = 0.08
    encoder_until: float = 0.7
    tuning_crop: int = 192  # second stage: nearly whole views, as the tower will see them,
    tuning_pixel_weight: float = 0.1  # and the decoder follows the tower, not the pixels
    tuning_pooled_share: float = 0.6
    seed: int = 0
    device: str = "cpu"
    threads: int = 2
    clips: tuple[str, ...] = ("clip-lite",)  # teachers, one drawn for each step
    compiled: bool = False  # torch.compile for decoder and encoder
    photographs: PhotographOptions = field(default_factory=PhotographOptions)


PRESETS = {
    "cpu": Settings(),
    "gpu": Settings(minutes=8.0, batch=64, device="cuda", compiled=True, threads=8),
}


class TeacherError(ThinwireError):
    """These teachers cannot teach this family; the message says why."""

    reason = "BAD_TEACHER"


class Trainer:
    """Holds nets, optimiser and controller; `state()`/`restore()` make a run resumable at any step."""

    def __init__(
        self,
        family: Family,
        settings: Settings,
        photographs: Photographs | None = None,
        group: Group = ALONE,
    ) -> None:
        """photographs: those of the settings, if they are open already. Raises `PhotographsError`, `ClipUnavailable`,
        and `TeacherError` where a family cannot learn from these teachers."""
        settings = replace(settings, crop=settings.crop or family.crop)
        self.settings, self.group = settings, group
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.photographs = photographs or settings.photographs.open()
        self.images, self.unseen = self.photographs.split(HELD_OUT)
        self.feed = Feed(self.images, settings.batch, settings.seed, group.part(settings.batch))
        device = settings.device
        self.teachers = [each.to(device) for each in load_teachers(settings.clips, self.photographs.captioned())]
        sample = crops(self.images, settings.crop, 200, torch.Generator().manual_seed(settings.seed), device)
        for teacher in self.teachers:
            teacher.centre(sample)
        family = self.family = taught_by(family, self.teachers)
        torch.manual_seed(settings.seed)  # not before: loading teachers takes random numbers, or finds them cached
        self.analysis = fast_backward(family.analysis())
        start = [
            crops(self.images, settings.crop, START_BATCH, self.generator, "cpu")
            for _ in range(0, family.start_views, START_BATCH)
        ]
        self.analysis.initialise(torch.cat(start))
        self.analysis.to(device, memory_format=torch.channels_last).eval()
        self.synthesis = fast_backward(family.synthesis())
        if family.start_synthesis:
            family.start_synthesis(self.synthesis, self.analysis, load_tower(settings.clips[0]).net.visual)
        self.synthesis.to(device, memory_format=torch.channels_last)
        self.rate = family.rate_model(family.channels).to(device)
        self.rate.group = group
        area = (settings.crop / 224) ** 2
        spans = family.layers
        self.controller = RateController([8 * size * area for size in family.layer_bytes])
        self.layer_of = torch.cat([torch.full((stop - start,), i) for i, (start, stop) in enumerate(spans)]).to(device)
        encoder = [p for p in self.analysis.parameters() if p.requires_grad]
        self.exact = not encoder  # nothing in the analysis learns: symbols as the exported encoder will give them
        taught, fresh = [], []
        for name, parameter in self.synthesis.named_parameters():
            if parameter.requires_grad:
                (taught if name.split(".")[0] in family.taught else fresh).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": encoder, "peak": 0.3 * settings.learning_rate},
                {"params": fresh, "peak": settings.learning_rate},
                {"params": taught, "peak": TAUGHT_SHARE * settings.learning_rate},
                {"params": list(self.rate.parameters()), "peak": 10 * settings.learning_rate},
            ],
            lr=settings.learning_rate,
            weight_decay=1e-4,
        )
        self.replay = Replay() if family.frozen_trunk else None  # not in checkpoints: soon full again
        self.warm = False
        group.same_start((self.analysis, self.synthesis, self.rate))
        if settings.compiled:
            self.analysis.forward = torch.compile(self.analysis.forward)
            if family.output == "pixels":
                self.synthesis.unclamped = torch.compile(self.synthesis.unclamped)
        # A closed form is done as soon as it is made
        self.progress = 0.0 if encoder or taught or fresh else 1.0

    def warm_start(self, checkpoint: Path) -> None:
        """Takes the weights of another run of the same sizes; its layers may be cut differently.

        Every layer begins at its old multiplier, or at their median if there were more or fewer of them.
        """
        state = load_checkpoint(checkpoint, self.settings.device)
        for name in ("analysis", "synthesis", "rate"):
            net = getattr(self, name)
            own = net.state_dict()
            if set(own) != set(state.get(name, {})):
                raise TeacherError(f"{checkpoint} is of another family: its {name} has other layers")
            fits = {key: value for key, value in state[name].items() if own[key].shape == value.shape}
            if dropped := set(own) - set(fits) - {"layer_bias.weight"}:  # the one table that depends on the layers
                raise TeacherError(f"{checkpoint} is of another size: {', '.join(sorted(dropped))} differ")
            net.load_state_dict(own | fits)
        multipliers, layers = state["log_lambda"], len(self.family.layers)
        same = len(multipliers) == layers
        self.controller.log_lambda = list(multipliers) if same else [float(np.median(multipliers))] * layers
        self.skip_beginning()

    def skip_beginning(self) -> None:
        """No decoder-only start and no pause of the rate: a warm start has them behind it."""
        self.warm = True
        self.controller.warm_up = 0.0
        self.settings = replace(self.settings, decoder_only_until=0.02)

    def state(self) -> dict:
        return {
            "analysis": self.analysis.state_dict(),
            "synthesis": self.synthesis.state_dict(),
            "rate": self.rate.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log_lambda": self.controller.log_lambda,
            "progress": self.progress,
            "warm": self.warm,
            "generator": self.generator.get_state(),
            "batches": self.feed.step,
        }

    def restore(self, state: dict) -> None:
        try:
            for name in ("analysis", "synthesis", "rate", "optimiser"):
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise TeacherError(f"the checkpoint is of another family or CLIP ({cause}): give another --out") from error
        self.controller.log_lambda = list(state["log_lambda"])
        self.progress = state["progress"]
        self.generator.set_state(state["generator"].cpu())
        self.feed.step = state.get("batches", 0)  # runs of 2026-11-28 and before did not count them
        if state["warm"]:
            self.skip_beginning()

    def set_learning_rates(self) -> None:
        stage = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress)) + 0.01
        encoder_on = stage.decoder_only_until <= self.progress < stage.encoder_until
        for index, group in enumerate(self.optimiser.param_groups):
            group["lr"] = group["peak"] * min(cosine, self.progress / 0.01 + 0.01)
            if index == 0:  # gently: the decoder must follow each of its steps
                joined = (self.progress - stage.decoder_only_until) / 0.05
                group["lr"] *= min(1.0, joined) if encoder_on else 0.0

    def step(self) -> dict[str, float]:
        settings, family = self.settings, self.family
        self.set_learning_rates()
        train_encoder = settings.decoder_only_until <= self.progress < settings.encoder_until
        tuning = self.progress >= settings.encoder_until
        size = settings.tuning_crop if tuning else settings.crop
        teacher = self.drawn_teacher()
        x, latents, wanted = self.views(size, train_encoder, teacher)
        shown = self.rate.shown(latents, family.low, family.high, sampled=not tuning)
        everyone = self.group.world * len(latents)
        counts = torch.randint(1, len(family.layers) + 1, (everyone,), generator=self.generator)
        counts = counts[self.group.part(everyone)].to(x.device)
        got, mse = self.seen_again(x, shown, counts, teacher)
        pooled_share = settings.tuning_pooled_share if tuning else POOLED_SHARE
        feature = feature_distance(got, wanted, pooled_share).mean()
        answer = teacher.disagreement(got, wanted, self.generator).mean()
        bits = self.rate(latents)  # (B, C)
        layer_bits, coded_bits = self.by_layer(bits), self.by_layer(self.rate.coded(latents, bits)).tolist()
        multipliers = torch.tensor(self.controller.multipliers(self.progress), device=x.device)
        # While the encoder rests, or bits cannot be bought, the rate model alone follows the latents, at any weight.
        steering = train_encoder and self.rate.steered
        rate = (multipliers * layer_bits).sum() if steering else 1e-4 * layer_bits.sum()
        pixel = 0.0 if mse is None else mse * 10
        pixel_weight = settings.tuning_pixel_weight if tuning else settings.pixel_weight
        # Decoders that make pixels must first learn to make pictures: answers of noise say nothing (LOG.md).
        answer_weight = settings.answer_weight if tuning or self.family.output == "embedding" else 0.0
        meaning = settings.feature_weight * feature + answer_weight * answer
        loss = pixel_weight * pixel + meaning + rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average_gradients(p for g in self.optimiser.param_groups for p in g["params"])
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        if steering:
            self.controller.update(self.group.mean(coded_bits), self.progress)
        scale = (224 / size) ** 2 / 8
        return {
            "loss": loss.item(),
            **({} if mse is None else {"psnr_db": psnr_db(mse)}),
            "feature": feature.item(),
            "answer": answer.item(),
            **{f"bytes_{i + 1}": value * scale for i, value in enumerate(coded_bits)},
        }

    def by_layer(self, bits: torch.Tensor) -> torch.Tensor:
        """Bits (B, C) of channels → mean bits (L,) of layers."""
        layers = torch.zeros(len(self.family.layers), device=bits.device)
        return layers.index_add_(0, self.layer_of, bits.mean(0))

    @property
    def tower(self) -> Teacher:
        """The first teacher: the only one of families that answer in its space."""
        return self.teachers[0]

    def drawn_teacher(self) -> Teacher:
        if len(self.teachers) == 1:
            return self.tower
        return self.teachers[int(torch.randint(0, len(self.teachers), (1,), generator=self.generator))]

    def views(
        self, size: int, train_encoder: bool, teacher: Teacher
    ) -> tuple[torch.Tensor, torch.Tensor, TowerFeatures]:
        """A step's new views (B, 3, size, size), and the latents and the teacher's features to learn from.

        With a frozen trunk, `FRESH` times as many of them: the new ones, and older ones that were kept."""
        batch, part = self.settings.batch, self.group.part(self.settings.batch)
        x = augmented(self.feed.next(), size, batch, self.generator, self.settings.device, part.start)
        with torch.no_grad():
            wanted = teacher(x)
        if self.replay is None:
            with torch.set_grad_enabled(train_encoder):
                return x, self.latents(x), wanted
        with torch.no_grad(), self.autocast():
            self.replay.add(self.analysis.trunk(x), wanted)
        trunk, wanted = self.replay.draw(FRESH * len(x), self.generator)
        with torch.set_grad_enabled(train_encoder), self.autocast():
            return x, self.analysis.bottleneck(trunk).float(), wanted

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """Views (B, 3, H, W) → latents (B, C, h, w), in half precision where the analysis learns."""
        with nullcontext() if self.exact else self.autocast():
            return self.analysis(x).float()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device.split(":")[0], torch.bfloat16)

    def seen_again(
        self, x: torch.Tensor, symbols: torch.Tensor, counts: torch.Tensor, teacher: Teacher
    ) -> tuple[TowerFeatures, torch.Tensor | None]:
        """What the teacher sees of each image after `counts` (B,) layers, and the mean squared error of the pixels.

        A family without pixels says itself what the tower would have seen, and has no such error.
        """
        with self.autocast():
            shown = symbols * (self.layer_of[None] < counts[:, None])[:, :, None, None]
            if self.family.output == "embedding":
                last = self.synthesis.last_map(shown, counts)
                return TowerFeatures(None, last, self.synthesis.embedding(last) - teacher.mean), None
            image = self.synthesis.unclamped(shown, counts).float()  # (B, 3, H, W) in [0, 1]
        again = image * (255.0 / IMAGE_STD) - IMAGE_MEAN / IMAGE_STD
        got = teacher(again.clamp(-1.2, 1.2).contiguous(memory_format=torch.channels_last))
        return got, F.mse_loss(image, x * (IMAGE_STD / 255.0) + IMAGE_MEAN / 255.0)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Feature distance, answers and PSNR of photographs that no step sees, after each number of layers."""
        generator = torch.Generator().manual_seed(0)  # the same crops every time
        x = crops(self.unseen, self.settings.crop, HELD_OUT, generator, self.settings.device)
        symbols = round_through(self.latents(x), self.family.low, self.family.high)
        figures = {}
        for number, teacher in enumerate(self.teachers):
            wanted, whose = teacher(x), f"_{teacher.id}" if number else ""
            for layers in range(1, len(self.family.layers) + 1):
                got, mse = self.seen_again(x, symbols, torch.full((len(x),), layers, device=x.device), teacher)
                answer = teacher.disagreement(got, wanted, torch.Generator().manual_seed(0)).mean()
                figures[f"feature_{layers}{whose}"] = round(feature_distance(got, wanted).mean().item(), 4)
                figures[f"answer_{layers}{whose}"] = round(answer.item(), 4)
                if mse is not None:
                    figures[f"psnr_db_{layers}"] = round(psnr_db(mse), 2)
        return figures


def taught_by(family: Family, teachers: list[Teacher]) -> Family:
    """The family as these teachers need it. Raises `TeacherError` where they cannot teach it."""
    if family.output == "pixels":
        return family
    if len(teachers) > 1 or teachers[0].answers is None:
        raise TeacherError(
            f"family {family.name} answers in one CLIP's space: give one --clip, a CLIP with a text tower, "
            f"not {', '.join(teacher.id for teacher in teachers)}"
        )
    return family.answering_in(len(teachers[0].mean))


def train(family: Family, settings: Settings, folder: Path, warm_start: Path | None = None) -> Path:
    """Runs (or resumes) training until `settings.minutes` of work, or `settings.steps`, are done.

    A closed form is done at once. Writes `checkpoint.pt` (every 2 minutes), `log.jsonl`, `held_out.jsonl` (ten times a
    run) and `settings.json` into `folder`; returns the checkpoint. Under torchrun every process calls this; the first
    one writes. `warm_start` is another run's folder, whose weights a new run begins with.
    """
    group, device = join_group(settings.device, settings.batch)
    settings = replace(settings, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # nets that have learned nothing yet are full of them, and they are slow
    keep_freed_memory()
    trainer = Trainer(family, settings, opened(settings.photographs, group), group)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(load_checkpoint(checkpoint, settings.device))
    elif warm_start:
        trainer.warm_start(warm_start / "checkpoint.pt")
    elif trainer.progress >= 1.0 and group.first:
        (folder / "held_out.jsonl").write_text(json.dumps({"progress": 1.0, **trainer.held_out()}) + "\n")
        save(trainer, checkpoint)
    begun = {"family": family.name, "decoder": family.decoder, "warm_start": warm_start.name if warm_start else None}
    teachers = [teacher.id for teacher in trainer.teachers]
    if group.first:
        record = {**begun, **asdict(settings), "teachers": teachers, "data": trainer.photographs.described()}
        (folder / "settings.json").write_text(json.dumps(record, indent=2))
    title = f"train {family.name}"
    run_to_end(
        trainer, settings, folder, title, look_from=trainer.progress, look_every=0.1, save_every_s=120, group=group
    )
    if group.first:
        trainer.photographs.report()
    return checkpoint


def opened(options: PhotographOptions, group: Group) -> Photographs:
    """The first process searches the sources and keeps the index, then the others read it: all have the same."""
    if group.world == 1:
        return options.open()
    if group.first:
        options.open().finish_index()
    group.wait()
    photographs = options.open()
    photographs.finish_index()
    return photographs
