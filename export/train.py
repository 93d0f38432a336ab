"""The training loop of every family: resumable, seeded, one JSON log line per window of steps.

Order of events (all as shares of the run): the decoder learns alone on the closed-form start; the analysis joins; the
rate multipliers rise until every layer spends its target; the analysis freezes and the decoder alone follows the tower.
A run may start from the weights of another (`warm_start`): the first order of events is then already behind it.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from export.answers import AnswerDivergence
from export.depthwise import fast_backward
from export.families import Family
from export.families.front import IMAGE_MEAN, IMAGE_STD, normalise
from export.objective import POOLED_SHARE, FrozenTower, TowerFeatures, feature_distance
from export.photos import held_out_split, train_photos
from export.rate import RateController, round_through
from export.replay import FRESH, Replay
from export.training_loop import run_to_end, save
from synthesis.memory import keep_freed_memory

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


PRESETS = {
    "cpu": Settings(),
    "gpu": Settings(minutes=25.0, batch=64, device="cuda"),
}


def crops(images: np.ndarray, size: int, batch: int, generator: torch.Generator, device: str) -> torch.Tensor:
    """Random flipped crops of the pack's 160 pixels at random scale (1 to 1.4: up to the view's 224 pixels).

    A quarter of them lose resolution first, as thumbnails have: decoders that never saw blur invent detail in it.
    → normalised float (B, 3, size, size)."""
    index = torch.randint(0, len(images), (batch,), generator=generator).sort().values
    x = torch.from_numpy(images[index.numpy()]).to(device).permute(0, 3, 1, 2).float()
    blurred = torch.randperm(batch, generator=generator)[: batch // 4]
    side = int(torch.randint(28, 97, (1,), generator=generator))
    small = F.interpolate(x[blurred], (side, side), mode="bicubic", antialias=True)
    x[blurred] = F.interpolate(small, x.shape[-2:], mode="bicubic", antialias=True).clamp(0, 255)
    scaled = max(size, x.shape[-1] + 16 * int(torch.randint(0, 5, (1,), generator=generator)))
    if scaled != x.shape[-1]:
        x = F.interpolate(x, (scaled, scaled), mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (int(torch.randint(0, scaled - size + 1, (1,), generator=generator)) for _ in range(2))
    x = x[..., top : top + size, left : left + size]
    if torch.rand(1, generator=generator) < 0.5:
        x = x.flip(-1)
    return normalise(x).contiguous(memory_format=torch.channels_last)


def psnr_db(mse: torch.Tensor) -> float:
    """Peak signal to noise of values in [0, 1]."""
    return -10 * math.log10(max(mse.item(), 1e-9))


class Trainer:
    """Holds nets, optimiser and controller; `state()`/`restore()` make a run resumable at any step."""

    def __init__(self, family: Family, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        settings = replace(settings, crop=settings.crop or family.crop)
        self.family, self.settings = family, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.images, self.unseen = held_out_split(train_photos().images, HELD_OUT)
        device = settings.device
        self.tower = FrozenTower().to(device)
        sample = crops(self.images, settings.crop, 200, torch.Generator().manual_seed(settings.seed), device)
        self.tower.centre(sample)
        self.answers = AnswerDivergence.of_clip_lite().to(device)
        self.analysis = fast_backward(family.analysis())
        start = [
            crops(self.images, settings.crop, START_BATCH, self.generator, "cpu")
            for _ in range(0, family.start_views, START_BATCH)
        ]
        self.analysis.initialise(torch.cat(start))
        self.analysis.to(device, memory_format=torch.channels_last).eval()
        self.synthesis = fast_backward(family.synthesis())
        if family.start_synthesis:
            family.start_synthesis(self.synthesis, self.analysis, self.tower.head)
        self.synthesis.to(device, memory_format=torch.channels_last)
        self.rate = family.rate_model(family.channels).to(device)
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
        # A closed form is done as soon as it is made
        self.progress = 0.0 if encoder or taught or fresh else 1.0

    def warm_start(self, checkpoint: Path) -> None:
        """Takes the weights of another run of the same sizes; its layers may be cut differently.

        Every layer begins at its old multiplier, or at their median if there were more or fewer of them.
        """
        state = torch.load(checkpoint, map_location=self.settings.device, weights_only=True)
        for name in ("analysis", "synthesis", "rate"):
            net = getattr(self, name)
            own = net.state_dict()
            fits = {key: value for key, value in state[name].items() if own[key].shape == value.shape}
            if dropped := set(own) - set(fits) - {"layer_bias.weight"}:  # the one table that depends on the layers
                raise SystemExit(f"{checkpoint} is of another size: {', '.join(sorted(dropped))} differ")
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
        }

    def restore(self, state: dict) -> None:
        for name in ("analysis", "synthesis", "rate", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.controller.log_lambda = list(state["log_lambda"])
        self.progress = state["progress"]
        self.generator.set_state(state["generator"].cpu())
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
        x, latents, wanted = self.views(size, train_encoder)
        shown = self.rate.shown(latents, family.low, family.high, sampled=not tuning)
        counts = torch.randint(1, len(family.layers) + 1, (len(latents),), generator=self.generator).to(x.device)
        got, mse = self.seen_again(x, shown, counts)
        pooled_share = settings.tuning_pooled_share if tuning else POOLED_SHARE
        feature = feature_distance(got, wanted, pooled_share).mean()
        answer = self.answers(self.tower.embedding(got), self.tower.embedding(wanted), self.generator).mean()
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
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        if steering:
            self.controller.update(coded_bits, self.progress)
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

    def views(self, size: int, train_encoder: bool) -> tuple[torch.Tensor, torch.Tensor, TowerFeatures]:
        """A step's new views (B, 3, size, size), and the latents and the tower's features to learn from.

        With a frozen trunk, `FRESH` times as many of them: the new ones, and older ones that were kept."""
        x = crops(self.images, size, self.settings.batch, self.generator, self.settings.device)
        with torch.no_grad():
            wanted = self.tower(x)
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
        self, x: torch.Tensor, symbols: torch.Tensor, counts: torch.Tensor
    ) -> tuple[TowerFeatures, torch.Tensor | None]:
        """What the tower sees of each image after `counts` (B,) layers, and the mean squared error of the pixels.

        A family without pixels says itself what the tower would have seen, and has no such error.
        """
        with self.autocast():
            shown = symbols * (self.layer_of[None] < counts[:, None])[:, :, None, None]
            if self.family.output == "embedding":
                last = self.synthesis.last_map(shown, counts)
                return TowerFeatures(None, last, self.synthesis.embedding(last) - self.tower.mean), None
            image = self.synthesis.unclamped(shown, counts).float()  # (B, 3, H, W) in [0, 1]
        again = image * (255.0 / IMAGE_STD) - IMAGE_MEAN / IMAGE_STD
        got = self.tower(again.clamp(-1.2, 1.2).contiguous(memory_format=torch.channels_last))
        return got, F.mse_loss(image, x * (IMAGE_STD / 255.0) + IMAGE_MEAN / 255.0)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Feature distance, answers and PSNR of photographs that no step sees, after each number of layers."""
        generator = torch.Generator().manual_seed(0)  # the same crops every time
        x = crops(self.unseen, self.settings.crop, HELD_OUT, generator, self.settings.device)
        symbols = round_through(self.latents(x), self.family.low, self.family.high)
        wanted, figures = self.tower(x), {}
        for layers in range(1, len(self.family.layers) + 1):
            got, mse = self.seen_again(x, symbols, torch.full((len(x),), layers, device=x.device))
            got_vector, wanted_vector = self.tower.embedding(got), self.tower.embedding(wanted)
            answer = self.answers(got_vector, wanted_vector, torch.Generator().manual_seed(0)).mean()
            figures[f"feature_{layers}"] = round(feature_distance(got, wanted).mean().item(), 4)
            figures[f"answer_{layers}"] = round(answer.item(), 4)
            if mse is not None:
                figures[f"psnr_db_{layers}"] = round(psnr_db(mse), 2)
        return figures


