"""Trains what lies between a bundle's packets and one CLIP: the decoder into pixels, or a neck into the tower.

No labels and no encoder in the loop: the net is to make the tower say of a packet what it says of the original, by its
features, its vector and its answers to random texts. Resumable, seeded; one dial, `minutes`.
"""

from __future__ import annotations

import datetime
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

import synthesis
from export.content import content_of
from export.depthwise import fast_backward
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.kept_views import views_of_step
from export.objective import TowerFeatures, feature_distance
from export.photographs.options import PhotographOptions
from export.taps import find_entry
from export.teacher import load_teachers
from export.towers import load_tower
from export.train import HELD_OUT
from export.training_loop import looks_at_unseen, restore_state, state_of, train_in
from export.tune.views import CodedViews, ViewCoder
from synthesis.still import restore_spec
from synthesis.variant import INTO, DecoderVariant, write_variant
from thinwire.bundle import load_bundle
from thinwire.errors import DecoderError

POOLED_SHARE = 0.6  # as in the second stage of `export.train`
FITTED, RIDGE = 256, 1e-3
VIEWS_A_MINUTE, FEWEST_VIEWS = 200, 1024  # coded for a run, where `count` does not say


@dataclass(frozen=True)
class TuneSettings:
    """`minutes` of training, beside the coding of `count` views (kept in the cache)."""

    bundle: str = "layered"
    clip: str = "clip-lite"
    into: str = "pixels"
    minutes: float = 20.0
    steps: int | None = None
    count: int | None = None
    batch: int = 16
    learning_rate: float | None = None
    answer_weight: float = 0.2
    pixel_weight: float = 0.1
    entry_weight: float = 0.5
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    photographs: PhotographOptions = field(default_factory=PhotographOptions)


RATES = {"pixels": 3e-4, "tower": 1e-3}  # a decoder that works, and a neck that has learned nothing