def train(family: Family, settings: Settings, folder: Path, warm_start: Path | None = None) -> Path:
    """Runs (or resumes) training until `settings.minutes` of work, or `settings.steps`, are done.

    A closed form is done at once. Writes `checkpoint.pt` (every 2 minutes), `log.jsonl`, `held_out.jsonl` (ten times a
    run) and `settings.json` into `folder`; returns the checkpoint.
    `warm_start` is another run's folder, whose weights a new run begins with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # nets that have learned nothing yet are full of them, and they are slow
    keep_freed_memory()
    trainer = Trainer(family, settings)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, map_location=settings.device, weights_only=True))
    elif warm_start:
        trainer.warm_start(warm_start / "checkpoint.pt")
    elif trainer.progress >= 1.0:
        (folder / "held_out.jsonl").write_text(json.dumps({"progress": 1.0, **trainer.held_out()}) + "\n")
        save(trainer, checkpoint)
    begun = {"family": family.name, "decoder": family.decoder, "warm_start": warm_start.name if warm_start else None}
    record = {**begun, **asdict(settings)}
    (folder / "settings.json").write_text(json.dumps(record, indent=2))
    title = f"train {family.name}"
    run_to_end(trainer, settings, folder, title, look_from=trainer.progress, look_every=0.1, save_every_s=120)
    return checkpoint