class Tuning:
    """The net, its optimiser and the coded views; `state()`/`restore()` make a run resumable at any step."""

    def __init__(self, settings: TuneSettings) -> None:
        """Raises `BundleError`, `ClipUnavailable`, `PhotographsError`, and `DecoderError` for what cannot be tuned."""
        self.settings = settings
        self.device = settings.device
        self.bundle = load_bundle(settings.bundle)
        if self.bundle.card.cloud["output"] != "pixels":
            raise DecoderError(f"bundle {self.bundle.name!r} decodes into CLIP vectors: there is no picture to tune")
        self.photographs = settings.photographs.open()
        (self.teacher,) = load_teachers([settings.clip], self.photographs.captioned())
        if self.teacher.answers is None:
            raise DecoderError(f"--clip {settings.clip} has no text tower: a decoder is tuned for a CLIP")
        self.teacher.to(self.device)
        self.teacher.free_size = False  # it looks at whole views here, so at its own size
        self.content = content_of(self.bundle)
        self.entry = self._entry() if settings.into == "tower" else None
        coder = ViewCoder(self.bundle, self.content, self.teacher, self.entry, self.photographs, settings.seed)
        training, unseen = self.photographs.split(HELD_OUT)
        self.views = coder.coded("training", training, self._count(coder))
        self.unseen = coder.coded("unseen", unseen, min(HELD_OUT, len(unseen)))
        index = torch.arange(min(len(self.views), 2048)).numpy()
        self.teacher.mean.copy_(self.views.get("pooled", index).mean(0))
        torch.manual_seed(settings.seed)
        self.spec, self.net = self._start()
        self.net = fast_backward(self.net).to(self.device, memory_format=torch.channels_last)
        rate = settings.learning_rate or RATES[settings.into]
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-4)
        self.rate = rate
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress, self.steps = 0.0, 0
        self.made_for = {
            "CLIP": self.teacher.id,
            "bundle": f"{self.bundle.name} ({self.bundle.picture_id.hex()})",
        }

    def state(self) -> dict:
        return state_of(self)

    def restore(self, state: dict) -> None:
        restore_state(self, state, "the same settings")

    def step(self) -> dict[str, float]:
        rising, falling = self.progress / 0.02 + 0.01, 0.5 * (1 + math.cos(math.pi * self.progress)) + 0.01
        self.optimiser.param_groups[0]["lr"] = self.rate * min(1.0, rising) * falling
        _, index = views_of_step(self.steps, self.settings.batch, len(self.views), self.settings.seed)
        self.steps += 1
        rungs = torch.randint(1, self.content.rungs + 1, (len(index),), generator=self.generator)
        parts = self.compared(self.views, index, rungs)
        loss = sum(weight * value.mean() for weight, value in parts.values())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        return {"loss": loss.item(), **{name: value.mean().item() for name, (_, value) in parts.items()}}

    def compared(
        self, views: CodedViews, index: torch.Tensor, rungs: torch.Tensor, generator: torch.Generator | None = None
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """name → (weight in the objective, values (B,)) of views by index, decoded after `rungs` (B,) layers."""
        settings = self.settings
        stored = views.get("stored", index).to(self.device)
        if not self.content.nested:
            rungs = views.get("rungs", index)
        rungs = rungs.to(self.device)
        shown = self.content.shown(stored, rungs)
        wanted = self._wanted(views, index)
        parts: dict[str, tuple[float, torch.Tensor]] = {}
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            made = getattr(self.net, "unclamped", self.net)(shown, rungs)
        if self.entry is None:
            got = self._look(made.float())
            original = views.get("views", index).to(self.device).permute(0, 3, 1, 2).float() / 255
            parts["pixel"] = 10 * settings.pixel_weight, (made.float() - original).square().mean((1, 2, 3))
        else:
            got = self.teacher.from_entry(made)
            target = views.get("entry", index).to(self.device).float()
            error = (made.float() - target) / self.spread
            parts["entry"] = settings.entry_weight, error.flatten(1).abs().clamp(max=3).mean(1)
        parts["feature"] = 1.0, feature_distance(got, wanted, POOLED_SHARE)
        answer = self.teacher.disagreement(got, wanted, generator or self.generator)
        parts["answer"] = settings.answer_weight, answer
        return parts

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """The same figures of photographs that no step sees, after every number of layers."""
        figures = {}
        index = torch.arange(len(self.unseen)).numpy()
        for rung in range(1, self.content.rungs + 1):
            own = index
            if not self.content.nested:
                own = index[self.unseen.get("rungs", index).numpy() == rung]
                if not len(own):
                    continue
            sums: dict[str, float] = {}
            for start in range(0, len(own), 16):
                part = own[start : start + 16]
                rungs, generator = torch.full((len(part),), rung), torch.Generator().manual_seed(0)
                for name, (_, values) in self.compared(self.unseen, part, rungs, generator).items():
                    sums[name] = sums.get(name, 0.0) + values.sum().item()
            figures |= {f"{name}_{rung}": round(value / len(own), 4) for name, value in sums.items()}
        return figures

    def _look(self, image: torch.Tensor) -> TowerFeatures:
        again = image * (255.0 / IMAGE_STD) - IMAGE_MEAN / IMAGE_STD
        got = self.teacher(again.clamp(-1.2, 1.2).contiguous(memory_format=torch.channels_last))
        return TowerFeatures(None, got.last, got.pooled)

    def _wanted(self, views: CodedViews, index: torch.Tensor) -> TowerFeatures:
        last, pooled = views.get("last", index), views.get("pooled", index).to(self.device)
        return TowerFeatures(None, None if last is None else last.to(self.device), pooled - self.teacher.mean)

    def _count(self, coder: ViewCoder) -> int:
        """Views to code: as asked, else as many as the minutes can use, within the cache's budget."""
        wanted = self.settings.count or max(FEWEST_VIEWS, round(VIEWS_A_MINUTE * self.settings.minutes))
        fit = int(self.settings.photographs.cache_gb * (1 << 30)) // coder.bytes_per_view()
        return max(64, min(wanted, fit)) if not self.settings.count else wanted

    def _entry(self):
        tower = load_tower(self.settings.clip)
        entry = find_entry(self.teacher.net.visual, tower.height, tower.width)
        if entry is None:
            raise DecoderError(
                f"the image tower of {self.settings.clip} has no row of blocks for a neck to join: use --into pixels"
            )
        self.teacher.join(entry)
        return entry

    def _start(self) -> tuple[dict, nn.Module]:
        """The bundle's own decoder; or a neck whose channels have the spread and mean of the tower's own."""
        if self.entry is None:
            spec = self.bundle.card.cloud["synthesis"]
            if spec["arch"] == "still":  # nothing to tune yet: a network that begins as the plain picture
                spec = restore_spec(self.bundle.card.wire, spec)
                return spec, synthesis.build(spec)
            net = synthesis.load(self.bundle)
            if not any(each.requires_grad for each in net.parameters()):
                raise DecoderError(
                    f"the decoder of bundle {self.bundle.name!r} has no weights to tune: use --into tower, or "
                    "a bundle with a net in its decoder"
                )
            return dict(spec), net
        channels, height, _ = self.views.get("stored", torch.arange(1).numpy()).shape[1:]
        entry = self.entry
        spec = {
            "arch": "neck",
            "channels": channels,
            "layers": self.content.rungs,
            "out": entry.channels,
            "height": entry.height,
            "width": entry.width,
            "prefix": entry.prefix,
            "tokens": entry.is_tokens,
            "stride": max(1, round(height / entry.height)),
        }
        spec["finer"] = entry.height > 1.25 * (height / spec["stride"])
        net = synthesis.build(spec)
        if not self.content.nested:  # planes of 0 to 255
            nn.init.constant_(net.gain, 1 / 64)
        index = torch.arange(min(64, len(self.views))).numpy()
        own = self.views.get("entry", index).float()  # (N, C, ...)
        flat = own.flatten(2).transpose(0, 1).flatten(1)  # (C, N places)
        self.spread = flat.std(1).clamp_min(1e-3).view(1, -1, *[1] * (own.ndim - 2)).to(self.device)
        with torch.no_grad():
            net.scale.copy_(flat.std(1).clamp_min(1e-3))
            net.shift.copy_(flat.mean(1))
            if net.place is not None:
                grid = own[:, :, entry.prefix :].mean(0) - flat.mean(1)[:, None]
                net.place.copy_(grid.view_as(net.place))
            if net.prefix_base is not None:
                net.prefix_base.copy_(own[:, :, : entry.prefix].mean(0))
                nn.init.zeros_(net.prefix_from.weight)
                nn.init.zeros_(net.prefix_from.bias)
            self._fit_linear(net)
        return spec, net

    @torch.no_grad()
    def _fit_linear(self, net: nn.Module) -> None:
        """Starts the neck at the best linear estimate of the entry's features, with the rest of it silent.

        Ridge regression over `FITTED` views, each after a random number of layers. From random weights, nine minutes of
        steps on a busy core did not get as far.
        """
        index = torch.arange(min(FITTED, len(self.views))).numpy()
        generator = torch.Generator().manual_seed(self.settings.seed)
        rungs = torch.randint(1, self.content.rungs + 1, (len(index),), generator=generator)
        if not self.content.nested:
            rungs = self.views.get("rungs", index)
        shown = self.content.shown(self.views.get("stored", index), rungs) * net.gain[:, None, None]
        conv = net.linear
        near = nn.functional.unfold(shown, conv.kernel_size, padding=conv.padding, stride=conv.stride)  # (N, K, places)
        height, width = (
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(shown.shape[2:], conv.padding, conv.kernel_size, conv.stride)
        )
        target = self.views.get("entry", index).float()
        if net.tokens:
            target = target[..., self.entry.prefix :].unflatten(2, net.size)
        target = (target - net.shift[:, None, None]) / net.scale[:, None, None]
        if net.place is not None:
            target = target - net.place / net.scale[:, None, None]
        if tuple(target.shape[2:]) != (height, width):
            target = nn.functional.interpolate(target, (height, width), mode="bilinear", antialias=True)
        x = nn.functional.pad(near.transpose(1, 2).flatten(0, 1).double(), (0, 1), value=1.0)  # the bias is the last
        y = target.flatten(2).transpose(1, 2).flatten(0, 1).double()
        power = x.T @ x
        ridge = RIDGE * power.diagonal()[:-1].mean() * torch.eye(len(power), dtype=torch.float64)
        ridge[-1, -1] = 0
        weights = torch.linalg.solve(power + ridge, x.T @ y).float()  # (K + 1, C)
        conv.weight.copy_(weights[:-1].T.reshape(conv.weight.shape))
        conv.bias.copy_(weights[-1])
        nn.init.zeros_(net.out.weight)
        nn.init.zeros_(net.out.bias)


def mean_answer(record: dict[str, float]) -> float:
    """Mean KL divergence of the answers over the rates of a line of held_out.jsonl, nats."""
    values = [value for name, value in record.items() if name.startswith("answer_")]
    return sum(values) / len(values)


def tune(settings: TuneSettings, folder: Path) -> DecoderVariant:
    """Runs (or resumes) until `settings.minutes` of work, or `settings.steps`, are done; writes `folder`/decoder.

    Beside it `checkpoint.pt` (every minute), `log.jsonl`, `held_out.jsonl` (four times a run, and before its first
    step) and `settings.json`.
    """
    if settings.into not in INTO:
        raise DecoderError(f"--into {settings.into!r}: choose {' or '.join(INTO)}")
    title = f"tune {Path(settings.bundle).name} for {settings.clip}"
    run = train_in(folder, settings, lambda: Tuning(settings), title, looks=4, device=settings.device)
    told = looks_at_unseen(folder)
    before, after = (mean_answer(record) for record in (told[0], told[-1]))
    if after >= before:
        print(
            "thinwire-export tune: no gain on unseen photographs "
            f"(KL of the answers {before:.3f} before, {after:.3f} now): "
            "serve the bundle's own decoder, or give more --minutes",
            file=sys.stderr,
        )
    return write_variant(
        folder / "decoder",
        run.net,
        clip=run.teacher.id,
        bundle=run.bundle,
        into=settings.into,
        spec=run.spec,
        entry=None if run.entry is None else run.entry.to_card(),
        about={
            "training": {
                "data": f"{run.photographs.described()}, {len(run.views)} coded views",
                "teachers": [run.teacher.id],
                "judged_by": f"{run.teacher.id} on {len(run.unseen)} photographs that no step saw",
                "settings": {**asdict(settings), "bundle": run.bundle.name},
                "steps": run.steps,
                "date": datetime.date.today().isoformat(),
                "parameters": sum(each.numel() for each in run.net.parameters()),
            },
            "held_out": {"before": told[0], "after": told[-1]},
        },
    )
